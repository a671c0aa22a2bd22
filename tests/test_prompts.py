from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sam_jax import Prompts


def test_clicks_without_a_box_are_followed_by_one_not_a_point() -> None:
    prompts = Prompts.build(points=[[[3, 4]]], labels=[[1]])
    np.testing.assert_array_equal(prompts.labels, [[1, -1]])
    np.testing.assert_array_equal(prompts.coordinates, [[[3, 4], [0, 0]]])


def test_the_rule_holds_for_each_prompt_set_on_its_own() -> None:
    prompts = Prompts.build(
        points=[[[3, 4]], [[5, 6], [7, 8]], None, [], None],
        labels=[[1], [0, 1], None, [], None],
        boxes=[None, [1, 2, 3, 4], [1, 2, 3, 4], None, [[1, 2, 3, 4], [5, 6, 7, 8]]],
    )
    np.testing.assert_array_equal(
        prompts.labels, [[1, -1, -2, -2], [0, 1, 2, 3], [2, 3, -2, -2], [-2, -2, -2, -2], [2, 3, 2, 3]]
    )
    np.testing.assert_array_equal(prompts.coordinates[4], [[1, 2], [3, 4], [5, 6], [7, 8]])
    assert prompts.valid.all()


def test_box_corners_given_as_labels_are_a_box() -> None:
    prompts = Prompts.build(points=[[[1, 2], [3, 4]]], labels=[[2, 3]])
    np.testing.assert_array_equal(prompts.labels, [[2, 3]])


def test_a_mask_alone_has_no_tokens() -> None:
    mask = np.linspace(-5, 5, 64, dtype=np.float32).reshape(8, 8)
    prompts = Prompts.build(masks=[None, mask])
    assert prompts.labels.shape == (2, 0)
    np.testing.assert_array_equal(prompts.has_mask, [False, True])
    np.testing.assert_array_equal(prompts.masks, [np.zeros((8, 8)), mask])


def test_nothing_is_one_prompt_set_without_tokens() -> None:
    prompts = Prompts.build()
    assert prompts.labels.shape == (1, 0)
    assert prompts.masks is None


@pytest.mark.parametrize("module", [np, jnp])
def test_arrays_and_lists_build_the_same(module: object) -> None:
    rng = np.random.default_rng(0)
    points = rng.uniform(0, 99, (3, 2, 2)).astype(np.float32)
    labels = rng.integers(0, 2, (3, 2))
    boxes = np.sort(rng.uniform(0, 99, (3, 2, 2)), 1).reshape(3, 4).astype(np.float32)
    for given in (
        {"points": points, "labels": labels},
        {"boxes": boxes},
        {"points": points, "labels": labels, "boxes": boxes},
    ):
        from_lists = Prompts.build(**{name: list(value) for name, value in given.items()})
        from_arrays = Prompts.build(**{name: module.asarray(value) for name, value in given.items()})
        jax.tree.map(np.testing.assert_array_equal, from_lists, from_arrays)


def test_empty_slots_in_an_array_stay_empty() -> None:
    labels = np.array([[1, -2], [-2, -2], [0, 1]])
    prompts = Prompts.build(points=np.ones((3, 2, 2)), labels=labels)
    np.testing.assert_array_equal(prompts.labels, [[1, -2, -1], [-2, -2, -2], [0, 1, -1]])


def test_building_inside_jit_equals_building_outside() -> None:
    points, labels = np.ones((2, 3, 2), np.float32), np.array([[1, 0, 1], [1, -2, -2]])
    boxes = np.array([[0, 0, 5, 5], [1, 1, 6, 6]], np.float32)
    for given in ({"points": points, "labels": labels}, {"points": points, "labels": labels, "boxes": boxes}):
        traced = jax.jit(lambda given: Prompts.build(**given))(given)
        jax.tree.map(np.testing.assert_array_equal, traced, Prompts.build(**given))


def test_images_with_different_numbers_of_prompt_sets() -> None:
    prompts = Prompts.build(
        points=[[[[1, 2]], [[3, 4], [5, 6]]], [[[7, 8]]], None], labels=[[[1], [0, 1]], [[1]], None]
    )
    np.testing.assert_array_equal(prompts.valid, [[True, True], [True, False], [False, False]])
    np.testing.assert_array_equal(prompts.labels[1], [[1, -1, -2], [-2, -2, -2]])


def test_boxes_alone_say_whether_they_have_an_image_axis() -> None:
    boxes = np.tile([0.0, 0, 5, 5], (2, 3, 1))
    assert Prompts.build(boxes=boxes).labels.shape == (2, 6)
    assert Prompts.build(boxes=boxes, images=True).labels.shape == (2, 3, 2)
    assert Prompts.build(boxes=boxes.tolist(), images=True).labels.shape == (2, 3, 2)
    assert Prompts.build(boxes=boxes[:, :, None]).labels.shape == (2, 3, 2)


@pytest.mark.parametrize("boxes", [np.ones((1, 32, 4)), jnp.ones((1, 2, 4))])
def test_many_boxes_of_one_prompt_set_are_pointed_out(boxes: Any) -> None:
    with pytest.warns(UserWarning, match=r"boxes \[1, \d+, 4\] are \d+ boxes of one prompt set.*images=True"):
        assert Prompts.build(boxes=boxes).valid.shape == (1,)
    assert Prompts.build(boxes=boxes, images=False).valid.shape == (1,)
    assert Prompts.build(boxes=boxes, images=True).valid.shape == boxes.shape[:2]


def test_pad_adds_only_empty_slots() -> None:
    prompts = Prompts.build(points=[[[3, 4]]], labels=[[1]], masks=[np.full((4, 4), -3.0)])
    padded = prompts.pad(tokens=4, prompt_sets=2)
    np.testing.assert_array_equal(padded.labels, [[1, -1, -2, -2], [-2, -2, -2, -2]])
    np.testing.assert_array_equal(padded.valid, [True, False])
    np.testing.assert_array_equal(padded.has_mask, [True, False])
    np.testing.assert_array_equal(padded.token_mask, padded.labels != -2)


MASK = np.full((1, 4, 4), -3.0)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"points": [[[1, 2]]]}, "points and labels come together, one label per click; got only points"),
        ({"labels": [[1]]}, "got only labels"),
        ({"points": np.zeros((3, 2)), "labels": np.zeros(3)}, r"must be \[prompt set, click, 2\].*shape \(3, 2\)"),
        ({"points": np.zeros((1, 3, 3)), "labels": np.zeros((1, 3))}, r"must be \[prompt set, click, 2\]"),
        ({"points": [[[1, 2, 3]]], "labels": [[1]]}, r"points of prompt set 0 must be \[click, 2\]"),
        ({"points": [[[1, 2], [3]]], "labels": [[1, 1]]}, r"points of prompt set 0 must be \[click, 2\]"),
        ({"points": [[[1, 2]], [[1, 2]]], "labels": [[1], [1, 0]]}, "points of prompt set 1 are 1, labels 2"),
        ({"points": np.zeros((1, 2, 2)), "labels": np.zeros((1, 3))}, "one label per click"),
        ({"points": [[[1, 2]]], "labels": [[7]]}, "labels of prompt set 0 must be 1 .foreground.*got 7"),
        ({"points": np.zeros((1, 1, 2)), "labels": np.array([[-10]])}, "got -10"),
        ({"points": [[[1, 2]]], "labels": [[1], [1]]}, "same number of prompt sets.*points 1, labels 2"),
        ({"boxes": np.zeros((3, 4)), "masks": MASK}, r"one entry per prompt set.*boxes \[3\], masks \[1\]"),
        ({"boxes": [[1, 2, 3]]}, r"boxes of prompt set 0 must be \[4\]"),
        ({"boxes": [[10, 0, 5, 5]]}, "x0 <= x1.*got .10.0, 0.0, 5.0, 5.0"),
        ({"boxes": [[0, 0, np.nan, 5]]}, "must be finite"),
        ({"masks": np.eye(4)[None]}, "must be logits.*mask_to_prompt"),
        ({"masks": [np.eye(4, dtype=bool)]}, "masks of prompt set 0 must be logits"),
        ({"masks": [MASK[0], np.full((5, 4), -3.0)]}, r"same height and width; got \[\(4, 4\), \(5, 4\)\]"),
        ({"points": [[[[1, 2]]], [[[1, 2]]]], "labels": [[[1]]]}, "same number of images.*points 2, labels 1"),
        ({"points": [[[[1, 2]]], [[[1, 2]]]], "labels": [[[1]], [[5]]]}, "labels of image 1, prompt set 0"),
    ],
)
def test_bad_prompts_are_named(given: dict, message: str) -> None:
    with pytest.raises(ValueError, match=f"(?s){message}"):
        Prompts.build(**given)


def test_a_list_of_traced_arrays_is_refused() -> None:
    with pytest.raises(ValueError, match="inside jit, give one array"):
        jax.jit(lambda box: Prompts.build(boxes=[box]))(np.zeros(4))
