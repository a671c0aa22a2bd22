"""Holes and islands of a mask: small ones are filled and removed (`remove_small_regions` in the official `amg.py`)."""

from typing import Any

import numpy as np
from jaxtyping import Bool
from scipy import ndimage

EIGHT = np.ones((3, 3), int)
"""Pixels that touch at a corner are together, too."""


def without_small_regions(
    mask: Bool[np.ndarray, "height width"], least: int
) -> tuple[Bool[np.ndarray, "height width"], bool]:
    """Return a mask without holes and islands of fewer than `least` pixels, and whether it changed.

    Holes come first. If every island is small, the largest stays.
    """
    filled, holes = _filled(mask, least)
    kept, islands = _of_large_islands(filled, least)
    return kept, holes or islands


def _filled(mask: Bool[np.ndarray, "height width"], least: int) -> tuple[Bool[np.ndarray, "height width"], bool]:
    regions, areas = _regions(~mask)
    small = areas < least
    small[0] = False  # the mask itself
    return (mask | small[regions], True) if small.any() else (mask, False)


def _of_large_islands(
    mask: Bool[np.ndarray, "height width"], least: int
) -> tuple[Bool[np.ndarray, "height width"], bool]:
    regions, areas = _regions(mask)
    small = areas < least
    small[0] = False
    if not small.any():
        return mask, False
    kept = ~small
    kept[0] = False
    if not kept.any():
        kept[1 + np.argmax(areas[1:])] = True
    return kept[regions], True


def _regions(mask: Bool[np.ndarray, "height width"]) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the connected regions, 0 elsewhere, and the pixels of each number."""
    labelled: Any = ndimage.label(mask, EIGHT)
    regions, number = labelled
    return regions, np.bincount(regions.reshape(-1), minlength=number + 1)
