"""A real microscopy image and its labels: the pair that the stardist wheel has, as `benchmarks/nuclei.py` takes it."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
import tifffile
from pages import ROOT

from sam_jax.images.read import Reading
from sam_jax.train.data.labels import LabelFolder
from sam_jax.train.data.looks import flat_note
from sam_jax.train.data.sources import open_source

WHEELS = sorted((ROOT / "wheels").glob("stardist-*.whl"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not WHEELS:
        pytest.skip("There is no stardist wheel: pip download stardist --no-deps -d wheels")
    folder = tmp_path_factory.mktemp("nuclei")
    with zipfile.ZipFile(WHEELS[-1]) as content:
        for place, name in (("images", "img2d"), ("masks", "mask2d")):
            (folder / place).mkdir()
            (folder / place / "nuclei.tif").write_bytes(content.read(f"stardist/data/images/{name}.tif"))
    return folder


def test_the_pair_is_read_as_it_is(folder: Path) -> None:
    source = open_source(folder)
    assert isinstance(source, LabelFolder)
    label = tifffile.imread(folder / "masks" / "nuclei.tif")
    example = source[0]
    assert example.original_size == label.shape
    np.testing.assert_array_equal(example.masks, [label == value for value in np.unique(label)[1:]])
    assert (example.image.min(), example.image.max()) == (0, 255)
    assert any("more than 8 bits" in note for note in source.notes)
    assert not flat_note(source)


def test_the_file_s_range_would_be_black_and_this_is_told(folder: Path) -> None:
    (note,) = flat_note(open_source(folder, reading=Reading(range="file")))
    assert "nuclei.tif" in note
    assert "looks black or flat" in note


def test_tiles_have_every_nucleus_once(folder: Path) -> None:
    whole, tiles = open_source(folder)[0], open_source(folder, tile=128, once=True)
    assert len(tiles) > 9
    assert sum(len(tiles[i].masks) for i in range(len(tiles))) == len(whole.masks) == 125
