"""Polygons of masks, read back by pycocotools."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from pycocotools import mask as coco
from scipy import ndimage

from sam_jax.images.outlines import mask_polygons


def read_back(polygons: list[list[int]], size: tuple[int, int]) -> np.ndarray:
    """What pycocotools makes of them; it takes polygons of at least three points, whatever their pixels."""
    if not polygons:
        return np.zeros(size, bool)
    return np.asarray(coco.decode(coco.merge(coco.frPyObjects(polygons, *size))), bool)


@settings(max_examples=300, deadline=None)
@given(arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=12)), st.booleans())
def test_pycocotools_reads_the_same_pixels(mask: np.ndarray, smooth: bool) -> None:
    mask = ndimage.binary_dilation(mask) if smooth else mask
    polygons = mask_polygons(mask)
    filled = ndimage.binary_fill_holes(mask, np.ones((3, 3)))
    read = read_back(polygons, mask.shape)
    np.testing.assert_array_equal(read & mask, mask)
    assert not (read & ~ndimage.binary_fill_holes(mask)).any()
    if (ndimage.binary_fill_holes(mask) == filled).all():
        np.testing.assert_array_equal(read, filled)
    assert all(len(polygon) >= 8 for polygon in polygons)


def test_a_square_with_a_hole_and_an_island() -> None:
    mask = np.zeros((6, 9), bool)
    mask[1:5, 1:5] = True
    mask[2, 2] = False
    mask[3:5, 6:8] = True
    assert sorted(map(sorted, mask_polygons(mask))) == [[1, 1, 1, 1, 5, 5, 5, 5], [3, 3, 5, 5, 6, 6, 8, 8]]


def test_pixels_that_touch_at_a_corner_are_polygons_of_their_own() -> None:
    assert len(mask_polygons(np.eye(3, dtype=bool))) == 3


def test_nothing() -> None:
    assert mask_polygons(np.zeros((3, 4), bool)) == []
