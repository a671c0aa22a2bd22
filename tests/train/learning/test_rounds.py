import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_run import MODEL, random_batch

from sam_jax.decoder.model import MaskPrediction
from sam_jax.train.config import LossConfig, Simulation
from sam_jax.train.learning.losses import class_losses, object_losses, total_loss
from sam_jax.train.learning.rounds import class_gradients, given_on, interactive_gradients

LOSS = LossConfig(iou=0.5)
BATCH = random_batch()
KEYS = jax.random.split(jax.random.key(0), BATCH.valid.shape)


def constant(trained, prompts):
    """A decoder that does not look at its prompts."""
    return MaskPrediction(trained["logits"], trained["iou"], prompts.valid)


def trained(rng):
    return {"logits": jnp.asarray(rng(2, 2, 4, 24, 24)), "iou": jnp.asarray(rng(2, 2, 4))}


def finer(scale):
    """The batch with `scale` pixels along each side of a low-res pixel."""
    targets, weight = (x.repeat(scale, -1).repeat(scale, -2) for x in (BATCH.targets, BATCH.weight))
    return dataclasses.replace(BATCH, targets=targets, weight=weight)


def plain_loss(trained, first, batch=BATCH):
    prediction = MaskPrediction(trained["logits"], trained["iou"], batch.valid)
    terms = object_losses(prediction, batch.targets, batch.weight[:, None], ambiguous=first, config=LOSS)
    return total_loss(terms, batch.valid, 4, 0.5, LOSS)[0]


def play(decode, values, simulation, batch=BATCH):
    run = functools.partial(
        interactive_gradients, decode, config=MODEL.config, simulation=simulation, loss=LOSS, iou_weight=0.5
    )
    return jax.jit(run)(values, batch, KEYS)


@pytest.mark.parametrize("scale", [1, 2])
def test_gradients_are_those_of_the_mean_loss_over_the_rounds(scale, rng):
    values, simulation, batch = trained(rng), Simulation(clicks=2), finer(scale)
    metrics, gradient = play(constant, values, simulation, batch)

    def mean_loss(values):
        return (plain_loss(values, True, batch) + 4 * plain_loss(values, False, batch)) / 5

    loss, expected = jax.jit(jax.value_and_grad(mean_loss))(values)
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-7), gradient, expected)


def test_a_single_round_has_its_first_overlap_last(rng):
    values = trained(rng)
    metrics, _ = play(constant, values, Simulation(clicks=0, refinements=False))
    np.testing.assert_allclose(metrics["loss"], jax.jit(plain_loss, static_argnums=1)(values, True), rtol=1e-5)
    assert metrics["first_overlap"] == metrics["last_overlap"] == metrics["overlap"]


def test_masks_and_clicks_of_the_last_round_come_back_as_prompts():
    """A decoder that repeats its mask prompt, and adds the pixels that were clicked on as foreground."""

    def decode(trained, prompts):
        if prompts.masks is None:
            masks = jnp.full((2, 2, 24, 24), -1.0)
        else:
            cells = jnp.floor((prompts.coordinates + 0.5) / 4).astype(int)
            hit = jax.nn.one_hot(cells[..., 1], 24)[..., :, None] * jax.nn.one_hot(cells[..., 0], 24)[..., None, :]
            hit = jnp.where((prompts.labels == 1)[..., None, None], hit, 0).sum(2)
            masks = jnp.where(hit > 0, 1.0, prompts.masks)
        logits = jnp.repeat(masks[:, :, None], 4, 2) + trained
        return MaskPrediction(logits, jnp.zeros((2, 2, 4)), prompts.valid)

    metrics, gradient = play(decode, jnp.zeros(()), Simulation(clicks=6, refinements=False, boxes=0.0))
    assert metrics["first_overlap"] == 0
    # Every click is a new pixel of a missed object, and stays in the mask that is given on.
    expected = np.mean([7 / target.sum() for target in BATCH.targets.reshape(4, 24, 24)])
    np.testing.assert_allclose(metrics["last_overlap"], expected, atol=1 / 60 + 1e-6)
    assert jnp.isfinite(gradient)


def test_the_mask_of_the_highest_score_is_given_on_but_never_mask_0_of_an_ambiguous_prompt(rng):
    logits = jnp.asarray(rng(1, 2, 4, 3, 3))
    out = MaskPrediction(logits, jnp.array([[[9.0, 0.1, 0.3, 0.2], [9.0, 0.5, 0.3, 0.2]]]), jnp.ones((1, 2), bool))
    np.testing.assert_array_equal(given_on(out, True)[0], jnp.stack([logits[0, 0, 2], logits[0, 1, 1]]))
    np.testing.assert_array_equal(given_on(out, False), logits[:, :, 0])


def test_losses_are_divided_by_the_number_of_objects_that_is_given(rng):
    values, simulation = trained(rng), Simulation(clicks=0, refinements=False)
    run = functools.partial(interactive_gradients, constant, config=MODEL.config, simulation=simulation)
    ours, _ = jax.jit(run)(values, BATCH, KEYS)
    twice, _ = jax.jit(functools.partial(run, count=jnp.array(8)))(values, BATCH, KEYS)
    np.testing.assert_allclose(ours["loss"], 2 * twice["loss"], rtol=1e-6)


def test_classes_are_asked_for_once_with_the_whole_image(rng):
    """Three classes on masks 1 to 3, of which the second image has but one."""
    targets = np.concatenate([BATCH.targets, BATCH.targets[:, :1, ::-1]], 1)
    targets[1, 1:] = 0
    batch = dataclasses.replace(BATCH, targets=targets, valid=np.ones((2, 3), bool))
    values = {name: value[:, :1] for name, value in trained(rng).items()}
    asked = []

    def decode(values, prompts):
        asked.append((np.asarray(prompts.coordinates), np.asarray(prompts.labels)))
        return constant(values, prompts)

    loss = dataclasses.replace(LOSS, class_focal=3.0)
    metrics, gradient = class_gradients(decode, values, batch, loss=loss, iou_weight=0.5)

    def mean_loss(values):
        prediction = MaskPrediction(values["logits"][:, 0], values["iou"][:, 0], jnp.ones(2, bool))
        terms = class_losses(prediction, batch.targets, batch.weight)
        return total_loss(terms, batch.valid, 6, 0.5, dataclasses.replace(LOSS, focal=3.0))[0]

    loss, expected = jax.value_and_grad(mean_loss)(values)
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-7), gradient, expected)
    assert not gradient["logits"][:, :, 0].any()  # mask 0 is no class
    ((coordinates, labels),) = asked
    np.testing.assert_array_equal(coordinates, [[[[0, 0], [95, 71]]]] * 2)
    np.testing.assert_array_equal(labels, [[[2, 3]]] * 2)
