"""Counting in tiles against counting in full-size masks."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sam_jax import resize_masks
from sam_jax.automatic.statistics import count_pixels
from sam_jax.config import Postprocessing
from sam_jax.images.resize import input_size_for

SIZES = [(200, 301), (61, 1500), (1201, 33), (1, 1), (3, 700), (128, 128), (640, 480), (1100, 260)]


def blobs(number: int, side: int, seed: int) -> np.ndarray:
    """Logits with large and small regions; every second mask lies in a part of the image alone."""
    rng = np.random.default_rng(seed)
    logits = np.array(jax.image.resize(rng.normal(size=(number, 7, 7)) * 4, (number, side, side), "cubic"), np.float32)
    logits[1::2, : side // 3] = -9
    logits[1::2, :, : side // 2] = -9
    return logits


def expected(
    logits: np.ndarray, size: tuple[int, int], frame: tuple[int, int], offset: float, rule: Postprocessing = "sam"
) -> dict[str, Any]:
    full = np.asarray(
        resize_masks(
            logits,
            input_size=input_size_for(size, frame),
            original_size=size,
            image_size=frame,
            postprocessing=rule,
        )
    )
    counts = {name: (full > at).sum((1, 2)) for name, at in (("outer", -offset), ("area", 0), ("inner", offset))}
    boxes = np.zeros((len(full), 4), int)
    for box, mask in zip(boxes, full > 0, strict=True):
        y, x = np.nonzero(mask)
        if len(y):
            box[:] = x.min(), y.min(), x.max(), y.max()
    return counts | {"boxes": boxes}


@pytest.mark.parametrize(
    ("side", "frame", "rule"),
    [(32, (128, 128), "sam"), (256, (1024, 1024), "sam"), (32, (128, 128), "efficient_sam")],
)
def test_what_full_size_masks_give_by_one_program_for_all_sizes(
    side: int, frame: tuple[int, int], rule: Postprocessing
) -> None:
    count = jax.jit(functools.partial(count_pixels, image_size=frame, postprocessing=rule))
    for seed, size in enumerate(SIZES):
        logits = blobs(4, side, seed)
        offset = float(seed % 3)
        sizes = {"input_size": input_size_for(size, frame), "original_size": size}
        counted = count(logits, offset=offset, **sizes)
        for name, want in expected(logits, size, frame, offset, rule).items():
            difference = np.abs(np.asarray(getattr(counted, name)) - want).max()
            assert difference <= (1 if name != "boxes" else 0), (name, size)  # a pixel on the threshold
    assert count._cache_size() == 1


def test_a_cubic_pixel_is_higher_than_all_that_it_reads() -> None:
    """Of a low ridge between valleys: nowhere is a logit above 0, and yet there are pixels in the mask."""
    logits = np.full((1, 16, 16), -100.0, np.float32)
    logits[:, :, 7:9] = -1
    sizes: Any = {"input_size": (64, 64), "original_size": (40, 48), "image_size": (64, 64), "offset": 0.7}
    counted = count_pixels(jnp.asarray(logits), postprocessing="efficient_sam", **sizes)
    want = expected(logits, (40, 48), (64, 64), 0.7, "efficient_sam")
    assert want["area"][0] > 0
    for name, value in want.items():
        np.testing.assert_array_equal(getattr(counted, name), value)
    assert count_pixels(jnp.asarray(logits), **sizes).area == 0


def test_masks_without_a_pixel_and_full_ones() -> None:
    logits = jnp.stack([jnp.full((32, 32), -3.0), jnp.full((32, 32), -0.5), jnp.full((32, 32), 3.0)])
    counted = count_pixels(logits, input_size=(128, 96), original_size=(40, 30), image_size=(128, 128), offset=1.0)
    assert counted.outer.tolist() == [0, 1200, 1200]
    assert counted.area.tolist() == [0, 0, 1200]
    assert counted.inner.tolist() == [0, 0, 1200]
    assert counted.boxes.tolist() == [[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 29, 39]]


def test_more_rows_than_a_number_has_bits_for() -> None:
    """Counts and tiles share a number, for 512 rows; a mask may be taller."""
    logits = blobs(2, 32, 0)
    counted = count_pixels(
        jnp.asarray(logits), input_size=(128, 1), original_size=(3001, 20), image_size=(128, 128), offset=1.0
    )
    want = expected(logits, (3001, 20), (128, 128), 1.0)
    np.testing.assert_array_equal(counted.boxes, want["boxes"])
    np.testing.assert_allclose(counted.area, want["area"], atol=1)
