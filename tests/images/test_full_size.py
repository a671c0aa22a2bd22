import jax.numpy as jnp
import numpy as np
import pytest
from pycocotools import mask as coco

from sam_jax import binary_masks, resize_masks, rle_masks

SIZES = {"input_size": (128, 90), "original_size": (61, 43)}
LOGITS = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 32, 32)).astype(np.float32))
WANT = np.asarray(resize_masks(LOGITS, **SIZES) > 0)


@pytest.mark.parametrize("chunk", [1, 3, 4, 10, 99])
def test_binary_masks_are_the_thresholded_logits(chunk: int) -> None:
    np.testing.assert_array_equal(binary_masks(LOGITS, **SIZES, chunk=chunk), WANT)


def test_threshold() -> None:
    np.testing.assert_array_equal(
        binary_masks(LOGITS, **SIZES, threshold=0.5, chunk=4), np.asarray(resize_masks(LOGITS, **SIZES) > 0.5)
    )


def test_packed_masks_unpack_to_the_same() -> None:
    packed = binary_masks(LOGITS, **SIZES, packed=True, chunk=4)
    assert packed.shape == (2, 5, 61, 6)
    np.testing.assert_array_equal(np.unpackbits(packed, axis=-1, count=43), WANT)


def test_rle_masks_decode_to_the_same() -> None:
    encoded = list(rle_masks(LOGITS[0], **SIZES, chunk=2))
    assert encoded[0]["size"] == [61, 43]
    assert isinstance(encoded[0]["counts"], str)
    np.testing.assert_array_equal([coco.decode(rle) for rle in encoded], WANT[0])
