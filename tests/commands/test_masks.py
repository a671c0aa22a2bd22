"""`sam-jax masks`: what it writes, that it goes on where it stopped, and what it says of bad images."""

import dataclasses
import json
import os
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import random_encoder
from PIL import Image
from pycocotools.coco import COCO
from random_model import family_model, random_variables
from rich.console import Console
from scipy import ndimage

import sam_jax
from sam_jax import AutomaticConfig, Predictor, label_map
from sam_jax.commands import cli
from sam_jax.commands import masks as command
from sam_jax.commands.demo import SMALL
from sam_jax.encoders.config import VIT_TINY
from sam_jax.encoders.vit import ImageEncoder
from sam_jax.train.data.scenes import draw_scene

SIZE = (60, 90)
SETTINGS = ("--points-per-side", "4", "--pred-iou-thresh", "0.3", "--stability-score-thresh", "0.3")
SAME = {"points_per_side": 4, "pred_iou_thresh": 0.3, "stability_score_thresh": 0.3}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    for name, seed in (("a", 1), ("b", 2)):
        Image.fromarray(draw_scene(seed, SIZE).image).save(tmp_path / "images" / f"{name}.png")
    return tmp_path


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Run the command in this process; return the exit code and what it said."""

    def run(*arguments: object) -> tuple[int, str]:
        given = ("masks", *arguments, "--checkpoint", SMALL, *SETTINGS)
        monkeypatch.setattr("sys.argv", ["sam-jax", *map(str, given)])
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code, message = (1, end.code) if isinstance(end.code, str) else (end.code or 0, "")
            print(message)
        out, error = capsys.readouterr()
        return code, " ".join((out + error).split())

    return run


def records_of(name: str, folder: Path) -> list[dict]:
    return Predictor.load(SMALL).generate(folder / "images" / f"{name}.png", **SAME)


def test_coco_files_are_read_back(run, folder: Path) -> None:
    code, said = run(folder / "images", "-o", folder / "out")
    want = records_of("a", folder)
    assert (code, len(want) > 3) == (0, True)
    assert "for 2 of 2 images" in said
    read = COCO(str(folder / "out" / "a.json"))
    for annotation, record in zip(read.loadAnns(read.getAnnIds()), want, strict=True):
        np.testing.assert_array_equal(read.annToMask(annotation), record["segmentation"])
        assert annotation["area"] == record["area"]
        x, y, width, height = annotation["bbox"]
        assert record["segmentation"][y : y + height, x : x + width].sum() == record["area"]
        assert annotation["score"] == pytest.approx(record["predicted_iou"])


def test_polygons_are_read_back_with_holes_filled(run, folder: Path) -> None:
    assert run(folder / "images" / "a.png", "-o", folder / "out", "--kind", "polygons")[0] == 0
    read = COCO(str(folder / "out" / "a.json"))
    for annotation, record in zip(read.loadAnns(read.getAnnIds()), records_of("a", folder), strict=True):
        mask, polygons = record["segmentation"], read.annToMask(annotation).astype(bool)
        np.testing.assert_array_equal(polygons & mask, mask)
        assert not (polygons & ~ndimage.binary_fill_holes(mask)).any()


def test_other_kinds(run, folder: Path) -> None:
    records = records_of("a", folder)
    for kind in ("labels", "picture", "packed"):
        assert run(folder / "images" / "a.png", "-o", folder / kind, "--kind", kind)[0] == 0
    labels = np.asarray(Image.open(folder / "labels" / "a.png"))
    np.testing.assert_array_equal(labels, label_map(records, SIZE))
    packed = np.load(folder / "packed" / "a.npz")
    masks = np.unpackbits(packed["masks"], axis=-1, count=SIZE[1]).astype(bool)
    np.testing.assert_array_equal(masks, [record["segmentation"] for record in records])
    np.testing.assert_allclose(packed["predicted_iou"], [record["predicted_iou"] for record in records])
    picture, image = (np.asarray(Image.open(folder / place / "a.png")) for place in ("picture", "images"))
    np.testing.assert_array_equal((picture != image).any(-1) & (labels == 0), False)
    assert (picture != image).any(-1)[labels > 0].mean() > 0.99


def test_the_same_command_does_the_rest(run, folder: Path) -> None:
    first, second = (folder / "out" / f"{name}.json" for name in "ab")
    run(folder / "images", "-o", folder / "out")
    before = first.stat().st_mtime_ns
    second.unlink()
    code, said = run(folder / "images", "-o", folder / "out")
    assert (code, "for 1 of 2 images" in said, "1 were there" in said) == (0, True, True)
    assert first.stat().st_mtime_ns == before
    assert second.exists()
    os.utime(folder / "images" / "a.png", (2e9, 2e9))  # changed since
    assert "for 1 of 2 images" in run(folder / "images", "-o", folder / "out")[1]


def test_other_settings_want_another_folder(run, folder: Path) -> None:
    run(folder / "images" / "a.png", "-o", folder / "out")
    code, said = run(folder / "images", "-o", folder / "out", "--box-nms-thresh", "0.5")
    assert code == 1
    assert "was made with other settings (box_nms_thresh 0.7, now 0.5): name another folder." in said
    assert json.loads((folder / "out" / "settings.json").read_text())["points_per_side"] == 4


def test_a_bad_image_is_named_at_the_end(run, folder: Path) -> None:
    (folder / "images" / "aa.png").write_bytes(b"no image")
    code, said = run(folder / "images" / "*.png", "-o", folder / "out")
    assert code == 1
    assert "1 of 3 images were not read." in said
    assert "aa.png cannot be read as an image" in said
    assert sorted(path.name for path in (folder / "out").iterdir()) == ["a.json", "b.json", "settings.json"]


def test_a_pattern_that_no_image_has(run, folder: Path) -> None:
    (folder / "images" / "notes.txt").write_text("no image")
    code, said = run(folder / "images" / "*.txt", "-o", folder / "out")
    assert (code, "There is no file or folder" in said) == (1, True)


def test_each_mask_is_asked_for_again(run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(Predictor, "generate", lambda *_, use_m2m, **__: asked.append(use_m2m) or [])
    assert run(folder / "images" / "a.png", "-o", folder / "out", "--use-m2m")[0] == 0
    assert run(folder / "images" / "a.png", "-o", folder / "plain")[0] == 0
    assert asked == [True, False]


def test_a_family_without_mask_prompts_is_refused_at_once(folder: Path) -> None:
    model = family_model("efficient_sam")
    config = dataclasses.replace(VIT_TINY, depth=1, global_blocks=(0,), preprocessing="efficient_sam")
    encoder = ImageEncoder(config)
    of_encoder = random_encoder.random_variables(encoder, jnp.zeros((128, 128, 3)))
    sam_jax.save(folder / "it", model, random_variables(model), encoder, of_encoder)
    settings = AutomaticConfig(use_m2m=True)
    with pytest.raises(ValueError, match="use_m2m hands masks back as prompts, and EfficientSAM takes no mask prompts"):
        command.run([folder / "images"], str(folder / "it"), folder / "out", Console(quiet=True), settings)
    assert not (folder / "out").exists()


def test_settings_that_mean_nothing_write_nothing(run, folder: Path) -> None:
    code, said = run(folder / "images", "-o", folder / "out", "--crop-n-layers", "9")
    assert (code, "crop_n_layers must be a whole number of at least 0 and at most 4, got 9" in said) == (1, True)
    assert not (folder / "out").exists()


def test_two_images_of_one_name(run, folder: Path) -> None:
    Image.fromarray(draw_scene(3, SIZE).image).save(folder / "images" / "a.jpg")
    code, said = run(folder / "images", "-o", folder / "out")
    assert (code, "Several of the images would be written to" in said) == (1, True)
