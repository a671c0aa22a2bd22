"""Batches: targets where the image is, nothing on padding; the same order always, resumed, and however it is split."""

import itertools

import jax
import numpy as np
import pytest

from sam_jax import mask_to_prompt
from sam_jax.config import TINY
from sam_jax.images.pixels import EncodedImage
from sam_jax.images.preprocess import prepare
from sam_jax.train.data.batches import Batch, batches, make_item, make_targets
from sam_jax.train.data.examples import Example
from sam_jax.train.data.sources import DrawnScenes

SCENES = DrawnScenes(7, size=(64, 96))


def take(number: int, **arguments: int) -> list[Batch]:
    iterator = batches(SCENES, TINY, **{"images": 2, "objects": 3, "seed": 5} | arguments)
    return list(itertools.islice(iterator, number))


def assert_same(first: list[Batch], second: list[Batch]) -> None:
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_array_equal(a, b)


def test_shapes_and_types() -> None:
    (batch,) = take(1)
    assert (batch.images.shape, batch.images.dtype) == ((2, 128, 128, 3), np.float32)
    assert (batch.targets.shape, batch.targets.dtype) == ((2, 3, 32, 32), np.float32)
    assert (batch.weight.shape, batch.weight.dtype) == ((2, 32, 32), np.float32)
    assert (batch.valid.shape, batch.valid.dtype) == ((2, 3), bool)
    np.testing.assert_array_equal(batch.input_size, [[85, 128]] * 2)
    assert batch.embeddings is None
    (finer,) = take(1, target_scale=2)
    assert (finer.targets.shape, finer.weight.shape) == ((2, 3, 64, 64), (2, 64, 64))


def test_padding_has_no_weight_and_no_target() -> None:
    (batch,) = take(1)
    rows = -(-85 // 4)
    assert not batch.weight[:, rows:].any()
    assert not batch.targets[:, :, rows:].any()
    assert not batch.images[:, 85:].any()
    np.testing.assert_allclose(batch.weight[:, : rows - 1], 1, rtol=1e-6)
    np.testing.assert_allclose(batch.weight[:, rows - 1], 1 / 4, rtol=1e-5)


def test_targets_are_the_share_of_each_pixel() -> None:
    masks = np.zeros((2, 64, 128), bool)
    masks[0, 4:8, 8:14], masks[1] = True, True
    targets, weight = make_targets(masks, (64, 128), TINY)
    wanted = np.zeros((32, 32))
    wanted[1, 2:4] = 1, 0.5
    np.testing.assert_array_equal(targets[0], wanted)
    np.testing.assert_array_equal(targets[1], weight)
    np.testing.assert_array_equal(weight.sum(), 16 * 32)


def test_targets_at_the_frame_s_resolution_are_the_masks() -> None:
    masks = np.random.default_rng(0).random((2, 64, 128)) < 0.5
    targets, weight = make_targets(masks, (64, 128), TINY, 4)
    np.testing.assert_array_equal(targets[:, :64], masks)
    np.testing.assert_array_equal(weight, np.arange(128)[:, None] < 64 * np.ones((1, 128)))
    assert not targets[:, 64:].any()


@pytest.mark.parametrize("size", [(100, 77), (37, 128), (300, 210)])
def test_a_coarser_target_is_the_mean_of_finer_ones(size: tuple[int, int]) -> None:
    masks = np.random.default_rng(0).random((2, *size)) < 0.5
    input_size = prepare(np.zeros((*size, 3), np.uint8), TINY.image_size, "sam")[1]
    (coarse, low), (fine, high) = (make_targets(masks, input_size, TINY, scale) for scale in (1, 2))
    mean = (fine * high).reshape(2, 32, 2, 32, 2).mean((2, 4))
    np.testing.assert_allclose(high.reshape(32, 2, 32, 2).mean((1, 3)), low, atol=1e-6)
    np.testing.assert_allclose(coarse * low, mean, atol=1e-6)


@pytest.mark.parametrize("size", [(100, 77), (37, 128), (300, 210)])
def test_targets_agree_with_mask_prompts(size: tuple[int, int]) -> None:
    masks = np.random.default_rng(0).random((2, *size)) < 0.5
    batch = make_item(
        Example(np.zeros((*size, 3), np.uint8), masks, "noise"), np.random.default_rng(0), config=TINY, objects=2
    )
    height, width = batch.input_size.tolist()
    prompts = mask_to_prompt(masks, input_size=(height, width), mask_size=(32, 32), image_size=(128, 128), logit=0.5)
    found = np.sort(batch.targets * batch.weight, axis=0)
    np.testing.assert_allclose(found, np.sort(np.asarray(prompts) + 0.5, axis=0), atol=1e-5)


def test_an_object_that_fills_the_image_has_every_weighted_pixel() -> None:
    targets, weight = make_targets(np.ones((1, 100, 77), bool), (128, 99), TINY)
    np.testing.assert_allclose(targets[0], weight > 0, atol=1e-6)


def test_missing_and_invisible_objects_are_not_valid() -> None:
    masks = np.zeros((2, 256, 256), bool)
    masks[0, :100, :100], masks[1, 7, 7] = True, True
    example = Example(np.zeros((256, 256, 3), np.uint8), masks, "two")
    item = make_item(example, np.random.default_rng(0), config=TINY, objects=4)
    assert item.valid.sum() == 1
    assert not item.valid[2:].any()
    assert not item.targets[2:].any()


def test_objects_are_drawn_without_repetition() -> None:
    masks = np.zeros((6, 128, 128), bool)
    for i, mask in enumerate(masks):
        mask[20 * i : 20 * i + 16] = True
    example, rng = Example(np.zeros((128, 128, 3), np.uint8), masks, "stripes"), np.random.default_rng(0)
    drawn = [make_item(example, rng, config=TINY, objects=4).targets for _ in range(20)]
    assert all(targets.sum(0).max() <= 1 for targets in drawn)
    assert np.mean(drawn, axis=(0, 1)).any(1).sum() == 6 * 4


def test_an_embedding_takes_the_place_of_the_frame() -> None:
    scene = SCENES[0]
    embedding = np.ones((8, 8, 32), np.float32)
    encoded = EncodedImage(embedding, (128, 100), scene.original_size)
    example = Example(scene.image, scene.masks, scene.name, encoded)
    item = make_item(example, np.random.default_rng(0), config=TINY, objects=1)
    assert item.images is None
    assert item.embeddings is embedding
    np.testing.assert_array_equal(item.input_size, [128, 100])
    np.testing.assert_allclose(item.weight, np.arange(32) < 25 * np.ones((32, 1)), atol=1e-6)


def test_the_frame_is_as_the_encoder_wants_it() -> None:
    item = make_item(SCENES[0], np.random.default_rng(0), config=TINY, objects=1, preprocessing="medsam")
    np.testing.assert_array_equal(item.images, prepare(SCENES[0].image, TINY.image_size, "medsam")[0])
    np.testing.assert_array_equal(item.input_size, TINY.image_size)


def test_the_frame_has_the_encoder_s_size_and_the_prompts_the_decoder_s() -> None:
    item = make_item(SCENES[0], np.random.default_rng(0), config=TINY, objects=1, frame_size=(64, 64))
    np.testing.assert_array_equal(item.images, prepare(SCENES[0].image, (64, 64))[0])
    np.testing.assert_array_equal(item.input_size, prepare(SCENES[0].image, TINY.image_size)[1])


def test_a_seed_gives_one_sequence() -> None:
    assert_same(take(5), take(5))
    assert not np.array_equal(take(1)[0].images, take(1, seed=6)[0].images)


def test_each_epoch_has_every_image_once_in_another_order() -> None:
    seen = [batch.images[0].tobytes() for batch in take(14, images=1)]
    assert len(set(seen[:7])) == 7
    assert set(seen[:7]) == set(seen[7:])
    assert seen[:7] != seen[7:]


@pytest.mark.parametrize("before", [0, 1, 5])
def test_an_iterator_resumes_where_it_was(before: int) -> None:
    first, second = (batches(SCENES, TINY, images=2, objects=3, seed=5) for _ in range(2))
    for _ in range(before):
        next(first)
    second.set_state(first.get_state())
    assert_same([next(first) for _ in range(3)], [next(second) for _ in range(3)])


def test_processes_share_one_sequence() -> None:
    whole = take(3, images=4)
    parts = [take(3, images=4, process=process, processes=2) for process in range(2)]
    for batch, *halves in zip(whole, *parts, strict=True):
        together = jax.tree.map(lambda *x: np.stack(x, 1).reshape(4, *x[0].shape[1:]), *halves)
        assert_same([batch], [together])


def test_workers_change_nothing() -> None:
    iterator = batches(SCENES, TINY, images=2, objects=3, seed=5, workers=1)
    assert_same(take(3), [next(iterator) for _ in range(3)])
    iterator.close()


def test_targets_coarser_than_logits_are_an_error() -> None:
    with pytest.raises(ValueError, match="target_scale must be 1 or more, got 0"):
        take(1, target_scale=0)


def test_images_that_cannot_be_shared_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"images that 2 process\(es\) can share.*got 3 images of 1 objects"):
        take(1, images=3, objects=1, process=0, processes=2)


def test_classes_keep_their_order_and_an_absent_one_is_valid() -> None:
    masks = np.zeros((3, 64, 64), bool)
    masks[0, :20], masks[2, 40:] = True, True
    item = make_item(
        Example(np.zeros((64, 64, 3), np.uint8), masks, "classes"), np.random.default_rng(0), config=TINY, objects=None
    )
    assert item.valid.all()
    np.testing.assert_array_equal(item.targets, make_targets(masks, (128, 128), TINY)[0])
