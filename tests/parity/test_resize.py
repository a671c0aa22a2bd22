"""Masks, sizes and coordinates of the original image against the official code."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from segment_anything.modeling import Sam
from segment_anything.utils.transforms import ResizeLongestSide

from sam_jax.images.full_size import resize_masks
from sam_jax.images.resize import input_size_for, to_input_frame

TOLERANCE = 2e-6
"""As a share of the root mean square of the logits in float64."""
TRACED_TOLERANCE = 2e-4
"""Coordinates are float32 here, and up to 2,000 pixels; the official code in float32 is no closer."""

SIZES = {
    "square": (500, 500),
    "wide": (375, 1242),
    "tall": (900, 301),
    "same as the frame": (1024, 1024),
    "larger": (1300, 1999),
    "small": (64, 48),
    "tiny": (2, 3),
    "one pixel": (1, 1),
    "one row": (1, 900),
}


def official_masks(logits: np.ndarray, input_size: tuple, original_size: tuple) -> np.ndarray:
    """`Sam.postprocess_masks` in float64."""
    sam = types.SimpleNamespace(image_encoder=types.SimpleNamespace(img_size=4 * logits.shape[-1]))
    masks = torch.tensor(logits, dtype=torch.float64)[None]
    return Sam.postprocess_masks(sam, masks, input_size, original_size)[0].numpy()


@pytest.mark.parametrize("name", SIZES)
def test_masks_at_the_original_size(name, rng, compare):
    original_size = SIZES[name]
    input_size = input_size_for(original_size)
    logits = 5 * rng(2, 256, 256)
    official = official_masks(logits, input_size, original_size)
    ours = resize_masks(jnp.asarray(logits), input_size=input_size, original_size=original_size)
    compare({"masks at the original size": ours}, {"masks at the original size": official}, TOLERANCE)
    decided = np.abs(official) > 1e-5
    np.testing.assert_array_equal((np.asarray(ours) > 0)[decided], (official > 0)[decided])
    assert decided.mean() > 0.999 or official.size < 1000


@pytest.mark.parametrize("name", ["wide", "larger", "small"])
def test_masks_with_a_traced_input_size(name, rng, compare):
    original_size = SIZES[name]
    input_size = input_size_for(original_size)
    logits = 5 * rng(1, 256, 256)
    official = official_masks(logits, input_size, original_size)
    resize = jax.jit(lambda x, size: resize_masks(x, input_size=size, original_size=original_size))
    ours = resize(jnp.asarray(logits), tuple(jnp.asarray(n) for n in input_size))
    compare({"masks, traced input size": ours}, {"masks, traced input size": official}, TRACED_TOLERANCE)


def test_masks_of_a_frame_that_is_not_square(rng, compare):
    """The same two steps, with the frame's own height and width."""
    logits, input_size, original_size = 5 * rng(1, 24, 40), (96, 131), (70, 95)
    masks = torch.tensor(logits, dtype=torch.float64)[None]
    frame = torch.nn.functional.interpolate(masks, (96, 160), mode="bilinear")[..., :131]
    official = torch.nn.functional.interpolate(frame, original_size, mode="bilinear")[0]
    ours = resize_masks(jnp.asarray(logits), input_size=input_size, original_size=original_size)
    compare({"masks at the original size": ours}, {"masks at the original size": official}, TOLERANCE)


def test_input_sizes():
    rng = np.random.default_rng(0)
    sizes = [*SIZES.values(), *rng.integers(1, 5000, (3000, 2)).tolist()]
    official = [ResizeLongestSide.get_preprocess_shape(*size, 1024) for size in sizes]
    at_least_one_pixel = [(max(1, h), max(1, w)) for h, w in official]
    assert [input_size_for(tuple(size)) for size in sizes] == at_least_one_pixel


@pytest.mark.parametrize("original_size", [(500, 500), (375, 1242), (901, 301), (64, 48)])
def test_coordinates(original_size, rng):
    transform, height, width = ResizeLongestSide(1024), *original_size
    points = np.abs(rng(50, 2)) * (width, height)
    boxes = np.abs(rng(50, 4)) * (width, height, width, height)
    sizes = {"original_size": original_size, "input_size": input_size_for(original_size)}
    for given, official in (
        (points, transform.apply_coords(points, original_size)),
        (boxes, transform.apply_boxes(boxes, original_size)),
    ):
        ours = to_input_frame(jnp.asarray(given, jnp.float32), **sizes)
        np.testing.assert_allclose(ours, official, rtol=2e-7)
