"""Tiles: what is in them, what a tile's edge cuts, and that both kinds of data have the same."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image
from pycocotools import mask as coco

from sam_jax.images.windows import windows_of
from sam_jax.train.data.sources import open_source, split
from sam_jax.train.data.tiles import objects_of_tiles

SIZE = (100, 160)
IMAGE = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8)
RNG = np.random.default_rng(1)
LABEL = np.zeros(SIZE, np.int32)
for number in range(1, 40):
    top, left = RNG.integers(0, SIZE[0] - 8), RNG.integers(0, SIZE[1] - 8)
    LABEL[top : top + RNG.integers(2, 8), left : left + RNG.integers(2, 8)] = number


def write(folder: Path, kind: str) -> Path:
    """One image with its objects, as a label or as COCO's JSON."""
    (folder / "images").mkdir()
    Image.fromarray(IMAGE).save(folder / "images" / "a.png")
    if kind == "label":
        (folder / "labels").mkdir()
        tifffile.imwrite(folder / "labels" / "a.tif", LABEL)
        return folder
    annotations = []
    for number in np.unique(LABEL)[1:].tolist():
        encoded: Any = coco.encode(np.asfortranarray(number == LABEL, np.uint8))
        outline = {"size": list(SIZE), "counts": encoded["counts"].decode()}
        annotations.append({"id": number, "image_id": 1, "segmentation": outline})
    content = {"images": [{"id": 1, "file_name": "a.png"}], "annotations": annotations}
    (folder / "annotations.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize("kind", ["label", "coco"])
def test_tiles_have_the_pixels_and_objects_of_their_window(tmp_path: Path, kind: str) -> None:
    source = open_source(write(tmp_path, kind), tile=64)
    windows = windows_of(SIZE, 64)
    assert len(source) == len(windows) == 6
    for i, window in enumerate(windows):
        tile = source[i]
        np.testing.assert_array_equal(tile.image, IMAGE[window.pixels])
        assert tile.name == f"a_{window.x0}_{window.y0}.png"
        part = LABEL[window.pixels]
        kept = [n for n in np.unique(part)[1:] if (part == n).sum() >= 25 or (part == n).sum() == (n == LABEL).sum()]
        np.testing.assert_array_equal(tile.masks, [part == n for n in kept])
    assert source.file(3).name == "a.png"


@pytest.mark.parametrize("kind", ["label", "coco"])
def test_an_object_can_be_in_one_tile_alone(tmp_path: Path, kind: str) -> None:
    source = open_source(write(tmp_path, kind), tile=64, once=True)
    areas = sorted(int(mask.sum()) for i in range(len(source)) for mask in source[i].masks)
    assert areas == sorted(np.unique(LABEL, return_counts=True)[1][1:].tolist())  # each is whole in a tile


def test_blobs_are_split_in_the_image_before_it_is_cut(tmp_path: Path) -> None:
    folder = write(tmp_path, "label")
    (folder / "labels" / "a.tif").unlink()
    (folder / "labels" / "a").mkdir()
    for i, values in enumerate((LABEL * (LABEL % 2), LABEL * (LABEL % 2 == 0))):
        tifffile.imwrite(folder / "labels" / "a" / f"{i}.tif", (values > 0).astype(np.uint8))
    assert len(open_source(folder)[0].masks) == 2
    whole = open_source(folder, split_components=True)
    tiles = open_source(folder, split_components=True, tile=64, once=True)
    assert sum(len(tiles[i].masks) for i in range(len(tiles))) == len(whole[0].masks) > 30


def test_a_large_label_has_room_by_tiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path, "label")
    monkeypatch.setattr("sam_jax.train.data.examples.MOST_BYTES", 20 * 64 * 64)
    with pytest.raises(ValueError, match="would take more than"):
        open_source(folder)
    assert len(open_source(folder, tile=64)) == 6


def test_tiles_of_an_image_are_on_one_side_of_a_split(tmp_path: Path) -> None:
    folder = write(tmp_path, "label")
    for name in "bc":
        Image.fromarray(IMAGE).save(folder / "images" / f"{name}.png")
        tifffile.imwrite(folder / "labels" / f"{name}.tif", LABEL)
    train, held_out = split(open_source(folder, tile=64), 0.3, seed=0)
    assert (len(train), len(held_out)) == (12, 6)
    assert len({held_out[i].name[0] for i in range(6)}) == 1


def test_what_a_tile_leaves_out() -> None:
    counts = np.array([[10, 30, 24, 0], [0, 10, 25, 5]])
    areas = np.array([10, 40, 49, 5])
    assert objects_of_tiles(counts, areas) == [[0, 1], [2, 3]]
    assert objects_of_tiles(counts, areas, once=True) == [[0, 1], [2, 3]]
    assert objects_of_tiles(counts[:, 1:2], areas[1:2], once=True) == [[0], []]
