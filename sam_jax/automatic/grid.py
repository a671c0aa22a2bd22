"""Where to ask: crops of an image, and grids of points in them (`segment_anything/utils/amg.py`)."""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from sam_jax.automatic.config import AutomaticConfig
from sam_jax.errors import describe
from sam_jax.images.size import Size
from sam_jax.images.windows import windows_of


class Crop(NamedTuple):
    """A part of an image; the edges x1 and y1 are exclusive.

    Attributes:
      x0: left edge in pixels of the image; likewise the others.
      layer: 0 for the whole image.
    """

    x0: int
    y0: int
    x1: int
    y1: int
    layer: int

    @property
    def size(self) -> Size:
        """Height and width."""
        return self.y1 - self.y0, self.x1 - self.x0


def make_crops(size: Size, layers: int, overlap_ratio: float, tile: int | None = None) -> list[Crop]:
    """Return the whole image, then the crops of each layer, column by column (`generate_crop_boxes`), or its tiles.

    In a tiny image, crops without a pixel are left out.

    Args:
      size: height and width of the image.
      layers: how many layers.
      overlap_ratio: of the first layer's crops, as a share of the shorter side; half as much for each layer after it.
      tile: side of the tiles in pixels, which are a layer; None for none. An image that is one tile has no others.
    """
    height, width = size
    crops = [Crop(0, 0, width, height, 0)]
    if tile is not None and max(size) > tile:
        crops += [Crop(*window, layer=1) for window in windows_of(size, tile)]
    for layer in range(1, layers + 1):
        number = 2**layer
        overlap = int(overlap_ratio * min(size) * (2 / number))
        wide, high = (math.ceil((overlap * (number - 1) + length) / number) for length in (width, height))
        lefts, tops = ([int((length - overlap) * i) for i in range(number)] for length in (wide, high))
        crops += [
            Crop(left, top, min(left + wide, width), min(top + high, height), layer) for left in lefts for top in tops
        ]
    return [crop for crop in crops if min(crop.size) > 0]


def point_grids(settings: AutomaticConfig) -> list[Float[np.ndarray, "point 2"]]:
    """Return the points (x, y) from 0 to 1 of the image and of each layer of crops, x fastest."""
    if settings.point_grids is not None:
        return [np.asarray(grid, np.float64) for grid in settings.point_grids]
    side: int = settings.points_per_side  # pyright: ignore[reportAssignmentType]
    factor = settings.crop_n_points_downscale_factor
    return [regular_grid(int(side / factor**layer)) for layer in range(settings.layers + 1)]


def regular_grid(side: int) -> Float[np.ndarray, "point 2"]:
    """Return the centres of `side` x `side` equal fields, (x, y) from 0 to 1, x fastest."""
    centres = np.linspace(1 / (2 * side), 1 - 1 / (2 * side), side)
    return np.stack(np.meshgrid(centres, centres), -1).reshape(-1, 2)


def in_region(
    points: Float[np.ndarray, "point 2"], region: Bool[np.ndarray, "height width"] | Float[np.ndarray, "4"] | None
) -> Bool[np.ndarray, " point"]:
    """Return which points of an image, in its pixels, lie in a region.

    Args:
      points: (x, y).
      region: a mask of the image's size, or a box (x0, y0, x1, y1) with its edges; None for all of the image.
    """
    if region is None:
        return np.ones(len(points), bool)
    if region.ndim == 1:
        return np.logical_and.reduce((points >= region[:2]) & (points <= region[2:]), axis=-1)
    x, y = np.floor(points).astype(int).T
    height, width = region.shape
    return region[np.clip(y, 0, height - 1), np.clip(x, 0, width - 1)]


def check_region(region: object, size: Size) -> Bool[np.ndarray, "height width"] | Float[np.ndarray, "4"] | None:
    """Return a region as an array.

    Raises:
      ValueError: if it is neither a box nor a mask of bools of the image's size.
    """
    if region is None:
        return None
    given = np.asarray(region)
    if given.dtype == bool and given.shape == size:
        return given
    if given.shape == (4,) and given.dtype != bool and np.isfinite(given).all() and (given[:2] < given[2:]).all():
        return given.astype(np.float64)
    raise ValueError(
        f"region must be a mask of bools of the image's size {list(size)}, or a box (x0, y0, x1, y1) in its pixels, "
        f"got {describe(region)}."
    )
