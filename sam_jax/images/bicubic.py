"""EfficientSAM's masks at the original size: one bicubic step, and a threshold that belongs to the mask."""

import numpy as np
from jaxtyping import Bool, Float

from sam_jax.encoders.bicubic import bicubic_matrix
from sam_jax.images.size import Size


def bicubic_masks(
    logits: Float[np.ndarray, "*batch my mx"], original_size: Size
) -> Bool[np.ndarray, "*batch {original_size[0]} {original_size[1]}"]:
    """Return where logits, resized to the original image, are at least 0.

    As `F.interpolate(mode="bicubic")` in `EfficientSam.predict_masks` (`efficient_sam/efficient_sam.py`), and the
    threshold of its examples.

    Args:
      logits: low-res logits of the whole frame, to which the image was stretched.
      original_size: height and width of the result in pixels.
    """
    sides = zip(logits.shape[-2:], original_size, strict=True)
    rows, columns = (bicubic_matrix(low, full).astype(logits.dtype) for low, full in sides)
    return rows @ logits @ columns.T >= 0
