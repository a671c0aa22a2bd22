"""The input frame against `ResizeLongestSide` and `Sam.preprocess`."""

import functools

import numpy as np
import pytest
import torch
from parity.official import modeling
from segment_anything.utils import transforms

from sam_jax.images.preprocess import prepare

SIZES = [
    (1200, 1800),
    (1800, 1200),
    (1024, 1024),
    (2048, 2048),
    (37, 53),
    (480, 640),
    (1, 300),
    (1023, 1025),
    (7, 3000),
]


@functools.cache
def official(side: int):
    """Return the official model's preprocessing, without its networks."""
    encoder = torch.nn.Module()
    encoder.img_size = side
    return modeling.Sam(encoder, torch.nn.Module(), torch.nn.Module())


@pytest.mark.parametrize("size", SIZES, ids=lambda size: "{}x{}".format(*size))
@pytest.mark.parametrize("side", [1024, 256])
def test_the_frame_is_the_official_one_bit_for_bit(size, side):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    resized = transforms.ResizeLongestSide(side).apply_image(image)
    expected = official(side).preprocess(torch.tensor(resized).permute(2, 0, 1)[None])[0].permute(1, 2, 0).numpy()
    frame, input_size = prepare(image, (side, side))
    assert input_size == resized.shape[:2]
    np.testing.assert_array_equal(frame, expected)
