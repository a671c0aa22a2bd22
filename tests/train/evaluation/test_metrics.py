"""Metrics against values by hand."""

import jax
import numpy as np
import pytest

from sam_jax.train.evaluation.metrics import calibration, clicks_needed, mask_iou, size_classes


def test_iou_by_hand() -> None:
    mask, target = np.zeros((2, 4, 4), bool)
    mask[0, :], target[:, 0] = True, True
    assert mask_iou(mask, target) == pytest.approx(1 / 7)
    assert mask_iou(mask, mask) == 1
    assert mask_iou(mask, ~mask) == 0
    assert mask_iou(mask & False, mask & False) == 1


def test_iou_leaves_out_what_is_not_inside() -> None:
    mask, target, inside = np.ones((3, 4, 4), bool)
    target[:, 2:], inside[:, 2:] = False, False
    assert mask_iou(mask, target) == 0.5
    assert mask_iou(mask, target, inside) == 1


def test_iou_broadcasts_over_batches_and_is_symmetric() -> None:
    rng = np.random.default_rng(0)
    masks, targets = rng.random((3, 4, 6, 5)) < 0.5, rng.random((3, 1, 6, 5)) < 0.5
    got = jax.jit(mask_iou)(masks, targets)
    assert got.shape == (3, 4)
    np.testing.assert_array_equal(got, mask_iou(np.broadcast_to(targets, masks.shape), masks))


def test_size_classes_at_their_borders() -> None:
    areas = np.array([1, 1023, 1024, 9215, 9216, 10**6])
    np.testing.assert_array_equal(size_classes(areas), [0, 0, 1, 1, 2, 2])
    np.testing.assert_array_equal(size_classes(areas, (2, 3)), [0, 2, 2, 2, 2, 2])


def test_calibration_by_hand() -> None:
    found = calibration(np.array([-0.5, 0.05, 0.62, 0.64, 1.2]), np.array([0.0, 0.15, 0.6, 0.5, 1.0]), bins=5)
    assert found.error == pytest.approx((0.5 + 0.1 + 0.02 + 0.14 + 0.2) / 5)
    assert found.counts == (2, 0, 0, 2, 1)
    assert found.predicted == (pytest.approx(-0.225), None, None, pytest.approx(0.63), pytest.approx(1.2))
    assert found.true == (pytest.approx(0.075), None, None, pytest.approx(0.55), 1.0)


def test_calibration_of_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one; got 0, 0"):
        calibration(np.zeros(0), np.zeros(0))


def test_clicks_needed_counts_failures_with_the_cap() -> None:
    rows = [[0.95], [0.5, 0.86, 0.8], [0.1, 0.2, 0.3, 0.9], [0.1] * 5]
    found = clicks_needed(rows, 0.85, cap=4)
    assert found.mean == (1 + 2 + 4 + 4) / 4
    assert found.failures == 1
    assert clicks_needed(rows, 0.85, cap=3).failures == 2
