"""Outlines: what pycocotools draws, of every form; and one error for what would end the process or be garbage."""

import json
import math
import resource
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco

from sam_jax.train.data.outlines import draw_outline, has_pixels, read_outline

SIZE = (40, 60)
SQUARE = [10.0, 10.0, 30.5, 12.0, 25.0, 33.0, 9.0, 30.0]
POINTS = [[10.0, 10.0], [30.5, 12.0], [25.0, 33.0], [9.0, 30.0]]


def by_pycocotools(polygons: list[list[float]], size: tuple[int, int] = SIZE) -> np.ndarray:
    encoded: Any = coco.merge(coco.frPyObjects(polygons, *size))
    return coco.decode(encoded).astype(bool)


def compressed(mask: np.ndarray) -> dict[str, Any]:
    encoded: Any = coco.encode(np.asfortranarray(mask, np.uint8))
    return {"size": list(mask.shape), "counts": encoded["counts"].decode()}


def drawn(segmentation: Any, size: tuple[int, int] = SIZE) -> np.ndarray | None:
    outline = read_outline(segmentation, size)
    return None if outline is None else draw_outline(outline, size)


@pytest.mark.parametrize(
    "segmentation",
    [
        [SQUARE],
        SQUARE,
        POINTS,
        [POINTS],
        [SQUARE, [3.0, 4.0]],
        [[5, 5], SQUARE, []],
        [compressed(by_pycocotools([SQUARE]))],
    ],
    ids=["nested", "flat", "points", "nested points", "and a point", "and more points", "a list of one RLE"],
)
def test_every_form_of_one_polygon_is_that_polygon(segmentation: Any) -> None:
    np.testing.assert_array_equal(drawn(segmentation), by_pycocotools([SQUARE]))


@pytest.mark.parametrize("segmentation", [None, [], {}, "", [[1, 2]], [[1, 2, 3, 4]], [[]]])
def test_nothing_that_has_an_area_is_no_outline(segmentation: Any) -> None:
    assert read_outline(segmentation, SIZE) is None


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_polygons_in_and_around_the_image_are_drawn_as_pycocotools_does(seed: int) -> None:
    rng = np.random.default_rng(seed)
    size = tuple(int(n) for n in rng.integers(1, 50, 2))
    corners = rng.uniform((-size[1], -size[0]), (2 * size[1], 2 * size[0]), (rng.integers(3, 9), 2)).ravel().tolist()
    np.testing.assert_array_equal(drawn([corners], size), by_pycocotools([corners], size))


@pytest.mark.parametrize("far", [1e3, 1e5, 1e7, 1e9, 1e300])
def test_a_corner_far_outside_changes_no_more_than_an_edges_rounding(far: float) -> None:
    """A triangle whose third corner is far to the right, and the same cut by hand at twice the width."""
    got = drawn([[10, 10, 10, 30, far, 20.0]])
    assert got is not None
    straight = (
        by_pycocotools([[10, 10, 10, 30, 100, 29, 100, 11]])
        if far < 1e4
        else by_pycocotools([[10, 10, 10, 30, 100, 30, 100, 10]])
    )
    assert (got != straight).sum() <= 2 * SIZE[1]
    assert got[20, 59]
    assert not got[:9].any()


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([[math.nan, *SQUARE[1:]]], "must have polygons of finite numbers"),
        ([[math.inf, *SQUARE[1:]]], "must have polygons of finite numbers"),
        ([[10**400, *SQUARE[1:]]], "must have polygons of finite numbers"),
        ([[None, *SQUARE[1:]]], "must have polygons .* of numbers, got"),
        ([["10", *SQUARE[1:]]], "must have polygons .* of numbers, got"),
        ([[True, *SQUARE[1:]]], "must have polygons .* of numbers, got"),
        ([SQUARE[:7]], "must have polygons"),
        ("polygon", "must have a segmentation, polygons or RLE, got 'polygon'"),
        (
            [list(np.random.default_rng(0).uniform(0, 40, 40_000))],
            r"has outlines that are \d+ pixels long.*may have 25600",
        ),
        ({"size": [60, 40], "counts": [2400]}, r"has RLE of size \[60, 40\], but its image is \[40, 60\]"),
        ({"size": 3, "counts": [2400]}, "has RLE of size 3"),
        ({"counts": [2400]}, "has RLE of size None"),
        ({"size": [40, 60], "counts": [2500, -100]}, "counts do not add up"),
        ({"size": [40, 60], "counts": [2399]}, "counts do not add up"),
        ({"size": [40, 60], "counts": [1200.5, 1199.5]}, "counts must be whole numbers or a text"),
        ({"size": [40, 60], "counts": None}, "counts must be whole numbers or a text, got None"),
        ({"size": [40, 60], "counts": "ab c"}, "has RLE that is damaged: 'ab c'"),
        ({"size": [40, 60], "counts": "é"}, "has RLE that is damaged"),
        ({"size": [40, 60], "counts": "PPPPPPPPPPPPPPPPPPPP0"}, "has RLE that is damaged"),
        ({"size": [40, 60], "counts": "P"}, "has RLE that is damaged"),
        ({"size": [40, 60], "counts": "11"}, "counts do not add up"),
    ],
)
def test_what_would_end_the_process_or_be_garbage_is_an_error(segmentation: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_outline(segmentation, SIZE)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_run_lengths_come_back(seed: int) -> None:
    rng = np.random.default_rng(seed)
    mask = rng.random(rng.integers(1, 40, 2)) < rng.choice([0, 0.01, 0.5, 0.99, 1])
    np.testing.assert_array_equal(drawn(compressed(mask), mask.shape), mask)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask.T.ravel()])))
    counts = np.diff(np.concatenate([[0], edges, [mask.size]])).tolist()
    np.testing.assert_array_equal(drawn({"size": list(mask.shape), "counts": counts}, mask.shape), mask)


def test_a_large_mask_has_numbers_of_many_characters() -> None:
    mask = np.zeros((3000, 2000), bool)
    mask[:, 1900:] = True
    np.testing.assert_array_equal(drawn(compressed(mask), mask.shape), mask)


def test_objects_outside_of_the_image_have_no_pixels() -> None:
    outline = read_outline([[100, 100, 200, 100, 200, 200]], SIZE)
    assert outline is not None
    assert not has_pixels(outline, SIZE)
    assert not draw_outline(outline, SIZE).any()


NUMBERS = st.one_of(
    st.integers(-(10**12), 10**12), st.floats(allow_nan=True), st.sampled_from([0, 1, 40, 60, 2400, 1e9])
)
ANYTHING = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, st.text("0123PQabco~ ", max_size=12)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=8),
        st.fixed_dictionaries(
            {"size": st.one_of(st.just([40, 60]), inner), "counts": st.one_of(st.lists(NUMBERS), inner)}
        ),
    ),
    max_leaves=12,
)


@given(st.one_of(ANYTHING, st.lists(st.lists(NUMBERS, min_size=6, max_size=12), min_size=1, max_size=3)))
@settings(max_examples=400, deadline=None)
def test_anything_is_a_mask_or_one_error(segmentation: Any) -> None:
    segmentation = json.loads(json.dumps(segmentation))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        mask = drawn(segmentation)
    except ValueError:
        return
    assert mask is None or mask.shape == SIZE
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kB
