"""From an annotation's outline to its mask: polygons and run lengths, checked before pycocotools sees them.

pycocotools checks nothing: a coordinate that is NaN or far away ends the process, and damaged run lengths give garbage.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from sam_jax.errors import describe
from sam_jax.images.size import Size

MOST_OUTLINE = 256
"""How many times the sum of an image's height and width the outlines of an object may be long, in pixels."""

STEPS = 5  # that pycocotools takes for each pixel of an outline


class Polygons(NamedTuple):
    """The corners (x, y) of one or more polygons, whose union is the object."""

    corners: tuple[Float[np.ndarray, "n 2"], ...]


class Runs(NamedTuple):
    """Lengths of runs of pixels down the columns, background first."""

    counts: Int[np.ndarray, " n"]


Outline = Polygons | Runs


def read_outline(segmentation: Any, size: Size) -> Outline | None:
    """Return the outline that an annotation's `segmentation` means; None where it has none.

    Polygons are `[[x, y, x, y, ...], ...]`; also one of them alone, flat or as points `[x, y]`. Those of fewer than
    three points have no pixels and are left out. Run lengths are COCO's `{"size": [height, width], "counts": ...}`,
    compressed or not; also as a list of one.

    Args:
      segmentation: as in the JSON file.
      size: height and width of the image.

    Raises:
      ValueError: for anything else; the text goes on after the annotation's name.
    """
    if segmentation in (None, [], {}, ""):
        return None
    if isinstance(segmentation, dict):
        return _read_runs(segmentation, size)
    if not isinstance(segmentation, list):
        raise ValueError(f"must have a segmentation, polygons or RLE, got {describe(segmentation)}")
    if len(segmentation) == 1 and isinstance(segmentation[0], dict):
        return _read_runs(segmentation[0], size)
    alone = _is_number(segmentation[0]) or all(map(_is_point, segmentation))
    polygons = [segmentation] if alone else segmentation
    whole = [polygon for polygon in map(_read_polygon, polygons) if len(polygon) > 2]
    corners = tuple(part for part in (_clipped(polygon, size) for polygon in whole) if len(part) > 2)
    length = sum(_steps(polygon) for polygon in corners) / STEPS
    if length > MOST_OUTLINE * sum(size):
        raise ValueError(
            f"has outlines that are {length:.0f} pixels long; in an image of {size[0]} x {size[1]} they may have "
            f"{MOST_OUTLINE * sum(size)}"
        )
    return Polygons(corners) if whole else None


def has_pixels(outline: Outline, size: Size) -> bool:
    """Return whether the object has a pixel in the image."""
    from pycocotools import mask as coco

    if isinstance(outline, Runs):
        return bool(outline.counts[1::2].any())
    return bool(outline.corners) and bool(coco.area(_encoded(outline, size)) > 0)


def draw_outline(outline: Outline, size: Size) -> Bool[np.ndarray, "height width"]:
    """Return the object's mask.

    Args:
      outline: what `read_outline` returned for this size.
      size: height and width of the image.
    """
    from pycocotools import mask as coco

    if isinstance(outline, Runs):
        inside = np.arange(len(outline.counts)) % 2 == 1
        return np.repeat(inside, outline.counts).reshape(size[::-1]).T
    return coco.decode(_encoded(outline, size)).astype(bool) if outline.corners else np.zeros(size, bool)


def _encoded(polygons: Polygons, size: Size) -> Any:
    from pycocotools import mask as coco

    return coco.merge(coco.frPyObjects([corners.ravel().tolist() for corners in polygons.corners], *size))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_point(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(_is_number, value))


def _read_polygon(polygon: Any) -> Float[np.ndarray, "n 2"]:
    if isinstance(polygon, list) and polygon and all(map(_is_point, polygon)):
        polygon = [number for point in polygon for number in point]
    if not isinstance(polygon, list) or len(polygon) % 2 or not all(map(_is_number, polygon)):
        raise ValueError(f"must have polygons [x0, y0, x1, y1, ...] of numbers, got {describe(polygon)}")
    try:
        corners = np.array(polygon, np.float64).reshape(-1, 2)
    except OverflowError:  # an integer beyond all floats
        corners = np.full((1, 2), np.inf)
    if not np.isfinite(corners).all():
        raise ValueError(f"must have polygons of finite numbers, got {describe(polygon)}")
    return corners


def _clipped(corners: Float[np.ndarray, "n 2"], size: Size) -> Float[np.ndarray, "m 2"]:
    """A polygon cut at an image's size around the image. What is drawn in the image stays the same.

    Each border in turn keeps what is inside of it (Sutherland and Hodgman, 1974).
    """
    height, width = size
    for axis, sign, border in ((0, -1, width), (0, 1, 2 * width), (1, -1, height), (1, 1, 2 * height)):
        beyond = sign * corners[:, axis] - border
        if (beyond <= 0).all():
            continue
        following, next_beyond = np.roll(corners, -1, axis=0), np.roll(beyond, -1)
        crosses = (beyond <= 0) != (next_beyond <= 0)
        share = np.where(crosses, beyond / np.where(crosses, beyond - next_beyond, 1), 0)
        crossing = corners + share[:, None] * (following - corners)
        crossing[:, axis] = sign * border
        # Each corner that is inside, and behind it the place where its edge crosses the border.
        both = np.stack([corners, crossing], 1).reshape(-1, 2)
        corners = both[np.stack([beyond <= 0, crosses], 1).ravel()]
        if not len(corners):
            break
    return corners


def _steps(corners: Float[np.ndarray, "n 2"]) -> float:
    """How many steps pycocotools takes around a polygon."""
    return float((np.abs(np.roll(corners, -1, axis=0) - corners).max(-1) * STEPS + 1).sum())


def _read_runs(runs: dict[str, Any], size: Size) -> Runs:
    told, counts = runs.get("size"), runs.get("counts")
    if not isinstance(told, list) or told != list(size):
        raise ValueError(f"has RLE of size {describe(told)}, but its image is {list(size)}")
    if isinstance(counts, str):
        numbers = _decompressed(counts)
    elif isinstance(counts, list) and all(isinstance(n, int) and not isinstance(n, bool) for n in counts):
        numbers = counts
    else:
        raise ValueError(f"has RLE whose counts must be whole numbers or a text, got {describe(counts)}")
    if any(n < 0 for n in numbers) or sum(numbers) != math.prod(size):
        raise ValueError(
            f"has RLE whose counts do not add up to its size {list(size)}: they must be 0 or more, and "
            f"{math.prod(size)} in all, got {describe(numbers)}"
        )
    return Runs(np.array(numbers, np.int64))


def _decompressed(text: str) -> Sequence[int]:
    """The numbers of COCO's compressed run lengths (`rleFrString` in pycocotools' `maskApi.c`).

    A number is a few characters of five bits each, the lowest first. From the fourth on, it is the difference to the
    number two before it.
    """
    wrong = ValueError(f"has RLE that is damaged: {describe(text)}")
    try:
        values = np.frombuffer(text.encode("ascii"), np.uint8).astype(np.int64) - 48
    except UnicodeEncodeError:
        raise wrong from None
    if not len(values) or values.min() < 0 or values.max() > 63 or values[-1] & 32:
        raise wrong
    last = np.flatnonzero(values & 32 == 0)
    first = np.concatenate([[0], last[:-1] + 1])
    lengths = last - first + 1
    if lengths.max() > 7:  # 35 bits; an image has fewer pixels
        raise wrong
    place = np.arange(len(values)) - np.repeat(first, lengths)
    numbers = np.add.reduceat((values & 31) << (5 * place), first)
    numbers -= np.where(values[last] & 16, np.int64(1) << (5 * lengths), 0)
    numbers[1::2] = np.cumsum(numbers[1::2])
    numbers[2::2] = np.cumsum(numbers[2::2])
    return numbers.tolist()
