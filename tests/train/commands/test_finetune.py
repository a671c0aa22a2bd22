"""Whole runs, from data and a checkpoint to a checkpoint: small, but with nothing left out."""

import dataclasses
import functools
import json
import re
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from PIL import Image
from pycocotools import mask as coco
from random_encoder import SMALL_EFFICIENT_VIT, SMALL_HIERA, SMALL_TINY_VIT
from random_encoder import random_variables as encoder_variables
from random_model import FAMILIES, random_variables
from rich.console import Console
from small_run import ENCODER, MODEL, save_checkpoint

import sam_jax
from sam_jax import MaskPrediction, Sam
from sam_jax.batch.decode import decode_batch
from sam_jax.commands import cli
from sam_jax.commands import embed as embed_images
from sam_jax.decoder.features import Features, map_shapes, maps_of
from sam_jax.encoders.efficient_vit import EfficientViT
from sam_jax.encoders.hiera import Hiera
from sam_jax.encoders.tiny_vit import TinyViT
from sam_jax.encoders.vit import ImageEncoder
from sam_jax.files.embeddings import EmbeddingStore
from sam_jax.files.manifest import Manifest
from sam_jax.train.commands import finetune as finetune_module
from sam_jax.train.commands import held_out as held_out_module
from sam_jax.train.commands.evaluate import run as evaluate_command
from sam_jax.train.commands.finetune import finetune
from sam_jax.train.config import (
    Augmentation,
    FinetuneConfig,
    LoopConfig,
    LossConfig,
    OptimizerConfig,
    Simulation,
)
from sam_jax.train.data.examples import Example
from sam_jax.train.data.sources import Encoded, open_source
from sam_jax.train.evaluation import evaluate as evaluate_module
from sam_jax.train.evaluation.evaluate import evaluate
from sam_jax.train.learning import step as step_module
from sam_jax.train.learning.lines import read_lines
from sam_jax.train.learning.lora import PROJECTIONS
from sam_jax.train.learning.validation import VALIDATION, read_best

SIZE = (96, 96)
CONFIG = FinetuneConfig(
    batch=5,
    objects=3,
    loss=LossConfig(focal=1.0),
    simulation=Simulation(clicks=0, refinements=False),
    optimizer=OptimizerConfig(learning_rate=1e-2, warmup=10),
    loop=LoopConfig(steps=120, log_every=20, save_every=60),
)
MARGIN = 0.2
"""By how much the mean IoU on images that were not trained on must rise."""


def two_discs(seed: int) -> Example:
    """Two bright discs on dark noise, each in its half of the image."""
    rng = np.random.default_rng(seed)
    image, (rows, columns) = rng.integers(0, 60, (*SIZE, 3)), np.mgrid[: SIZE[0], : SIZE[1]]
    centres, radii = rng.uniform(((35, 19), (51, 67)), ((45, 29), (61, 77))), rng.uniform(11, 18, 2)
    masks = np.stack([np.hypot(rows - y, columns - x) < r for (y, x), r in zip(centres, radii, strict=True)])
    for mask in masks:
        image[mask] += rng.integers(90, 190, 3)
    return Example(image.astype(np.uint8), masks, f"{seed}.png")


def write_coco(folder: Path, seeds: range) -> Path:
    """Write images, and a JSON file in which one object of each is a polygon, and the other is run-length encoded."""
    (folder / "images").mkdir(parents=True)
    images, annotations = [], []
    for seed in seeds:
        example = two_discs(seed)
        Image.fromarray(example.image).save(folder / "images" / example.name)
        images.append({"id": seed, "file_name": example.name, "height": SIZE[0], "width": SIZE[1]})
        for i, mask in enumerate(example.masks):
            segmentation = polygon(mask) if i else run_lengths(mask)
            annotations.append({"id": len(annotations), "image_id": seed, "segmentation": segmentation})
    (folder / "coco.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    return folder / "coco.json"


def run_lengths(mask: np.ndarray) -> dict[str, Any]:
    return {"size": [*SIZE], "counts": coco.encode(np.asfortranarray(mask, np.uint8))["counts"].decode()}


def polygon(mask: np.ndarray) -> list[list[float]]:
    """The circle around a disc's centre that has its area."""
    rows, columns = np.nonzero(mask)
    angle = np.linspace(0, 2 * np.pi, 32, endpoint=False)
    radius, x, y = np.sqrt(len(rows) / np.pi), columns.mean() + 0.5, rows.mean() + 0.5
    return [np.stack([x + radius * np.cos(angle), y + radius * np.sin(angle)], -1).ravel().tolist()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, and COCO data to train on and to measure on."""
    folder = tmp_path_factory.mktemp("finetune")
    save_checkpoint(folder / "base")
    write_coco(folder / "data", range(100, 130))
    write_coco(folder / "held_out", range(6))
    return folder


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train the modules as they are, which compile in half the time of the fast paths."""
    monkeypatch.setattr(step_module, "decode_batch", functools.partial(decode_batch, path="plain"))


def flat(checkpoint: Path) -> dict[str, np.ndarray]:
    """All arrays of a checkpoint, those of the encoder under `encoder/`."""
    decoder, encoder = sam_jax.load(checkpoint)[1], sam_jax.load_encoder(checkpoint)[1]
    return {path: np.asarray(x) for path, x in flatten_dict(decoder | {"encoder": encoder}, sep="/").items()}


def changed(before: Path, after: Path) -> set[str]:
    """Paths of the arrays that two checkpoints do not have in common."""
    old, new = flat(before), flat(after)
    assert old.keys() == new.keys()
    return {path for path in old if old[path].shape != new[path].shape or (old[path] != new[path]).any()}


def held_out_iou(folder: Path, checkpoint: Path) -> tuple[float, float]:
    """Mean IoU of images that were not trained on, after one click and of boxes, by score."""
    encode = functools.partial(sam_jax.encode_image, *sam_jax.load_encoder(checkpoint))
    source = Encoded(open_source(folder / "held_out" / "coco.json"), encode)
    examples = (source[i] for i in range(len(source)))
    report = evaluate(*sam_jax.load(checkpoint), examples, cap=5, objects=8)
    return report.all.click_iou["score"]["1"], report.all.box_iou["score"]


@pytest.mark.slow
def test_a_short_run_makes_masks_of_other_images_better(folder: Path, plain: None) -> None:
    before = held_out_iou(folder, folder / "base")
    result = finetune(str(folder / "data" / "coco.json"), str(folder / "base"), folder / "run", CONFIG)
    after = held_out_iou(folder, result.model)
    assert np.subtract(after, before).min() > MARGIN, (before, after)

    assert {path.name for path in (folder / "run").iterdir()} == {
        *("model", "checkpoints", "embeddings", "finetune.json", "metrics.jsonl"),
        *("curves.png", "samples.png", "report.html"),
    }
    assert sam_jax.load(result.model)[0] == MODEL
    decoder = {path for path in flat(folder / "base") if path.startswith("params/mask_decoder")}
    assert changed(folder / "base", result.model) <= decoder
    assert result.trained == sum(flat(folder / "base")[path].size for path in decoder)

    found = Manifest.read(result.model).provenance
    assert (found.family, found.licence, found.sha256) == ("sam", "Apache-2.0", None)
    assert found.source == "fine-tuned from small.pth"


def test_a_folder_is_of_one_run(folder: Path) -> None:
    data, base = str(folder / "data" / "coco.json"), str(folder / "base")
    told = {"data": data, "checkpoint": base, "family": None, "prefix": None}
    finetune_module._claim(folder / "claimed", told, CONFIG)
    other = dataclasses.replace(CONFIG, train="heads", objects=2)
    with pytest.raises(ValueError, match="has a run with another train, objects"):
        finetune(data, base, folder / "claimed", other)


def mean_of_all(
    model: Any, variables: Any, embeddings: Features, prompts: sam_jax.Prompts, **how: Any
) -> MaskPrediction:
    """A decoder whose logits depend on every parameter, and that compiles at once."""
    scale = sum(jnp.square(x).mean() for x in jax.tree.leaves(variables["params"]))
    pixels = maps_of(embeddings)["embedding"].repeat(4, 1).repeat(4, 2).mean(-1)[:, None, None]
    logits = jnp.broadcast_to(scale * pixels, (*prompts.valid.shape, 4, *model.config.mask_size))
    return MaskPrediction(logits, jnp.zeros((*prompts.valid.shape, 4)), prompts.valid)


@pytest.mark.slow
def test_the_command_trains_everything_with_more_masks_on_two_devices(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(step_module, "decode_batch", mean_of_all)
    monkeypatch.setattr(finetune_module, "_draw", lambda *of_run: None)  # compiles another evaluation
    stream = mock.Mock(wraps=finetune_module.batches)
    monkeypatch.setattr(finetune_module, "batches", stream)
    settings = dataclasses.replace(
        CONFIG, train="everything", mask_outputs=4, batch=2, objects=1, target_scale=2, loop=LoopConfig(2, 1, 2)
    )
    mesh = finetune_module._mesh(settings)
    assert mesh is not None
    assert mesh.shape == {"image": 2, "prompt_set": 1}
    (folder / "settings.json").write_text(settings.to_json())
    arguments = f"finetune {folder}/data/coco.json --checkpoint {folder}/base -o {folder}/all --config"
    monkeypatch.setattr(sys, "argv", ["sam-jax", *arguments.split(), f"{folder}/settings.json"])
    monkeypatch.setenv("COLUMNS", "200")
    cli.main()
    assert stream.call_args.kwargs["target_scale"] == 2
    assert stream.call_args.kwargs["augmentation"] == Augmentation(True, True, 0.2, 0.2)  # the encoder trains
    out = capsys.readouterr().out
    assert "masks 0 to 3 loaded, 4 to 4 initialised:" in out
    assert "\n           params/mask_decoder/mask_tokens" in out
    model, variables = sam_jax.load(folder / "all" / "model")
    assert model.config.num_masks == 5
    moved = {
        path.split("/")[0 if path.startswith("encoder") else 1]
        for path in changed(folder / "base", folder / "all" / "model")
    }
    assert moved == {"mask_decoder", "prompt_encoder", "encoder"}
    assert not (folder / "all" / "embeddings").exists()
    assert sam_jax.convert.to_torch(model, variables)["mask_decoder.mask_tokens.weight"].shape[0] == 5


def quick(monkeypatch: pytest.MonkeyPatch, ious: dict[int, float]) -> list[int]:
    """Let steps and pictures cost nothing, and looks find these IoUs; return the numbers of images looked at."""
    monkeypatch.setattr(step_module, "decode_batch", mean_of_all)
    monkeypatch.setattr(finetune_module, "_draw", lambda *of_run: None)
    seen, left = [], iter(ious.values())

    def answers(model: Any, variables: Any, examples: Any, objects: int) -> dict[str, float]:
        seen.append(sum(example.encoded is not None for example in examples))
        iou = next(left)
        return {"click": iou, "box": iou}

    monkeypatch.setattr(held_out_module, "first_answers", answers)
    return seen


def test_the_model_is_the_best_step_on_held_out_images(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = quick(monkeypatch, {0: 0.1, 1: 0.5, 2: 0.4})
    loop = LoopConfig(2, 1, 1, validate_every=1)
    config = dataclasses.replace(CONFIG, batch=1, objects=1, loop=loop, split=0.34)
    finetune(str(folder / "held_out" / "coco.json"), str(folder / "base"), folder / "split", config)
    assert seen == [2, 2, 2]
    said = " ".join(capsys.readouterr().err.split())
    assert "The decoder alone trains. With 6 images, --train everything" in said
    assert "2 images are held out, 4 are trained on." in said
    assert "model/ is step 1, the best on the held-out images; last/ is step 2." in said
    assert len(EmbeddingStore.open(folder / "split" / "embeddings").names()) == 6
    step, best = read_best(folder / "split")
    assert step == 1
    model, last = flat(folder / "split" / "model"), flat(folder / "split" / "last")
    for path, x in best.items():
        np.testing.assert_array_equal(model[f"params/{path}"], x)
    assert any((last[path] != model[path]).any() for path in model)


@pytest.mark.parametrize("train", ["decoder", "lora"])
def test_held_out_images_can_be_other_data(folder: Path, monkeypatch: pytest.MonkeyPatch, train: Any) -> None:
    seen = quick(monkeypatch, {0: 0.1, 1: 0.05})
    data = str(folder / "held_out" / "coco.json")
    config = dataclasses.replace(
        CONFIG, train=train, batch=1, objects=1, loop=LoopConfig(1, 1, 1), validate=str(folder / "data" / "coco.json")
    )
    out = folder / f"validated_{train}"
    finetune(data, str(folder / "base"), out, config)
    assert seen == [30, 30]
    assert read_best(out)[0] == 0
    assert (out / "embeddings_held_out").exists() == (train == "decoder")
    assert not changed(folder / "base", out / "model")  # nothing was better than before training
    assert changed(folder / "base", out / "last")
    with pytest.raises(ValueError, match="validate must be other images than those to train on"):
        finetune(data, str(folder / "base"), out, dataclasses.replace(config, validate=data))


def write_classes(folder: Path, seeds: range) -> Path:
    """Write images whose left disc is class 1 and whose right disc is class 2; every third has the left one alone."""
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True)
    for seed in seeds:
        example = two_discs(seed)
        left, right = example.masks
        Image.fromarray(example.image).save(folder / "images" / example.name)
        Image.fromarray((left + 2 * (right & bool(seed % 3))).astype(np.uint8)).save(folder / "labels" / example.name)
    return folder


@pytest.mark.slow
def test_classes_are_learned_and_measured_also_without_matplotlib(
    folder: Path, plain: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    data, held_out = write_classes(folder / "classes", range(100, 118)), write_classes(folder / "new", range(6))
    loop = LoopConfig(steps=200, log_every=50, save_every=100)
    config = dataclasses.replace(CONFIG, mask_outputs=2, classes=True, batch=4, validate=str(held_out), loop=loop)
    result = finetune(str(data), str(folder / "base"), folder / "of_classes", config)
    before, *_, after = read_lines(folder / "of_classes" / VALIDATION)
    assert after["class"] - before["class"] > MARGIN, (before, after)
    said = " ".join(capsys.readouterr().err.split())
    assert "of classes; still improving" in said
    assert 'Curves are left out, since matplotlib is missing: pip install "sam-jax[report]"' in said
    assert not (folder / "of_classes" / "curves.png").exists()
    assert (folder / "of_classes" / "report.html").exists()
    assert sam_jax.load(result.model)[0].config.multimask_outputs == 2
    evaluate_command(str(held_out), str(result.model), folder / "measured", protocol="classes")
    report = json.loads((folder / "measured" / "evaluation.json").read_text())
    assert report["present"] == [6, 4]
    assert report["mean"] == pytest.approx(np.mean(report["iou"]))
    assert report["mean"] == pytest.approx(max(before["class"], after["class"]), abs=0.02)
    (row,) = [line for line in capsys.readouterr().out.splitlines() if "mean" in line]
    assert f"{report['mean']:.3f}" in row


def test_classes_need_label_images_and_masks(folder: Path) -> None:
    with pytest.raises(ValueError, match="classes are the values of label images, and scenes have none"):
        finetune("scenes", str(folder / "base"), folder / "no", FinetuneConfig(classes=True))
    with pytest.raises(ValueError, match="Classes are the values of label images, in labels/"):
        finetune(str(folder / "data"), str(folder / "base"), folder / "no", FinetuneConfig(classes=True))
    with pytest.raises(ValueError, match="split_components makes objects"):
        FinetuneConfig(classes=True, split_components=True)
    assert not (folder / "no").exists()


def test_what_cannot_be_held_out(folder: Path) -> None:
    with pytest.raises(ValueError, match="split must be a share from 0 to below 1, and left out beside validate"):
        FinetuneConfig(split=0.2, validate="x")
    with pytest.raises(ValueError, match="split is for images, not for scenes"):
        finetune("scenes", str(folder / "base"), folder / "no", FinetuneConfig(split=0.2))
    assert not (folder / "no").exists()


def test_embeddings_can_be_those_of_a_store(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_module, "decode_batch", mean_of_all)
    monkeypatch.setattr(finetune_module, "_draw", lambda *of_run: None)
    data, base, store = folder / "held_out" / "coco.json", folder / "base", folder / "store"
    embed_images.run([data.parent / "images" / f"{i}.png" for i in range(5)], str(base), store, Console(quiet=True))
    before = {name: EmbeddingStore.open(store).read(name).embedding for name in EmbeddingStore.open(store).names()}
    config = dataclasses.replace(CONFIG, batch=1, objects=1, loop=LoopConfig(1, 1, 1), embeddings=str(store))
    finetune(str(data), str(base), folder / "stored", config)
    after = EmbeddingStore.open(store)
    assert after.names() == sorted([*before, "5.png"])
    assert after.dtype == "bfloat16"
    for name, embedding in before.items():
        np.testing.assert_array_equal(after.read(name).embedding, embedding)
    assert not (folder / "stored" / "embeddings").exists()

    with pytest.raises(ValueError, match="augment must be left out where the encoder does not train"):
        finetune(str(data), str(base), folder / "no", dataclasses.replace(config, augment=Augmentation(flips=True)))
    with pytest.raises(ValueError, match="embeddings must be left out where the encoder trains"):
        finetune(str(data), str(base), folder / "no", dataclasses.replace(config, train="everything"))
    with pytest.raises(ValueError, match="is no store of embeddings"):
        finetune(str(data), str(base), folder / "no", dataclasses.replace(config, embeddings=str(folder / "nothing")))
    with pytest.raises(ValueError, match="has embeddings of another provenance"):
        finetune(str(data), str(folder / "stored" / "model"), folder / "no", config)
    assert not (folder / "no").exists()


def test_what_trains_must_be_there(folder: Path) -> None:
    config = dataclasses.replace(CONFIG, train="hq")
    with pytest.raises(ValueError, match="nothing in this decoder that train='hq' trains"):
        finetune(str(folder / "held_out" / "coco.json"), str(folder / "base"), folder / "none", config)
    assert not (folder / "none").exists()


@pytest.mark.slow
def test_sam_hqs_head_is_trained_alone_on_the_maps_of_its_encoder(folder: Path, plain: None) -> None:
    model = Sam(dataclasses.replace(MODEL.config, hq=True, early_width=ENCODER.config.width))
    encoder = ImageEncoder(dataclasses.replace(ENCODER.config, early_feature=True))
    variables = jax.jit(encoder.init)(jax.random.key(0), jnp.zeros((96, 96, 3)))
    sam_jax.save(folder / "hq", model, random_variables(model), encoder, variables)
    config = dataclasses.replace(CONFIG, train="hq", batch=1, objects=2, loop=LoopConfig(2, 1, 2))
    result = finetune(str(folder / "held_out" / "coco.json"), str(folder / "hq"), folder / "hq_run", config)
    assert changed(folder / "hq", result.model) == {path for path in flat(folder / "hq") if "/hq/" in path}
    assert EmbeddingStore.open(folder / "hq_run" / "embeddings").shapes.keys() == {"embedding", "early"}
    with pytest.raises(ValueError, match="classes need a decoder that returns several masks of a prompt"):
        finetune("no", str(folder / "hq"), folder / "no", dataclasses.replace(config, classes=True))


OTHERS = {
    "sam_hq": (
        {"hq": True, "early_width": ENCODER.config.width},
        ImageEncoder(dataclasses.replace(ENCODER.config, early_feature=True)),
    ),
    "sam2": (FAMILIES["sam2"], Hiera(SMALL_HIERA)),
    "hq_sam2": (FAMILIES["hq_sam2"], Hiera(SMALL_HIERA)),
    "efficient_sam": (
        FAMILIES["efficient_sam"],
        ImageEncoder(dataclasses.replace(ENCODER.config, preprocessing="efficient_sam")),
    ),
    "mobile_sam": ({}, TinyViT(dataclasses.replace(SMALL_TINY_VIT, out_width=32, image_size=SIZE))),
    "efficientvit_sam": (
        {},
        EfficientViT(
            dataclasses.replace(
                SMALL_EFFICIENT_VIT, out_width=32, grid_size=(6, 6), image_size=(64, 64), prompt_frame=SIZE
            )
        ),
    ),
}


@functools.cache
def of_family(folder: Path, family: str) -> tuple[Path, Sam]:
    """A checkpoint with its image encoder, and its decoder."""
    settings, encoder = OTHERS[family]
    model = Sam(dataclasses.replace(MODEL.config, **settings))
    variables = encoder_variables(encoder, jnp.zeros((*encoder.config.image_size, 3)))
    sam_jax.save(folder / family, model, random_variables(model), encoder, variables)
    return folder / family, model


@pytest.mark.slow
@pytest.mark.parametrize("family", ["sam_hq", "sam2", "efficient_sam"])
def test_tiles_and_held_out_images_with_other_families(
    family: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is measured on held-out tiles takes all maps of them, and is written down."""
    base, model = of_family(folder, family)
    monkeypatch.setattr(step_module, "decode_batch", mean_of_all)
    monkeypatch.setattr(evaluate_module, "predict_masks", functools.partial(sam_jax.predict_masks, path="plain"))
    monkeypatch.setattr(finetune_module, "_draw", lambda *of_run: None)
    config = dataclasses.replace(CONFIG, batch=1, objects=1, loop=LoopConfig(1, 1, 1), tile=64, split=0.5)
    finetune(str(folder / "held_out" / "coco.json"), str(base), folder / f"{family}_tiles", config)
    looks = read_lines(folder / f"{family}_tiles" / VALIDATION)
    assert [look["step"] for look in looks] == [0, 1]
    assert all(0 <= look[name] <= 1 for look in looks for name in ("click", "box"))
    store = EmbeddingStore.open(folder / f"{family}_tiles" / "embeddings")
    assert store.shapes.keys() == map_shapes(model.config).keys()
    assert len(store.names()) > 6


@pytest.mark.slow
def test_low_rank_additions_are_merged_into_the_attention_projections(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step_module, "decode_batch", mean_of_all)
    base = flat(folder / "base")
    config = dataclasses.replace(CONFIG, train="lora", lora_rank=2, batch=1, objects=1, loop=LoopConfig(2, 1, 2))
    result = finetune(str(folder / "data" / "coco.json"), str(folder / "base"), folder / "lora", config)
    moved = changed(folder / "base", result.model)
    assert len(moved) == 16 + 2  # query, key, value and out of four attentions; qkv and out of the encoder's block
    for path in moved:
        difference = flat(result.model)[path] - base[path]
        assert np.linalg.matrix_rank(difference, tol=1e-6) <= 2
    assert result.frozen == sum(x.size for path, x in base.items() if "/constants/" not in f"/{path}")
    tensors = sam_jax.convert.to_torch(*sam_jax.load(result.model))
    assert tensors.keys() == sam_jax.convert.to_torch(*sam_jax.load(folder / "base")).keys()


@pytest.mark.slow
@pytest.mark.parametrize("family", ["sam_hq", "hq_sam2"])
def test_low_rank_additions_in_bfloat16_with_activations_computed_twice(
    family: str, folder: Path, plain: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finetune_module, "_draw", lambda *of_run: None)
    base, _ = of_family(folder, family)
    config = dataclasses.replace(
        CONFIG, train="lora", dtype="bfloat16", remat=True, batch=1, objects=1, loop=LoopConfig(2, 1, 2)
    )
    result = finetune(str(folder / "held_out" / "coco.json"), str(base), folder / f"{family}_lora", config)
    moved, after = changed(base, result.model), flat(result.model)
    attentions = [path for path in after if re.fullmatch(PROJECTIONS, path)]
    assert {path.split("/")[0] for path in attentions} == {"params", "encoder"}
    assert moved == set(attentions)
    assert {after[path].dtype for path in moved} == {np.dtype(np.float32)}
