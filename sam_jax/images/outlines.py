"""Masks as polygons, for tools that read no run lengths."""

from collections import defaultdict

import numpy as np
from jaxtyping import Bool

Point = tuple[int, int]


def mask_polygons(mask: Bool[np.ndarray, "height width"]) -> list[list[int]]:
    """Return the outlines of a mask as COCO has them: [x, y, x, y, ...] along the pixels' edges, one for each island.

    pycocotools reads the same pixels back, with holes filled: COCO's polygons have none.
    """
    following = _edges(mask)
    loops = []
    while following:
        loop = _loop(following)
        if _area(loop) > 0:  # around a hole, edges run the other way
            loops.append([int(number) for point in _corners(loop) for number in point])
    return loops


def _edges(mask: Bool[np.ndarray, "height width"]) -> dict[Point, list[Point]]:
    """Where the edges between inside and outside lead from each point, the inside at their right hand."""
    padded = np.pad(mask, 1)
    inside = padded[1:-1, 1:-1]
    outside = {
        ((0, 0), (1, 0)): ~padded[:-2, 1:-1],  # from the pixel's upper left corner to the right
        ((1, 0), (1, 1)): ~padded[1:-1, 2:],
        ((1, 1), (0, 1)): ~padded[2:, 1:-1],
        ((0, 1), (0, 0)): ~padded[1:-1, :-2],
    }
    following = defaultdict(list)
    for ((x0, y0), (x1, y1)), free in outside.items():
        for y, x in np.argwhere(inside & free).tolist():
            following[x + x0, y + y0].append((x + x1, y + y1))
    return following


def _loop(following: dict[Point, list[Point]]) -> list[Point]:
    """Take the edges of one loop away, and return its points."""
    start = next(iter(following))
    loop, before = [start], start
    while True:
        here = loop[-1]
        ways = following[here]
        # Where two pixels touch at a corner, the loop stays with its own: it turns right.
        right = here[0] - (here[1] - before[1]), here[1] + (here[0] - before[0])
        following_point = right if len(ways) > 1 and right in ways else ways[0]
        ways.remove(following_point)
        if not ways:
            del following[here]
        if following_point == start:
            return loop
        before = here
        loop.append(following_point)


def _area(loop: list[Point]) -> int:
    """Twice the area within, negative where the loop runs the other way."""
    return sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in zip(loop, loop[1:] + loop[:1], strict=True))


def _corners(loop: list[Point]) -> list[Point]:
    """The points at which a loop turns."""
    around = zip(loop[-1:] + loop[:-1], loop, loop[1:] + loop[:1], strict=True)
    return [b for a, b, c in around if (b[0] - a[0], b[1] - a[1]) != (c[0] - b[0], c[1] - b[1])]
