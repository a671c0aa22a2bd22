"""The protocols' clicks: farthest from the boundary of the larger error, never twice."""

import numpy as np
import pytest

from sam_jax.train.user.clicks import boundary_distance, box_around, next_click

NONE = np.zeros((24, 30), bool)


def random_region(seed: int, shape: tuple[int, int] = (24, 30)) -> np.ndarray:
    """A few overlapping rectangles."""
    rng, region = np.random.default_rng(seed), np.zeros(shape, bool)
    for _ in range(3):
        y, x = rng.integers(0, shape)
        region[y : y + rng.integers(1, 12), x : x + rng.integers(1, 12)] = True
    return region


def distance_by_hand(region: np.ndarray) -> np.ndarray:
    """To every pixel outside, those around the image included."""
    padded = np.pad(region, 1)
    outside = np.argwhere(~padded) - 1
    pixels = np.argwhere(np.ones_like(region))
    nearest = np.sqrt(((pixels[:, None] - outside) ** 2).sum(-1).min(1)).reshape(region.shape)
    return np.where(region, nearest, 0)


@pytest.mark.parametrize("seed", range(6))
def test_distance_is_that_to_the_nearest_pixel_outside(seed: int) -> None:
    region = random_region(seed)
    np.testing.assert_allclose(boundary_distance(region), distance_by_hand(region), rtol=1e-12)


@pytest.mark.parametrize("seed", range(6))
def test_first_click_is_the_point_farthest_from_the_boundary(seed: int) -> None:
    target = random_region(seed)
    click = next_click(target, NONE, NONE)
    distance = distance_by_hand(target)
    assert click is not None
    assert distance[click.y, click.x] == distance.max()
    assert click.label == 1
    assert click == next_click(target, NONE, NONE)


def test_the_image_border_is_a_boundary() -> None:
    full = np.ones((9, 9), bool)
    assert next_click(full, np.zeros_like(full), np.zeros_like(full)) == (4, 4, 1)


@pytest.mark.parametrize("seed", range(8))
def test_next_click_is_in_the_error_that_is_deeper(seed: int) -> None:
    target, mask = random_region(seed), random_region(seed + 100)
    missing, surplus = distance_by_hand(target & ~mask), distance_by_hand(mask & ~target)
    click = next_click(target, mask, NONE)
    assert click is not None
    assert click.label == int(missing.max() > surplus.max())
    assert (missing if click.label else surplus)[click.y, click.x] == max(missing.max(), surplus.max())


def test_equally_deep_errors_give_a_background_click() -> None:
    target, mask = NONE.copy(), NONE.copy()
    target[2:7, 2:7] = mask[12:17, 12:17] = True
    assert next_click(target, mask, NONE) == (14, 14, 0)


def test_no_pixel_is_clicked_twice_until_all_are() -> None:
    target, clicked = NONE.copy(), NONE.copy()
    target[3:6, 4:9] = True
    for _ in range(15):
        click = next_click(target, NONE, clicked)
        assert click is not None
        assert not clicked[click.y, click.x]
        assert target[click.y, click.x]
        clicked[click.y, click.x] = True
    assert next_click(target, NONE, clicked) is None


def test_a_perfect_mask_gets_no_click() -> None:
    target = random_region(0)
    assert next_click(target, target, NONE) is None


def test_box_goes_from_the_first_to_the_last_pixel() -> None:
    mask = NONE.copy()
    mask[3:8, 10], mask[5, 7:12] = True, True
    assert box_around(mask) == (7, 3, 11, 7)
