import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_run import MODEL, random_batch

from sam_jax.prompts import BACKGROUND, EMPTY, FOREGROUND, NOT_A_POINT
from sam_jax.train.config import Simulation
from sam_jax.train.user.simulate import (
    error_click,
    first_prompt,
    has_click,
    jittered_box,
    next_prompts,
    point_in_pixel,
    start,
    uniform_pixel,
    with_slots,
)

CONFIG = MODEL.config  # frames of 96 pixels, masks of 24: a low-res pixel covers 4
SIZE = jnp.array([72, 96])
KEYS = jax.random.split(jax.random.key(0), 2000)


def disc(row: float = 8, column: float = 12, radius: float = 4) -> jax.Array:
    rows, columns = np.mgrid[:24, :24]
    return jnp.asarray(np.hypot(rows - row, columns - column) < radius)


def drawn(function, *arguments):
    """The function's results for many keys."""
    return jax.tree.map(np.asarray, jax.jit(jax.vmap(lambda key: function(key, *arguments)))(KEYS))


def pixels(points) -> np.ndarray:
    """The low-res pixels (x, y) that points are in."""
    return np.floor((points + 0.5) / 4).astype(int)


def test_every_pixel_of_a_region_has_the_same_chance():
    region = np.zeros((24, 24), bool)
    region[[0, 3, 3, 23, 23], [5, 0, 23, 1, 2]] = True
    x, y = drawn(uniform_pixel, jnp.asarray(region)).T
    counts = np.zeros((24, 24), int)
    np.add.at(counts, (y, x), 1)
    assert counts[~region].sum() == 0
    deviation = np.sqrt(len(KEYS) * 0.2 * 0.8)
    assert (np.abs(counts[region] - len(KEYS) / 5) < 4 * deviation).all()


def test_an_empty_region_has_the_first_pixel():
    assert uniform_pixel(KEYS[0], jnp.zeros((24, 24), bool)).tolist() == [0, 0]


def test_points_fill_their_pixel():
    points = drawn(point_in_pixel, jnp.array([5, 2]), jnp.array([4.0, 4.0]))
    assert (pixels(points) == [5, 2]).all()
    np.testing.assert_allclose(points.mean(0), [5 * 4 + 1.5, 2 * 4 + 1.5], atol=0.15)
    assert np.ptp(points, 0).min() > 3.9


def test_a_box_without_noise_goes_from_the_first_to_the_last_pixel():
    target = jnp.zeros((24, 24), bool).at[3:7, 10:11].set(True)
    box = jittered_box(KEYS[0], target, SIZE, CONFIG, Simulation(box_noise=0.0))
    assert box.tolist() == [40, 12, 43, 27]


def test_prompts_are_as_fine_as_their_targets():
    target = jnp.zeros((96, 96), bool).at[13:30, 41:44].set(True)  # pixels of the input frame
    box = jittered_box(KEYS[0], target, SIZE, CONFIG, Simulation(box_noise=0.0))
    assert box.tolist() == [41, 13, 43, 29]
    points, _ = drawn(error_click, target, jnp.zeros_like(target), jnp.ones_like(target), CONFIG)
    x, y = np.round(points).astype(int).T
    assert np.asarray(target)[y, x].all()
    assert set(x) == {41, 42, 43}


def test_a_mask_is_wrong_where_it_is_at_the_targets_resolution():
    """A low-res edge half a pixel off is seen in targets of twice the resolution."""
    simulation, columns = Simulation(clicks=1, refinements=False), np.arange(48)
    target = jnp.asarray(np.broadcast_to(columns < 25, (1, 1, 48, 48)))
    logits = jnp.asarray(np.broadcast_to(np.where(np.arange(24) < 12, 1.0, -1.0), (1, 1, 24, 24)))
    keys = jax.random.split(KEYS[0], (1, 1))
    first = start(keys, target, np.ones((1, 1), bool), jnp.array([[96, 96]]), CONFIG, simulation)
    prompts = with_slots(first, CONFIG, simulation)
    after = next_prompts(keys, jnp.array(1), prompts, logits, target, jnp.ones((1, 48, 48), bool), CONFIG, simulation)
    assert after.labels[0, 0, 2] == FOREGROUND
    assert 24 * 2 <= after.coordinates[0, 0, 2, 0] + 0.5 < 25 * 2
    np.testing.assert_array_equal(after.masks, logits)


def test_a_box_s_noise_is_a_tenth_of_its_side():
    target = jnp.zeros((24, 24), bool).at[4:8, 6:16].set(True)  # 40 pixels wide, 16 high
    boxes = drawn(jittered_box, target, SIZE, CONFIG, Simulation(box_noise_limit=1.0))
    np.testing.assert_allclose(boxes.std(0), [4, 1.6, 4, 1.6], rtol=0.1)
    np.testing.assert_allclose(boxes.mean(0), [24, 16, 63, 31], atol=0.4)


def test_a_box_s_noise_is_limited_and_stays_in_the_image():
    simulation = Simulation(box_noise=1.0)
    target = jnp.zeros((24, 24), bool).at[0:18, 6:16].set(True)
    boxes = drawn(jittered_box, target, SIZE, CONFIG, simulation)
    limit = 20 / 1024 * 96
    assert np.abs(boxes - [24, 0, 63, 71]).max() <= limit + 1e-4
    assert boxes[:, 1].min() == 0
    assert boxes[:, 3].max() == 71
    assert (boxes[:, :2] <= boxes[:, 2:]).all()


def test_clicks_are_foreground_where_the_object_is_missed_and_background_where_it_is_exceeded():
    target, mask, inside = disc(column=10), disc(column=14), jnp.ones((24, 24), bool)
    points, labels = drawn(error_click, target, mask, inside, CONFIG)
    x, y = pixels(points).T
    assert (np.asarray(target)[y, x] != np.asarray(mask)[y, x]).all()
    assert (labels == np.where(np.asarray(target)[y, x], FOREGROUND, BACKGROUND)).all()
    assert set(labels.tolist()) == {FOREGROUND, BACKGROUND}


def test_nobody_clicks_on_padding():
    inside = jnp.ones((24, 24), bool).at[18:].set(False)
    points, labels = drawn(error_click, disc(), jnp.ones((24, 24), bool), inside, CONFIG)
    assert points[:, 1].max() < 72
    assert (labels == BACKGROUND).all()


def test_where_nothing_is_wrong_the_click_is_in_the_object():
    points, labels = drawn(error_click, disc(), disc(), jnp.ones((24, 24), bool), CONFIG)
    x, y = pixels(points).T
    assert np.asarray(disc())[y, x].all()
    assert (labels == FOREGROUND).all()


def test_half_of_the_first_prompts_are_boxes():
    coordinates, labels = drawn(first_prompt, disc(), SIZE, CONFIG)
    is_box = (labels == [2, 3]).all(1)
    assert (labels[~is_box] == [FOREGROUND, NOT_A_POINT]).all()
    assert abs(is_box.mean() - 0.5) < 0.05
    x, y = pixels(coordinates[~is_box, 0]).T
    assert np.asarray(disc())[y, x].all()


@pytest.mark.parametrize("boxes", [0.0, 1.0])
def test_first_prompts_can_all_be_of_one_kind(boxes):
    _, labels = drawn(first_prompt, disc(), SIZE, CONFIG, Simulation(boxes=boxes))
    assert (labels[:, 0] == (2 if boxes else FOREGROUND)).all()


def test_the_paper_s_eleven_rounds():
    simulation = Simulation()
    assert simulation.rounds == 11
    rounds = jnp.arange(1, 11)
    clicks = drawn(lambda key: jax.vmap(lambda index: has_click(key, index, simulation))(rounds))
    assert (clicks.sum(1) == 8).all()
    assert not clicks[:, -1].any()
    pauses = (~clicks[:, :-1]).argmax(1) + 1
    counts = np.bincount(pauses, minlength=10)
    assert counts[0] == counts[9] == 0  # a click follows the pause
    assert (np.abs(counts[1:9] - len(KEYS) / 8) < 5 * np.sqrt(len(KEYS) / 8)).all()


def test_without_refinements_every_round_has_a_click():
    assert Simulation(clicks=3, refinements=False).rounds == 4
    assert has_click(KEYS[0], 3, Simulation(clicks=3, refinements=False))


def test_prompts_grow_round_by_round_in_one_shape():
    simulation, batch = Simulation(clicks=2), random_batch()
    inside, shown = jnp.asarray(batch.targets >= 0.5), jnp.asarray(batch.weight >= 0.5)
    keys, logits = jax.random.split(jax.random.key(1), (2, 2)), jnp.where(inside, -1.5, 2.5)
    begin = jax.jit(functools.partial(start, config=CONFIG, simulation=simulation))
    first = begin(keys, inside, batch.valid, batch.input_size)
    assert first.masks is None
    prompts = with_slots(first, CONFIG, simulation)
    grow = jax.jit(functools.partial(next_prompts, config=CONFIG, simulation=simulation))
    for index in range(1, simulation.rounds):
        before, prompts = prompts, grow(keys, index, prompts, logits, inside, shown)
        old = np.arange(prompts.labels.shape[-1]) <= index
        assert (prompts.labels[..., old] == before.labels[..., old]).all()
        assert (prompts.coordinates[..., old, :] == before.coordinates[..., old, :]).all()
        assert (prompts.masks == logits).all()
        assert prompts.has_mask.all()
    assert prompts.labels.shape == (2, 2, 2 + simulation.rounds - 1)
    assert ((prompts.labels[..., 2:] != EMPTY).sum(-1) == 2).all()
    assert (prompts.labels[..., :2] == first.labels).all()
