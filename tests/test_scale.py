"""Masks by a fleet: the actor as a function of batches, and two of a Ray cluster, one of them killed while it works."""

import importlib.util
import json
import os
import re
import secrets
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sam_jax import Predictor
from sam_jax.commands.demo import SMALL
from sam_jax.files import conversion
from sam_jax.scale import MaskActor
from sam_jax.train.data.scenes import draw_scene

SETTINGS = {"points_per_side": 3, "pred_iou_thresh": 0.3, "stability_score_thresh": 0.3}
SIZES = [(40, 60), (50, 30), (40, 61)]
PATIENCE = 240  # seconds, for a machine that is busy with something else


@pytest.fixture(scope="module")
def actor() -> MaskActor:
    return MaskActor(SMALL, **SETTINGS)


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    return [draw_scene(seed, size).image for seed, size in enumerate(SIZES)]


@pytest.fixture(scope="module")
def expected(images: list[np.ndarray]) -> list[list[dict]]:
    predictor = Predictor.load(SMALL)
    return [predictor.generate(image, **SETTINGS, output_mode="coco_rle") for image in images]


def ragged(values: list) -> np.ndarray:
    """Objects of any shapes, as Ray Data gives them."""
    column = np.empty(len(values), object)
    column[:] = values
    return column


def test_ragged_images_and_images_of_one_size(actor, images, expected) -> None:
    out = actor({"image": ragged(images), "path": np.array(["a", "b", "c"]), "id": np.arange(3)})
    assert set(out) == {"path", "id", "masks", "error"}
    assert [json.loads(masks) for masks in out["masks"]] == expected
    assert (out["error"].tolist(), out["id"].tolist()) == (3 * [""], [0, 1, 2])
    assert all(expected)
    assert json.loads(actor({"image": np.stack(images[:1])})["masks"][0]) == expected[0]


@pytest.mark.usefixtures("untyped")
def test_bad_images_are_rows_with_what_is_wrong(actor, images, expected) -> None:
    bad = [images[0][..., 0], images[0].astype(np.float32), np.zeros((0, 5, 3), np.uint8), None]
    out = actor({"image": ragged([*bad, images[1]])})
    assert all(error.startswith("The image must be RGB, uint8 [height, width, 3], got") for error in out["error"][:4])
    assert out["masks"][:4].tolist() == 4 * ["[]"]
    assert (out["error"][4], json.loads(out["masks"][4])) == ("", expected[1])


def test_files_are_read_where_there_are_no_pixels(actor, images, expected, tmp_path: Path) -> None:
    Image.fromarray(images[0]).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:100])
    out = actor({"path": np.array([str(tmp_path / name) for name in ("a.png", "b.png", "c.png")])})
    assert (out["error"][0], json.loads(out["masks"][0])) == ("", expected[0])
    for name, error in zip("bc", out["error"][1:], strict=True):
        assert f"{name}.png cannot be read as an image" in error


def test_what_no_batch_can_mean_ends_the_work(actor) -> None:
    with pytest.raises(ValueError, match="must have a column image or path, got name"):
        actor({"name": np.array(["a"])})
    with pytest.raises(ValueError, match="points_per_side must be a whole number"):
        MaskActor(SMALL, points_per_side=0)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")
def test_a_killed_actor_loses_nothing_and_does_nothing_twice(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for seed in range(8):
        Image.fromarray(draw_scene(seed, (40, 60 + seed)).image).save(tmp_path / "images" / f"{seed}.png")
    (tmp_path / "photos").mkdir()
    shutil.copy(tmp_path / "images" / "0.png", tmp_path / "photos" / "good.png")
    (tmp_path / "photos" / "bad.png").write_bytes(b"no image")
    conversion.run(str(SMALL), tmp_path / "sam_jax_demo" / "small", encoder=True)
    # Ray would write a token to the user's folder, and tell its makers that it is used.
    settings = {"RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_USAGE_STATS_ENABLED": "0"}
    settings |= {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    environment = os.environ | settings | {"JAX_PLATFORMS": "cpu"}
    command = [sys.executable, Path(__file__).with_name("scale_worker.py"), tmp_path]
    with (tmp_path / "out").open("w") as out, (tmp_path / "log").open("w") as log:
        # Ray's workers import from the folder that the driver runs in: the checkout would hide the installed package.
        run = {"cwd": tmp_path, "env": environment, "stdout": out, "stderr": log}
        code = subprocess.run(command, **run, timeout=PATIENCE).returncode
    assert code == 0, (tmp_path / "log").read_text()
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert sorted(Path(row["path"]).name for row in rows) == [f"{seed}.png" for seed in range(8)]
    assert all(json.loads(row["masks"]) and not row["error"] for row in rows)
    assert (tmp_path / "killed").exists()
    assert len({row["process"] for row in rows}) > 1
    said = (tmp_path / "out").read_text()
    assert re.search(r"^\S+photos/good\.png [1-9]\d* masks$", said, re.M), said
    assert re.search(r"^\S+photos/bad\.png \S+photos/bad\.png cannot be read as an image", said, re.M), said
