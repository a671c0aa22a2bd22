"""Drawn scenes: the same for a seed, masks of what is visible, parts in objects in groups."""

import numpy as np
import pytest

from sam_jax.train.data.scenes import HELD_OUT_SEEDS, LARGEST, SMALLEST, Scene, draw_scene
from sam_jax.train.data.shapes import HELD_OUT_CLASSES, OUTLINES, TRAINING_CLASSES, place
from sam_jax.train.data.sources import DrawnScenes

SCENES = [draw_scene(seed) for seed in range(40)]


def test_a_seed_gives_one_scene() -> None:
    again = draw_scene(3)
    np.testing.assert_array_equal(again.image, SCENES[3].image)
    np.testing.assert_array_equal(again.masks, SCENES[3].masks)
    assert not np.array_equal(SCENES[3].image, SCENES[4].image)


@pytest.mark.parametrize("size", [(128, 128), (40, 90)])
def test_shapes_and_types(size: tuple[int, int]) -> None:
    scene = draw_scene(1, size)
    number = len(scene.kinds)
    assert (scene.image.shape, scene.image.dtype) == ((*size, 3), np.uint8)
    assert (scene.masks.shape, scene.masks.dtype) == ((number, *size), bool)
    assert len(scene.classes) == len(scene.parents) == number > 0


def test_masks_are_neither_tiny_nor_everything() -> None:
    shares = np.concatenate([scene.masks.mean((1, 2)) for scene in SCENES])
    assert shares.min() >= SMALLEST
    assert shares.max() <= LARGEST
    assert 0.01 < np.median(shares) < 0.1


def test_what_has_a_parent_is_in_it() -> None:
    kinds = {"part": "object", "object": "group"}
    for scene in SCENES:
        for mask, kind, parent in zip(scene.masks, scene.kinds, scene.parents, strict=True):
            if parent >= 0:
                assert kinds[kind] == scene.kinds[parent]
                assert not (mask & ~scene.masks[parent]).any()
                assert mask.sum() < scene.masks[parent].sum()


def test_things_of_one_kind_do_not_overlap() -> None:
    for scene in SCENES:
        for kind in ("part", "object", "group"):
            same = scene.masks[[k == kind for k in scene.kinds]]
            assert same.sum(0).max(initial=0) <= 1


def test_all_kinds_and_classes_occur() -> None:
    assert {kind for scene in SCENES for kind in scene.kinds} == {"part", "object", "group"}
    assert {name for scene in SCENES for name in scene.classes} == set(TRAINING_CLASSES)


def contrast(scene: Scene, mask: np.ndarray) -> float:
    """Distance between the mean colours of a mask and of the pixels around it."""
    near = np.pad(mask, 2)
    grown = np.any([np.roll(near, (dy, dx), (0, 1)) for dy in range(-2, 3) for dx in range(-2, 3)], 0)[2:-2, 2:-2]
    return float(np.linalg.norm(scene.image[mask].mean(0) - scene.image[grown & ~mask].mean(0)))


def test_most_objects_differ_from_what_is_around_them() -> None:
    found = [
        contrast(scene, mask)
        for scene in SCENES
        for mask, kind in zip(scene.masks, scene.kinds, strict=True)
        if kind != "group"
    ]
    assert np.mean(np.array(found) > 40) > 0.75


def test_training_and_held_out_seeds_and_classes_are_apart() -> None:
    training, held_out = DrawnScenes(5), DrawnScenes(len(HELD_OUT_SEEDS), held_out=True)
    assert training[0].name == f"scene_{HELD_OUT_SEEDS.stop}"
    assert held_out[0].name == "scene_0"
    assert held_out[len(held_out) - 1].name == f"scene_{HELD_OUT_SEEDS[-1]}"
    assert not set(TRAINING_CLASSES) & set(HELD_OUT_CLASSES)
    assert set(OUTLINES) == {*TRAINING_CLASSES, *HELD_OUT_CLASSES}


def test_only_the_classes_asked_for_are_drawn() -> None:
    assert {name for seed in range(5) for name in draw_scene(seed, classes=("ring",)).classes} == {"ring"}


def test_a_ring_has_a_hole() -> None:
    whole = [draw_scene(seed, classes=("ring",)) for seed in range(20)]
    holes = 0
    for scene in whole:
        for mask, kind in zip(scene.masks, scene.kinds, strict=True):
            y, x = np.argwhere(mask).mean(0).round().astype(int)
            holes += kind == "object" and not mask[y, x]
    assert holes >= 10


@pytest.mark.parametrize("name", OUTLINES)
def test_outlines_are_about_two_across(name: str) -> None:
    spans = [np.ptp(OUTLINES[name](np.random.default_rng(seed)), axis=0).max() for seed in range(20)]
    assert min(spans) > 1
    assert max(spans) < 2.6


def test_placing_turns_scales_and_moves() -> None:
    np.testing.assert_allclose(place(np.array([[1.0, 0.0]]), (10, 20), 3, np.pi / 2), [[10, 23]], atol=1e-12)


def test_an_unknown_class_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"classes must be some of ellipse, .*, got banana\."):
        draw_scene(0, classes=("banana",))


def test_too_many_held_out_scenes_is_an_error() -> None:
    with pytest.raises(ValueError, match="at most 100000 where they are held out; got 100001"):
        DrawnScenes(100_001, held_out=True)
