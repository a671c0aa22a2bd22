"""Masks as COCO run lengths: numbers of pixels, column by column, in turns outside and inside of the mask."""

from typing import Any

import numpy as np
from jaxtyping import Bool


def run_lengths(mask: Bool[np.ndarray, "height width"]) -> dict[str, Any]:
    """Return `{"size": [height, width], "counts": [outside, inside, outside, ...]}`, COCO's uncompressed form."""
    pixels = mask.reshape(-1, order="F")
    changes = np.flatnonzero(pixels[1:] != pixels[:-1]) + 1
    counts = np.diff(np.concatenate([[0], changes, [pixels.size]]))
    first = [0] if pixels.size and pixels[0] else []  # runs begin outside
    return {"size": list(mask.shape), "counts": [*first, *counts.tolist()]}


def coco_run_lengths(mask: Bool[np.ndarray, "height width"]) -> dict[str, Any]:
    """Return `{"size": [height, width], "counts": text}`, COCO's compressed form, ready for JSON."""
    from pycocotools import mask as coco

    encoded: Any = coco.encode(np.asfortranarray(mask, np.uint8))
    return {"size": list(encoded["size"]), "counts": encoded["counts"].decode("ascii")}


def decoded(segmentation: Any) -> Bool[np.ndarray, "height width"]:
    """Return the pixels of a record's `segmentation`, whichever of the three forms it has."""
    if isinstance(segmentation, np.ndarray):
        return segmentation
    from pycocotools import mask as coco

    height, width = segmentation["size"]
    compressed: Any = segmentation
    if not isinstance(segmentation["counts"], (str, bytes)):
        compressed = coco.frPyObjects(segmentation, height, width)
    return np.asarray(coco.decode(compressed), bool)


def from_text(counts: str, size: tuple[int, int]) -> Bool[np.ndarray, "height width"]:
    """Return the pixels of COCO's compressed run lengths, whoever wrote them.

    pycocotools believes what it decodes; this does not.

    Args:
      counts: the text.
      size: height and width of the mask.

    Raises:
      ValueError: for a text that is none, or is of a mask of another size.
    """
    characters = np.frombuffer(counts.encode("utf-8"), np.uint8).astype(np.int64) - 48
    if not characters.size or characters.min() < 0 or characters.max() > 63 or characters[-1] & 32:
        raise ValueError("The text is no run lengths.")
    # A number is five bits of each character, the lowest first; 32 says that more follow, 16 of the last is the sign.
    ends = np.flatnonzero(characters & 32 == 0)
    lengths = np.diff(ends, prepend=-1)
    if lengths.max() > 7:
        raise ValueError("The run lengths have a number that is too large.")
    starts = ends - lengths + 1
    place = np.arange(characters.size) - np.repeat(starts, lengths)
    numbers = np.add.reduceat((characters & 31) << (5 * place), starts)
    numbers -= (characters[ends] & 16 != 0).astype(np.int64) << (5 * lengths)
    # From the fourth on, each is what is to be added to the one before the last.
    numbers[1::2], numbers[2::2] = np.cumsum(numbers[1::2]), np.cumsum(numbers[2::2])
    height, width = size
    if numbers.min() < 0 or numbers.max() > height * width or numbers.sum() != height * width:
        raise ValueError(f"The run lengths are not those of a mask of {height} x {width} pixels.")
    return np.repeat(np.arange(numbers.size) % 2 == 1, numbers).reshape(width, height).T
