"""What images are like: black ones are told, whatever the reason."""

import re
from pathlib import Path

import numpy as np
import pytest
import tifffile
from small_run import MODEL

from sam_jax.images.read import Reading
from sam_jax.train.data.looks import flat_note, look_at
from sam_jax.train.data.sources import open_source

SIZE = (60, 80)


def write(folder: Path, images: list[np.ndarray]) -> Path:
    """A folder with images, each with a large and a tiny object."""
    label = np.zeros(SIZE, np.uint16)
    label[10:40, 10:40], label[50, 70] = 1, 7
    for i, image in enumerate(images):
        tifffile.imwrite(folder / f"{i}.tif", image)
        tifffile.imwrite(folder / f"{i}_mask.tif", label)
    return folder


def noise(high: int, dtype: type = np.uint16) -> np.ndarray:
    return np.random.default_rng(0).integers(0, high, SIZE).astype(dtype)


@pytest.mark.parametrize(
    ("image", "rule", "message"),
    [
        (noise(4096), "file", r"such as 1\.tif: .* from 0 to 16 of 255.*--range image or --range channel stretches"),
        (noise(20, np.uint8), "auto", r"from 0 to 19 of 255.*--range image"),
        (
            np.where(np.arange(4800).reshape(SIZE) == 9, 64_000, noise(900)).astype(np.uint16),
            "image",
            r"A few extreme pixels.*--range channel",
        ),
        (np.full(SIZE, 7, np.uint16), "channel", r"from 0 to 0 of 255.*clip them in the files"),
    ],
)
def test_a_black_image_is_told(tmp_path: Path, image: np.ndarray, rule: str, message: str) -> None:
    good = noise(256 if image.dtype == np.uint8 else 65_536, image.dtype.type)
    source = open_source(write(tmp_path, [good, image]), reading=Reading(rule))
    (note,) = flat_note(source)
    assert note.startswith("Warning: 1 of 2 images use a small part of their range")
    assert re.search(message, note)


def test_images_that_are_stretched_are_not_told(tmp_path: Path) -> None:
    assert flat_note(open_source(write(tmp_path, [noise(4096), noise(70)]))) == ()


def test_a_look_says_what_is_in_the_file_and_what_is_seen(tmp_path: Path) -> None:
    look = look_at(open_source(write(tmp_path, [noise(4096)]), reading=Reading("file")), 0, MODEL.config)
    assert (look.name, look.size, look.kind, look.is_flat) == ("0.tif", SIZE, "uint16", True)
    assert look.values[0] < 10
    assert 4000 < look.values[1] < 4096
    assert look.areas.tolist() == [900, 1]
    assert look.lost == 1  # the single pixel is less than half a low-res pixel
