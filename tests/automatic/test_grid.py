"""Crops, points, regions, and settings that mean nothing."""

from typing import Any

import numpy as np
import pytest

from sam_jax import AutomaticConfig
from sam_jax.automatic.grid import Crop, check_region, in_region, make_crops, point_grids
from sam_jax.images.windows import windows_of


def test_crops_are_the_official_ones() -> None:
    """Values of `generate_crop_boxes((900, 1400), 2, 512 / 1500)`."""
    crops = make_crops((900, 1400), 2, 512 / 1500)
    assert [crop.layer for crop in crops] == [0] + [1] * 4 + [2] * 16
    assert [crop[:4] for crop in crops[:5]] == [
        (0, 0, 1400, 900),
        (0, 0, 854, 604),
        (0, 297, 854, 900),
        (547, 0, 1400, 604),
        (547, 297, 1400, 900),
    ]
    assert crops[-1][:4] == (936, 561, 1400, 900)


def test_every_crop_of_a_tiny_image_has_pixels() -> None:
    assert all(min(crop.size) > 0 for crop in make_crops((3, 2), 3, 0.3))


def test_points_of_layers_and_own_grids() -> None:
    settings = AutomaticConfig(points_per_side=8, crop_n_layers=2, crop_n_points_downscale_factor=2)
    assert [len(grid) for grid in point_grids(settings)] == [64, 16, 4]
    np.testing.assert_array_equal(point_grids(settings)[2], [[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]])
    own = [[0.1, 0.9]]
    np.testing.assert_array_equal(point_grids(AutomaticConfig(points_per_side=None, point_grids=[own]))[0], own)


def test_regions_are_masks_or_boxes() -> None:
    points = np.array([[0.5, 0.5], [3.9, 1.5], [2.0, 3.0]])
    mask = np.zeros((4, 5), bool)
    mask[1, 3] = True
    assert in_region(points, mask).tolist() == [False, True, False]
    assert in_region(points, np.array([1.0, 1.0, 2.0, 3.0])).tolist() == [False, False, True]
    assert in_region(points, None).all()


@pytest.mark.parametrize(
    "region",
    [[1, 2, 3], [3, 0, 1, 4], [0, 0, np.nan, 4], np.ones((5, 4), bool), np.ones((4, 5)), "all"],
    ids=["three", "turned", "nan", "size", "floats", "text"],
)
def test_what_is_no_region(region: Any) -> None:
    with pytest.raises(ValueError, match=r"region must be a mask of bools of the image's size \[4, 5\], or a box"):
        check_region(region, (4, 5))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"points_per_side": None}, "Exactly one of points_per_side and point_grids"),
        ({"point_grids": [[[0, 0]]]}, "Exactly one of points_per_side and point_grids"),
        ({"points_per_side": 0}, "points_per_side must be a whole number of at least 1, got 0"),
        ({"points_per_side": 3.5}, "points_per_side must be a whole number"),
        ({"points_per_batch": 0}, "points_per_batch"),
        ({"pred_iou_thresh": "high"}, "pred_iou_thresh must be a number"),
        ({"box_nms_thresh": float("nan")}, "box_nms_thresh must be a number"),
        ({"stability_score_offset": -1}, "stability_score_offset must be a number of at least 0"),
        ({"crop_n_layers": 9}, "crop_n_layers must be a whole number of at least 0 and at most 4"),
        ({"crop_overlap_ratio": 2}, "crop_overlap_ratio"),
        ({"points_per_side": 4, "crop_n_layers": 2, "crop_n_points_downscale_factor": 4}, "leaves no point"),
        ({"output_mode": "png"}, "output_mode must be one of binary_mask, uncompressed_rle, coco_rle"),
        ({"max_masks": 0}, "max_masks"),
        ({"use_m2m": 1}, "use_m2m must be true or false"),
        ({"min_mask_region_area": -1}, "min_mask_region_area"),
        ({"points_per_side": None, "point_grids": [[[0.5, 2.0]]]}, "point_grids must be arrays"),
        ({"points_per_side": None, "point_grids": [[[0.5, 0.5]]], "crop_n_layers": 1}, "a grid for the image and one"),
    ],
)
def test_settings_that_mean_nothing(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AutomaticConfig(**settings)


def test_tiles_are_one_layer_of_crops() -> None:
    crops = make_crops((100, 160), 0, 0.3, tile=64)
    assert crops[0] == Crop(0, 0, 160, 100, 0)
    assert [crop[:4] for crop in crops[1:]] == windows_of((100, 160), 64)
    assert {crop.layer for crop in crops[1:]} == {1}
    assert len(make_crops((60, 64), 0, 0.3, tile=64)) == 1
    assert [len(grid) for grid in point_grids(AutomaticConfig(points_per_side=4, tile=64))] == [16, 16]
    with pytest.raises(ValueError, match="Crops are of tile or of crop_n_layers, got 64 and 1"):
        AutomaticConfig(tile=64, crop_n_layers=1)
    with pytest.raises(ValueError, match="tile must be a whole number of at least 1"):
        AutomaticConfig(tile=0)
