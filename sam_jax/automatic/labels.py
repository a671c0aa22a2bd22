"""All masks of an image as one picture of numbers."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int32

from sam_jax.images.run_lengths import decoded
from sam_jax.images.size import Size


def label_map(records: Sequence[Mapping[str, Any]], size: Size) -> Int32[np.ndarray, "height width"]:
    """Return one number for each pixel: i + 1 where `records[i]` is, 0 where no mask is.

    Masks are painted from the largest to the smallest, so that a pixel that several claim belongs to the smallest of
    them, as a wheel is a wheel and not a car. `(label_map(...) == 0).mean()` is the share of pixels that nobody claims.

    Args:
      records: what `Predictor.generate` returned, in any `output_mode`.
      size: height and width of the image.

    Raises:
      ValueError: for a record of an image of another size.
    """
    labels = np.zeros(size, np.int32)
    for i in sorted(range(len(records)), key=lambda i: -records[i]["area"]):
        mask = decoded(records[i]["segmentation"])
        if mask.shape != tuple(size):
            raise ValueError(f"Record {i} is of an image of {list(mask.shape)}, not of {list(size)}.")
        labels[mask] = i + 1
    return labels
