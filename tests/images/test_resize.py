"""Sizes, coordinates, and masks at the original size, against the two bilinear steps written out in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sam_jax.images.full_size import resize_masks
from sam_jax.images.resize import (
    enlarge,
    input_size_for,
    mask_to_prompt,
    to_input_frame,
    to_original_image,
)


def bilinear(target: int, source: int) -> np.ndarray:
    """The matrix [target, source] of a bilinear resize: half-pixel centres, edges repeated, no antialiasing."""
    place = np.maximum((np.arange(target) + 0.5) * source / target - 0.5, 0)
    near = np.floor(place).astype(int)
    matrix = np.zeros((target, source))
    np.add.at(matrix, (np.arange(target), near), 1 - (place - near))
    np.add.at(matrix, (np.arange(target), np.minimum(near + 1, source - 1)), place - near)
    return matrix


def in_two_steps(logits: np.ndarray, input_size: tuple, original_size: tuple, image_size: tuple) -> np.ndarray:
    """To the frame, crop, to the original size."""
    rows, columns = (
        bilinear(original, size) @ bilinear(frame, low)[:size]
        for low, frame, size, original in zip(logits.shape, image_size, input_size, original_size, strict=True)
    )
    return rows @ logits.astype(np.float64) @ columns.T


@pytest.mark.parametrize(
    ("original_size", "input_size"),
    [
        ((1024, 1024), (1024, 1024)),
        ((500, 500), (1024, 1024)),
        ((375, 1242), (309, 1024)),
        ((900, 301), (1024, 342)),
        ((5, 2048), (3, 1024)),  # 2.5 rows: halves are rounded up, where Python's round gives 2
        ((1, 5000), (1, 1024)),  # a fifth of a row: never nothing
        ((48, 64), (768, 1024)),
    ],
)
def test_input_size(original_size, input_size):
    assert input_size_for(original_size) == input_size


def test_input_size_of_a_frame_that_is_not_square():
    assert input_size_for((100, 100), (96, 160)) == (96, 96)
    assert input_size_for((50, 200), (96, 160)) == (40, 160)


@pytest.mark.parametrize("size", [(0, 5), (5, -1)])
def test_input_size_of_nothing(size):
    with pytest.raises(ValueError, match="original_size must be"):
        input_size_for(size)


def test_coordinates_by_hand():
    """200 x 100 pixels (height, width) become 1024 x 512."""
    sizes = {"original_size": (200, 100), "input_size": (1024, 512)}
    clicks = to_input_frame(jnp.array([[50.0, 50.0], [0.0, 200.0]]), **sizes)
    np.testing.assert_allclose(clicks, [[256, 256], [0, 1024]])
    np.testing.assert_allclose(to_input_frame(np.array([25, 50, 100, 200]), **sizes), [128, 256, 512, 1024])


def test_x_goes_by_the_width_and_y_by_the_height():
    """Rounding makes their scales differ."""
    sizes = {"original_size": (375, 1242), "input_size": (309, 1024)}
    moved = to_input_frame(jnp.array([[1242.0, 375.0]]), **sizes)
    np.testing.assert_allclose(moved, [[1024, 309]], rtol=1e-6)


def test_there_and_back(rng):
    boxes = np.abs(rng(20, 4)) * 300
    sizes = {"original_size": (375, 1242), "input_size": (309, 1024)}
    back = to_original_image(to_input_frame(boxes, **sizes), **sizes)
    np.testing.assert_allclose(back, boxes, rtol=1e-6)


def test_sizes_may_be_traced():
    move = jax.jit(lambda x, old, new: to_input_frame(x, original_size=old, input_size=new))
    moved = move(jnp.array([50.0, 50.0]), (jnp.array(200), jnp.array(100)), (jnp.array(1024), jnp.array(512)))
    np.testing.assert_allclose(moved, [256, 256])


@pytest.mark.parametrize("shape", [(3,), (2, 5), ()])
def test_coordinates_of_the_wrong_shape(shape):
    with pytest.raises(ValueError, match="coordinates must be"):
        to_input_frame(np.zeros(shape), original_size=(9, 9), input_size=(9, 9))


@pytest.mark.parametrize(
    ("image_size", "original_size"),
    [
        ((64, 64), (64, 64)),
        ((64, 64), (50, 131)),
        ((64, 64), (150, 7)),
        ((64, 64), (1, 1)),
        ((40, 64), (61, 40)),
        ((40, 64), (3, 100)),
        ((96, 64), (33, 90)),
        ((16, 24), (100, 149)),
    ],
)
def test_masks_are_the_two_steps_in_one(image_size, original_size, rng):
    input_size = input_size_for(original_size, image_size)
    logits = rng(16, 16)
    expected = in_two_steps(logits, input_size, original_size, image_size)
    result = resize_masks(
        jnp.asarray(logits), input_size=input_size, original_size=original_size, image_size=image_size
    )
    np.testing.assert_allclose(result, expected, atol=2e-6)


@pytest.mark.parametrize("size", [(64, 96), (32, 48), (16, 24)])
def test_enlarged_logits_are_bilinear_between_them(size, rng):
    logits = rng(2, 3, 16, 24)
    expected = [[in_two_steps(one, size, size, size) for one in of_object] for of_object in logits]
    np.testing.assert_allclose(enlarge(logits, size), expected, atol=1e-5)


def test_to_enlarge_is_not_to_shrink():
    with pytest.raises(ValueError, match="must be at least as large as the logits, got 8 for 16"):
        enlarge(jnp.zeros((16, 24)), (8, 24))


def test_axes_in_front_stay(rng):
    logits = jnp.asarray(rng(2, 3, 16, 16))
    sizes = {"input_size": (40, 64), "original_size": (33, 53)}
    result = resize_masks(logits, **sizes)
    assert result.shape == (2, 3, 33, 53)
    np.testing.assert_allclose(result[1, 2], resize_masks(logits[1, 2], **sizes), atol=1e-6)


def test_a_ramp_stays_a_ramp():
    """Away from the edges: pixel x of 100 lies at (x + 0.5) * 64 / 100 in the frame, at a quarter of that here."""
    logits = jnp.broadcast_to(jnp.arange(16.0), (16, 16))
    result = resize_masks(logits, input_size=(64, 64), original_size=(100, 100))
    ramp = (np.arange(100) + 0.5) * 0.16 - 0.5
    np.testing.assert_allclose(result[50, 4:-4], ramp[4:-4], atol=2e-6)


def test_what_lies_in_the_padding_does_not_matter(rng):
    """An input of 40 x 64 pixels ends at row 10 of 16; the last row of it still looks one row further."""
    logits = jnp.asarray(rng(16, 16))
    sizes = {"input_size": (40, 64), "original_size": (25, 40)}
    np.testing.assert_array_equal(resize_masks(logits, **sizes), resize_masks(logits.at[11:].set(1e6), **sizes))


def test_shrinking_skips_pixels():
    """Without antialiasing, a pixel of the result reads 2 x 2 pixels of the frame, so few logits, not an average."""
    sizes = {"input_size": (64, 64), "original_size": (4, 4)}
    weights = jax.jacobian(lambda x: resize_masks(x, **sizes))(jnp.zeros((16, 16)))
    assert (jnp.abs(weights) > 0).sum((-2, -1)).max() <= 9
    np.testing.assert_allclose(weights.sum((-2, -1)), 1, rtol=1e-6)


def test_the_input_size_may_be_traced(rng):
    logits, original_size, input_size = jnp.asarray(rng(64, 64)), (171, 230), (190, 256)
    resize = jax.jit(lambda x, size: resize_masks(x, input_size=size, original_size=original_size))
    result = resize(logits, tuple(map(jnp.array, input_size)))
    expected = resize_masks(logits, input_size=input_size, original_size=original_size)
    np.testing.assert_allclose(result, expected, atol=1e-4)


def test_thresholding_first_is_something_else(rng):
    """Logits are resized, then compared with 0: the other way round moves the edges."""
    logits, sizes = jnp.asarray(rng(16, 16)), {"input_size": (64, 64), "original_size": (64, 64)}
    inside = resize_masks(logits, **sizes) > 0
    too_early = resize_masks((logits > 0).astype(jnp.float32), **sizes) > 0.5
    assert (inside != too_early).mean() > 0.01


def test_logits_without_two_axes(untyped):
    with pytest.raises(ValueError, match="logits must be"):
        resize_masks(jnp.zeros(16), input_size=(4, 4), original_size=(4, 4))


def test_a_frame_smaller_than_the_logits():
    with pytest.raises(ValueError, match="at least as large"):
        resize_masks(jnp.zeros((16, 16)), input_size=(8, 8), original_size=(8, 8), image_size=(8, 8))


def test_a_mask_prompt_by_hand():
    """An image of 4 x 8 pixels fills the upper half of 4 x 4 logits: inside, half inside, outside, padding outside."""
    mask = np.zeros((4, 8), bool)
    mask[:2, :2] = mask[2:, 4:5] = True
    prompt = mask_to_prompt(mask, input_size=(8, 16), mask_size=(4, 4))
    np.testing.assert_allclose(prompt, [[10, -10, -10, -10], [-10, -10, 0, -10], [-10] * 4, [-10] * 4], atol=1e-5)


@pytest.mark.parametrize("original_size", [(300, 200), (90, 160)])
def test_a_mask_survives_its_prompt(original_size):
    height, width = original_size
    y, x = np.mgrid[:height, :width]
    mask = ((y / height - 0.4) ** 2 + (x / width - 0.6) ** 2) < 0.09
    input_size = input_size_for(original_size)
    prompt = mask_to_prompt(mask, input_size=input_size)
    back = np.asarray(resize_masks(prompt, input_size=input_size, original_size=original_size)) > 0
    assert (back & mask).sum() / (back | mask).sum() > 0.98
