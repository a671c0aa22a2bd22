"""Which objects a tile of an image has."""

import numpy as np
from jaxtyping import Int

SMALLEST_CUT = 25
"""An object of which a tile has fewer pixels, and not all, is left out of it; so does micro-sam's sampler."""


def objects_of_tiles(
    counts: Int[np.ndarray, "tile n"], areas: Int[np.ndarray, " n"], *, once: bool = False
) -> list[list[int]]:
    """Return the objects of each tile: those that are whole in it, and large parts of others.

    Args:
      counts: pixels of each object in each tile.
      areas: of the whole objects, in pixels.
      once: give each object to one tile alone, to that which has most of it.
    """
    kept = (counts > 0) & ((counts == areas) | (counts >= SMALLEST_CUT))
    if once:
        kept = np.arange(len(counts))[:, None] == counts.argmax(0)
    return [np.flatnonzero(of_tile).tolist() for of_tile in kept]


def tile_name(name: str, x0: int, y0: int) -> str:
    """Return the name of a tile: its image's, and its left upper corner."""
    stem, dot, suffix = name.rpartition(".")
    return f"{stem}_{x0}_{y0}{dot}{suffix}" if dot else f"{name}_{x0}_{y0}"
