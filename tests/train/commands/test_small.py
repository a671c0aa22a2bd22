"""The small SAM that is trained on drawn scenes: its beginning, and what is said about its training."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

import sam_jax
from sam_jax.encoders.config import TinyViTConfig
from sam_jax.encoders.tiny_vit import TinyViT
from sam_jax.files.checkpoints import load_encoder
from sam_jax.train.commands import small
from sam_jax.train.commands.grow import copies

MOST_BYTES = 4_000_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small") / "start"
    small.start(folder)
    return folder


def test_the_beginning_is_a_checkpoint_that_is_small_enough_to_ship(folder: Path) -> None:
    model, variables = sam_jax.load(folder)
    encoder, encoder_variables = load_encoder(folder)
    assert (model.config, encoder.config) == (small.DECODER, small.ENCODER)
    leaves = jax.tree.leaves((variables, encoder_variables))
    assert sum(x.nbytes for x in leaves) < MOST_BYTES
    assert all(bool(jnp.isfinite(x).all()) for x in leaves)


def test_its_losses_are_at_the_images_resolution() -> None:
    assert tuple(small.TRAINING.target_scale * side for side in small.DECODER.mask_size) == small.IMAGE_SIZE


def test_the_encoder_begins_with_embeddings_that_differ_from_place_to_place(folder: Path) -> None:
    encoder, variables = load_encoder(folder)
    shapes = jax.eval_shape(encoder.apply, variables, jnp.zeros((*small.IMAGE_SIZE, 3)))
    assert shapes.shape == (*small.DECODER.grid_size, small.DECODER.width)
    positions = np.asarray(variables["params"]["position_embedding"]).reshape(-1, small.ENCODER.width)
    assert len(np.unique(positions.round(6), axis=0)) == len(positions)
    assert positions.std() == pytest.approx(0.02, rel=0.05)


def test_for_larger_images_positions_alone_change(folder: Path, tmp_path: Path) -> None:
    small.resize(str(folder), tmp_path / "larger")
    (model, variables), (larger_model, larger_variables) = sam_jax.load(folder), sam_jax.load(tmp_path / "larger")
    (encoder, of_encoder), (larger, of_larger) = load_encoder(folder), load_encoder(tmp_path / "larger")
    assert (larger.config.image_size, larger_model.config.image_size) == ((256, 256),) * 2
    assert larger_model.config.grid_size == larger.config.grid_size == (32, 32)
    assert dataclasses.replace(larger_model.config, image_size=(128, 128), grid_size=(16, 16)) == model.config
    jax.tree.map(np.testing.assert_array_equal, variables, larger_variables)
    before, after = (flatten_dict(x["params"], sep="/") for x in (of_encoder, of_larger))
    changed = {path for path in before if not np.array_equal(before[path], after[path])}
    in_global = {f"block_{i}/attention/relative_{axis}" for i in (2, 4) for axis in ("height", "width")}
    # The relative positions begin as zeros: their number alone shows that there are new ones.
    assert changed == {"position_embedding", *in_global}
    # Each position lies between four new ones, and is their mean but for its own neighbours.
    x = after["position_embedding"]
    fine = (x[::2, ::2] + x[1::2, ::2] + x[::2, 1::2] + x[1::2, 1::2]) / 4
    assert np.corrcoef(fine.ravel(), before["position_embedding"].ravel())[0, 1] > 0.9
    assert jax.eval_shape(larger.apply, of_larger, jnp.zeros((256, 256, 3))).shape == (32, 32, model.config.width)
    assert encoder.config == dataclasses.replace(larger.config, image_size=(128, 128))


@pytest.mark.slow
def test_a_grown_network_is_small_enough_to_ship_in_float16(folder: Path, tmp_path: Path) -> None:
    small.grow(str(folder), tmp_path / "grown")
    (model, variables), (encoder, of_encoder) = sam_jax.load(tmp_path / "grown"), load_encoder(tmp_path / "grown")
    assert (model.config.width, encoder.config.out_width) == (128, 128)
    assert (encoder.config.depth, encoder.config.global_blocks) == (8, (3, 7))
    assert 2 * sum(x.size for x in jax.tree.leaves((variables, of_encoder))) < MOST_BYTES
    image = jnp.asarray(np.random.default_rng(0).normal(size=(*small.IMAGE_SIZE, 3)), jnp.float32)
    before, of_before = load_encoder(folder)
    embedding = before.apply(of_before, image)[..., copies(small.DECODER.width)]
    np.testing.assert_allclose(encoder.apply(of_encoder, image), embedding, atol=1e-4)


@pytest.mark.parametrize("change", [small.resize, small.grow])
def test_another_encoder_than_a_vit_is_refused(
    change: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(small, "load_encoder", lambda path: (TinyViT(TinyViTConfig()), {}))
    with pytest.raises(ValueError, match=r"start must have a ViT as its image encoder; .*TinyViTConfig\("):
        change(str(folder), tmp_path / "larger")
    assert not (tmp_path / "larger").exists()


@pytest.mark.parametrize(
    ("given", "option"),
    [
        ("runs/{run}/start", ""),
        ("runs/b/start", " --checkpoint b/start"),
        ("runs/b/model", " --checkpoint b/model"),
        ("runs/b.safetensors", " --checkpoint b.safetensors"),
    ],
)
def test_a_run_is_described_by_its_command_its_steps_its_time_and_its_settings(
    tmp_path: Path, given: str, option: str
) -> None:
    lines: list[dict[str, Any]] = [{"step": 20, "seconds": 36.0}, {"step": 40, "seconds": 54.0}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = {"seed": 3, "loop": {"steps": 60}, "simulation": {"clicks": 1}}
    (tmp_path / "finetune.json").write_text(
        json.dumps({"data": "scenes", "checkpoint": given.format(run=tmp_path.name), "config": config})
    )
    assert small.describe_run(tmp_path) == {
        "command": "python -m sam_jax.train.commands.small train "
        f"{tmp_path.name}{option} --steps 60 --clicks 1 --seed 3",
        "steps": 40,
        "hours": 0.5,
        "config": config,
    }


def test_figures_are_those_of_the_report() -> None:
    report = {
        "images": 2,
        "all": {
            "objects": 5,
            "click_iou": {"score": {"1": 0.1, "3": 0.2, "5": 0.3}, "oracle": {"1": 0.4}},
            "box_iou": {"score": 0.5, "oracle": 0.6, "mask 0": 0.7},
        },
        "calibration": {"error": 0.8},
    }
    assert small.figures(report) == {
        "images": 2,
        "objects": 5,
        "1 click, best of three": 0.4,
        "1 click, by score": 0.1,
        "3 clicks": 0.2,
        "5 clicks": 0.3,
        "box, best of three": 0.6,
        "box, by score": 0.5,
        "box, mask 0": 0.7,
        "error of the predicted IoU": 0.8,
    }
