"""Masks by tiles: the same as by a program for each size, and no program for a new size."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_predictor import ENCODER, ENCODER_VARIABLES, MODEL, VARIABLES

import sam_jax
from sam_jax.encoders.bicubic import bicubic_matrix
from sam_jax.images import tiles
from sam_jax.images.full_size import resize_masks
from sam_jax.images.resize import input_size_for, resize_on_device
from sam_jax.images.tiles import resize_by_tiles

SIZES = [(1, 1), (64, 128), (65, 129), (511, 513), (700, 90), (90, 700), (130, 1030), (600, 400)]


@pytest.mark.parametrize("original_size", SIZES)
@pytest.mark.parametrize("masks", [1, 3, 6])
def test_tiles_are_what_a_program_for_the_size_makes(original_size: tuple[int, int], masks: int) -> None:
    logits = np.random.default_rng(masks).standard_normal((masks, 32, 32), np.float32)
    sizes: Any = {"input_size": input_size_for(original_size, (128, 128)), "original_size": original_size}
    want = np.asarray(resize_on_device(logits, **sizes))
    np.testing.assert_allclose(resize_by_tiles(logits, **sizes), want, rtol=0, atol=1e-6)
    clear = np.abs(want - 0.1) > 1e-6
    np.testing.assert_array_equal(resize_by_tiles(logits, threshold=0.1, **sizes)[clear], (want > 0.1)[clear])


@pytest.mark.parametrize("original_size", SIZES)
@pytest.mark.parametrize("postprocessing", ["sam2", "efficient_sam"])
def test_the_rules_of_other_families(original_size: tuple[int, int], postprocessing: Any) -> None:
    """One step from the low-res logits, whatever the frame; by tiles, by a program, and by matrices."""
    logits = np.random.default_rng(0).standard_normal((3, 32, 24), np.float32)
    matrix = bicubic_matrix if postprocessing == "efficient_sam" else bilinear_matrix
    rows, columns = (matrix(low, full) for low, full in zip((32, 24), original_size, strict=True))
    want = rows @ logits @ columns.T
    sizes: Any = {"original_size": original_size, "postprocessing": postprocessing}
    for frame in ({"input_size": (128, 96)}, {"input_size": (5, 7), "image_size": (9, 9)}):
        np.testing.assert_allclose(resize_by_tiles(logits, **sizes, **frame), want, rtol=0, atol=2e-6)
        np.testing.assert_allclose(resize_on_device(logits, **sizes, **frame), want, rtol=0, atol=2e-6)
    by_program = jax.jit(lambda logits: sam_jax.binary_masks(logits, **sizes, **frame))(logits)
    clear = np.abs(want) > 1e-5
    np.testing.assert_array_equal(np.asarray(sam_jax.binary_masks(logits, **sizes, **frame))[clear], (want > 0)[clear])
    np.testing.assert_array_equal(np.asarray(by_program)[clear], (want > 0)[clear])


def bilinear_matrix(low: int, full: int) -> np.ndarray:
    """The weights of the old pixels in each new one, from half-pixel centres, clamped at the ends."""
    place = ((np.arange(full) + 0.5) * low / full - 0.5).clip(0, low - 1)
    return np.maximum(1 - np.abs(place[:, None] - np.arange(low)), 0)


@pytest.mark.parametrize(("postprocessing", "inside"), [("sam", False), ("sam2", False), ("efficient_sam", True)])
def test_a_pixel_at_the_threshold(postprocessing: Any, inside: bool) -> None:
    """It is in the mask by EfficientSAM's rule alone."""
    logits = jnp.zeros((2, 8, 8))
    sizes: Any = {"input_size": (32, 32), "original_size": (5, 7), "postprocessing": postprocessing}
    for masks in (sam_jax.binary_masks(logits, **sizes), jax.jit(lambda x: sam_jax.binary_masks(x, **sizes))(logits)):
        assert masks.all() == masks.any() == inside


def test_there_are_three_rules(untyped: None) -> None:
    sizes: Any = {"input_size": (32, 32), "original_size": (5, 7), "postprocessing": "sam3"}
    with pytest.raises(ValueError, match="postprocessing must be one of sam, sam2, efficient_sam, got 'sam3'"):
        resize_masks(jnp.zeros((8, 8)), **sizes)


def test_a_frame_of_another_size_and_packed_bits() -> None:
    logits = np.random.default_rng(0).standard_normal((2, 3, 32, 32), np.float32)
    sizes: Any = {"input_size": (70, 100), "original_size": (210, 301), "image_size": (96, 160)}
    want = np.asarray(resize_on_device(logits, **sizes))
    masks = np.asarray(sam_jax.binary_masks(logits, **sizes))
    np.testing.assert_allclose(resize_masks(logits, **sizes), want, atol=1e-6)
    assert (masks != (want > 0)).sum() == 0
    packed = sam_jax.binary_masks(logits, packed=True, threshold=-100.0, **sizes)
    assert packed.shape == (2, 3, 210, 38)
    np.testing.assert_array_equal(np.unpackbits(packed, axis=-1)[..., 301:], 0)


def test_a_size_that_comes_often_gets_a_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "PAYS", 10)
    logits = np.random.default_rng(0).standard_normal((4, 32, 32), np.float32)
    sizes: Any = {"input_size": (128, 100), "original_size": (333, 260)}
    first, *others = (np.asarray(sam_jax.binary_masks(logits, **sizes)) for _ in range(4))
    for masks in others:
        np.testing.assert_array_equal(masks, first)
    assert tiles.pays(1, (128, 100), (333, 260), None, "sam")


def test_fifty_sizes_compile_a_handful_of_programs() -> None:
    """From an image's pixels to masks at its size, in all ways: after the first five sizes hardly anything is new."""
    compiled: list[str] = []

    def count(event: str, seconds: float, fun_name: str = "", **_: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(fun_name)

    predictor = sam_jax.Predictor(MODEL, VARIABLES, ENCODER, ENCODER_VARIABLES)
    rng = np.random.default_rng(0)
    jax.clear_caches()
    jax.monitoring.register_event_duration_secs_listener(count)
    try:
        for height, width in rng.integers(100, 1000, (50, 2)).tolist():
            predictor.set_image(np.zeros((height, width, 3), np.uint8))
            box = [width / 4, height / 4, width / 2, height / 2]
            out = predictor.predict(boxes=box)
            assert out.masks.shape == (3, height, width)
            again = predictor.predict(points=[[width / 2, height / 2]], labels=[1], mask=out.masks[0])
            sizes: Any = {"input_size": input_size_for((height, width), (128, 128)), "original_size": (height, width)}
            assert resize_masks(again.logits, **sizes).shape == (3, height, width)
            assert len(list(sam_jax.rle_masks(again.logits, **sizes))) == 3
            assert sam_jax.mask_to_prompt(out.masks[1], input_size=sizes["input_size"], mask_size=(32, 32)).ndim == 2
    finally:
        jax.monitoring.unregister_event_duration_listener(count)
    assert len(compiled) <= 15, compiled  # all small operations included
    assert len([name for name in compiled if "tiles" in name]) <= 10
