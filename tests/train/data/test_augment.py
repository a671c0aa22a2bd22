"""Images that change: their masks change with them, and a seed gives the same again."""

import numpy as np
import pytest
from small_run import MODEL

from sam_jax.train.config import Augmentation
from sam_jax.train.data.augment import augmented
from sam_jax.train.data.batches import batches, make_item
from sam_jax.train.data.examples import Example
from sam_jax.train.data.sources import DrawnScenes

MASKS = np.random.default_rng(0).uniform(size=(3, 20, 30)) < 0.4
EXAMPLE = Example((60 + 40 * MASKS.transpose(1, 2, 0)).astype(np.uint8), MASKS, "x")  # masks are channels


def many(augmentation: Augmentation) -> list[Example]:
    return [augmented(EXAMPLE, np.random.default_rng(seed), augmentation) for seed in range(60)]


@pytest.mark.parametrize(
    ("augmentation", "kinds"),
    [
        (Augmentation(), 1),
        (Augmentation(flips=True), 4),
        (Augmentation(turns=True), 4),
        (Augmentation(flips=True, turns=True), 8),
    ],
)
def test_masks_go_with_their_image(augmentation: Augmentation, kinds: int) -> None:
    changed = many(augmentation)
    for example in changed:
        np.testing.assert_array_equal(example.image == 100, example.masks.transpose(1, 2, 0))
        assert example.masks.sum() == MASKS.sum()
    assert len({example.image.tobytes() + bytes(example.image.shape) for example in changed}) == kinds


def test_brightness_and_contrast_change_the_image_alone() -> None:
    mean = EXAMPLE.image.mean()
    shifts = [example.image.mean() - mean for example in many(Augmentation(brightness=0.1))]
    assert -26 < min(shifts) < -20
    assert 20 < max(shifts) < 26
    spreads = [np.ptp(example.image) for example in many(Augmentation(contrast=0.5))]
    assert 20 <= min(spreads) < 24
    assert 56 < max(spreads) <= 61
    for example in many(Augmentation(brightness=0.1, contrast=0.5)):
        np.testing.assert_array_equal(example.masks, MASKS)


def test_what_is_left_open_is_on_or_off() -> None:
    assert Augmentation().or_default(True) == Augmentation(True, True, 0.2, 0.2)
    assert not Augmentation().or_default(False).is_on
    assert Augmentation(turns=False, contrast=0.0).or_default(True) == Augmentation(True, False, 0.2, 0.0)
    assert Augmentation(flips=True).or_default(False) == Augmentation(True, False, 0.0, 0.0)
    with pytest.raises(ValueError, match="brightness must be a share from 0 to below 1, got 1"):
        Augmentation(brightness=1.0)


def test_batches_change_by_their_seed() -> None:
    scenes, on = DrawnScenes(4), Augmentation(True, True, 0.2, 0.2)

    def first(augmentation: Augmentation) -> np.ndarray:
        return np.asarray(next(batches(scenes, MODEL.config, images=2, objects=2, augmentation=augmentation)).images)

    np.testing.assert_array_equal(first(on), first(on))
    assert (first(on) != first(Augmentation())).any()


def test_targets_are_those_of_the_changed_image() -> None:
    sizes = set()
    for seed in range(8):
        rng = np.random.default_rng(seed)
        item = make_item(EXAMPLE, rng, config=MODEL.config, objects=3, augmentation=Augmentation(turns=True))
        sizes.add(tuple(item.input_size.tolist()))
        assert item.images.shape == (96, 96, 3)
    assert sizes == {(64, 96), (96, 64)}
