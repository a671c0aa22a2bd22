"""Large images in windows of one size, which overlap."""

import math
from typing import NamedTuple

import numpy as np

from sam_jax.images.size import Size

OVERLAP = 0.25
"""Of neighbouring windows, at least, as a share of their side: smaller objects are whole in one of them."""


class Window(NamedTuple):
    """A part of an image; the edges x1 and y1 are exclusive.

    Attributes:
      x0: left edge in pixels of the image; likewise the others.
    """

    x0: int
    y0: int
    x1: int
    y1: int

    @property
    def size(self) -> Size:
        """Height and width."""
        return self.y1 - self.y0, self.x1 - self.x0

    @property
    def pixels(self) -> tuple[slice, slice]:
        """Rows and columns of an array of the image's size."""
        return slice(self.y0, self.y1), slice(self.x0, self.x1)


def windows_of(size: Size, side: int | None) -> list[Window]:
    """Return the windows of an image, row by row, evenly over it.

    Args:
      size: height and width of the image.
      side: of a window in pixels; along a shorter side of the image, windows are as long as it. None for the image
        itself.

    Raises:
      ValueError: for a side of less than 1.
    """
    if side is None:
        return [Window(0, 0, size[1], size[0])]
    if side < 1:
        raise ValueError(f"A tile must have a side of 1 pixel or more, got {side}.")
    tops, lefts = (_starts(length, side) for length in size)
    high, wide = (min(length, side) for length in size)
    return [Window(left, top, left + wide, top + high) for top in tops for left in lefts]


def _starts(length: int, side: int) -> list[int]:
    """Where windows along one axis begin."""
    if length <= side:
        return [0]
    step = max(1, side - math.ceil(OVERLAP * side))
    number = 1 + math.ceil((length - side) / step)
    return np.linspace(0, length - side, number).round().astype(int).tolist()
