"""The exact clicks of the evaluation protocols, on the host: always where an error is farthest from its boundary.

The rule is that of RITM (`isegm/inference/clicker.py` in SegNext and others), which SAM's evaluation follows too.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from scipy.ndimage import distance_transform_edt

from sam_jax.prompts import BACKGROUND, FOREGROUND


class Click(NamedTuple):
    """A click on a pixel of the original image, and its label (1 foreground, 0 background)."""

    x: int
    y: int
    label: int


def next_click(
    target: Bool[np.ndarray, "height width"],
    mask: Bool[np.ndarray, "height width"],
    clicked: Bool[np.ndarray, "height width"],
) -> Click | None:
    """Return the next click, or None where no error is left that was not clicked.

    Of the two regions that are missing and too much, the one counts that has the pixel farthest from its own boundary,
    and that pixel is clicked; the image's border is a boundary too. Of equally far ones the first in reading order; of
    equal regions what is too much.

    Args:
      target: the object.
      mask: the last prediction; empty before the first click.
      clicked: pixels that were clicked, which are not clicked again.
    """
    missing, surplus = (
        np.where(clicked, 0.0, boundary_distance(region)) for region in (target & ~mask, mask & ~target)
    )
    label = FOREGROUND if missing.max() > surplus.max() else BACKGROUND
    distance = missing if label == FOREGROUND else surplus
    if not distance.any():
        return None
    y, x = divmod(int(distance.argmax()), distance.shape[1])
    return Click(x, y, label)


def boundary_distance(region: Bool[np.ndarray, "height width"]) -> Float[np.ndarray, "height width"]:
    """Return for each pixel of a region the distance to the nearest pixel outside of it, the image's outside included.

    Args:
      region: True inside; other pixels get 0.
    """
    distance = np.zeros(region.shape)
    rows, columns = np.flatnonzero(region.any(1)), np.flatnonzero(region.any(0))
    if len(rows):
        # Around the region's own box lie only pixels outside of it, so nothing nearer is beyond.
        window = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        distance[window] = np.asarray(distance_transform_edt(np.pad(region[window], 1)))[1:-1, 1:-1]
    return distance


def box_around(mask: Bool[np.ndarray, "height width"]) -> tuple[int, int, int, int]:
    """Return the box (x0, y0, x1, y1) of a mask that is not empty, from its first to its last pixel."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]), int(rows[-1])
