"""Non-maximum suppression of boxes against the definition."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sam_jax.automatic.nms import box_nms

ROOM = 24


def by_definition(boxes: np.ndarray, scores: np.ndarray, threshold: float) -> list[int]:
    """Go through the boxes by score, ties in their order, and keep what no kept one overlaps too much."""
    kept: list[int] = []
    for i in sorted(range(len(boxes)), key=lambda i: -scores[i]):
        if not any(overlap(boxes[i], boxes[j]) > threshold for j in kept):
            kept.append(i)
    return kept


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    width, height = (max(0.0, min(one[2 + i], other[2 + i]) - max(one[i], other[i])) for i in (0, 1))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    union = sum(areas) - width * height
    return width * height / union if union else np.nan


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(*[st.integers(0, 6)] * 4, st.integers(0, 3)), min_size=0, max_size=ROOM),
    st.sampled_from([0.0, 0.25, 0.5, 0.7, 1.0]),
)
def test_the_definition(rows: list[tuple[int, ...]], threshold: float) -> None:
    boxes = np.array([(x, y, x + w, y + h) for x, y, w, h, _ in rows], np.float32).reshape(-1, 4)
    scores = np.array([score for *_, score in rows], np.float32)
    room, values = np.zeros((ROOM, 4), np.float32), np.zeros(ROOM, np.float32)
    room[: len(rows)], values[: len(rows)] = boxes, scores
    kept, number = box_nms(room, values, np.arange(ROOM) < len(rows), threshold)
    assert kept[:number].tolist() == by_definition(boxes, scores, threshold)


@pytest.mark.parametrize("valid", [[True, True, False], [False, True, True]])
def test_boxes_that_are_not_there_suppress_nothing(valid: list[bool]) -> None:
    boxes = np.array([[0, 0, 9, 9], [0, 0, 9, 9], [0, 0, 9, 9]], np.float32)
    kept, number = box_nms(boxes, np.array([3, 2, 1], np.float32), np.array(valid), 0.5)
    assert kept[:number].tolist() == [valid.index(True)]


def test_boxes_of_one_row_stay_all() -> None:
    boxes = np.array([[0, 5, 9, 5]] * 3, np.float32)
    kept, number = box_nms(boxes, np.array([1, 2, 2], np.float32), np.ones(3, bool), 0.0)
    assert kept[:number].tolist() == [1, 2, 0]
