"""Small holes and islands against a flood fill."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from sam_jax.automatic.regions import without_small_regions


def regions_of(mask: np.ndarray) -> list[set[tuple[int, int]]]:
    """Pixels that touch, corners included."""
    left, regions = {tuple(p) for p in np.argwhere(mask).tolist()}, []
    while left:
        region, front = set(), [left.pop()]
        while front:
            y, x = front.pop()
            region.add((y, x))
            near = {(y + i, x + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & left
            left -= near
            front += near
        regions.append(region)
    return regions


@settings(max_examples=200, deadline=None)
@given(arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=9)), st.integers(1, 12))
def test_a_flood_fill(mask: np.ndarray, least: int) -> None:
    want = mask.copy()
    for region in regions_of(~mask):
        if len(region) < least:
            want[tuple(zip(*region, strict=True))] = True
    islands = regions_of(want)
    small = [region for region in islands if len(region) < least]
    if len(small) == len(islands) and small:
        largest = max(map(len, small))
        if sum(len(region) == largest for region in small) > 1:
            return  # which of two equal ones stays is not said
        small.remove(max(small, key=len))
    for region in small:
        want[tuple(zip(*region, strict=True))] = False
    cleaned, changed = without_small_regions(mask, least)
    np.testing.assert_array_equal(cleaned, want)
    assert changed or (cleaned == mask).all()
