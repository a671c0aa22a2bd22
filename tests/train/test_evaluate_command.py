"""The command: from a checkpoint with its encoder to a report."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from random_model import MODEL

from sam_jax import save
from sam_jax.encoder_config import ViTConfig
from sam_jax.image_encoder import ImageEncoder
from sam_jax.train.evaluate_command import limits_for, run

ENCODER = ImageEncoder(
    ViTConfig(width=16, depth=1, heads=2, window_size=4, global_blocks=(0,), out_width=32, image_size=(128, 128))
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, variables: dict[str, Any]) -> Path:
    path = tmp_path_factory.mktemp("evaluate") / "checkpoint"
    save(path, MODEL, variables, ENCODER, ENCODER.init(jax.random.key(0), jnp.zeros((128, 128, 3))))
    return path


def test_drawn_scenes(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("new-shapes", str(checkpoint), tmp_path / "out", images=1, cap=2, objects=2)
    report = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert report["images"] == 1
    assert report["size_limits"] == [55, 492]
    assert report["all"]["objects"] == sum(means["objects"] for means in report["by_size"].values())
    assert f"{report['all']['click_iou']['score']['1']:.3f}" in capsys.readouterr().out
    with pytest.raises(FileExistsError, match="To replace it, add --overwrite"):
        run("scenes", str(checkpoint), tmp_path / "out")


def test_limits_are_cocos_for_an_image_of_coco() -> None:
    assert limits_for((480, 640)) == (1024, 9216)
    assert limits_for((256, 256)) == (218, 1966)


def test_no_data_is_an_error(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="is no data set"):
        run(str(tmp_path / "nothing"), str(checkpoint), tmp_path / "out")
    assert not (tmp_path / "out").exists()
