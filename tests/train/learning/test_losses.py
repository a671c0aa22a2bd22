import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sam_jax.decoder.model import MaskPrediction
from sam_jax.images.full_size import resize_masks
from sam_jax.train.config import LossConfig
from sam_jax.train.evaluation.metrics import mask_iou
from sam_jax.train.learning.losses import (
    class_losses,
    dice_loss,
    focal_loss,
    focal_map,
    iou_weight_at,
    object_losses,
    total_loss,
)

ONES = np.ones((1, 2))
PLAIN = LossConfig(size_aware=False)


def test_focal_loss_of_a_logit_of_zero():
    logits, targets = jnp.zeros((1, 2)), jnp.array([[1.0, 0.0]])
    # (1/4 or 3/4) (1 - 1/2)^2 log 2
    np.testing.assert_allclose(focal_map(logits, targets), [[np.log(2) / 16, 3 * np.log(2) / 16]], rtol=1e-6)
    np.testing.assert_allclose(focal_loss(logits, targets, ONES), np.log(2) / 8, rtol=1e-6)


def test_focal_loss_is_its_formula_in_float64(rng):
    logits, targets = 4 * rng(3, 5, 7), (rng(3, 5, 7) > 0).astype(np.float32)
    p = 1 / (1 + np.exp(-logits.astype(np.float64)))
    expected = np.where(targets == 1, -0.25 * (1 - p) ** 2 * np.log(p), -0.75 * p**2 * np.log(1 - p))
    np.testing.assert_allclose(focal_map(logits, targets), expected, rtol=2e-5, atol=1e-9)
    np.testing.assert_allclose(focal_loss(logits, targets, np.ones_like(targets)), expected.mean((1, 2)), rtol=1e-5)


def test_focal_loss_is_finite_for_any_logit():
    logits = jnp.array([[-1e4, 1e4, -80.0, 80.0]])
    gradient = jax.jit(jax.grad(lambda x: focal_map(x, jnp.array([[1.0, 0.0, 0.0, 1.0]])).sum()))(logits)
    assert jnp.isfinite(gradient).all()


def test_dice_loss_of_full_empty_and_half_masks():
    targets, sure = jnp.array([[1.0, 1.0, 0.0, 0.0]]), 50 * jnp.array([[1.0, 1.0, -1.0, -1.0]])
    weight = jnp.ones((1, 4))
    np.testing.assert_allclose(dice_loss(sure, targets, weight), 0, atol=1e-6)
    np.testing.assert_allclose(dice_loss(-sure, targets, weight), 1 - 1 / 5, rtol=1e-6)
    half = 50 * jnp.array([[1.0, -1.0, -1.0, -1.0]])
    np.testing.assert_allclose(dice_loss(half, targets, weight), 1 - 3 / 4, rtol=1e-6)
    np.testing.assert_allclose(dice_loss(-50 * weight, 0 * targets, weight), 0, atol=1e-6)


@pytest.mark.parametrize("size_aware", [False, True])
def test_pixels_of_weight_zero_have_no_part(rng, size_aware):
    logits, targets = rng(4, 4), (rng(4, 4) > 0).astype(np.float32)
    weight = np.ones((4, 4), np.float32)
    weight[:, 2:] = 0
    changed = np.where(weight > 0, logits, -logits), np.where(weight > 0, targets, 1 - targets)
    assert dice_loss(logits, targets, weight) == dice_loss(*changed, weight)
    whole = focal_loss(logits, targets, weight, size_aware=size_aware)
    assert whole == focal_loss(*changed, weight, size_aware=size_aware)
    cut = focal_loss(logits[:, :2], targets[:, :2], weight[:, :2], size_aware=size_aware)
    np.testing.assert_allclose(whole, cut, rtol=1e-6)


def test_size_aware_loss_counts_an_unsure_boundary_the_same_for_every_size():
    def loss(side: int, size_aware: bool) -> float:
        targets = np.zeros((64, 64), np.float32)
        targets[16 : 16 + side, 16 : 16 + side] = 1
        boundary = targets - np.pad(targets, 1)[2:, 2:] * np.pad(targets, 1)[:-2, :-2] * targets
        logits = np.where(boundary > 0, 0, 100 * (2 * targets - 1)).astype(np.float32)
        return float(focal_loss(logits, targets, np.ones_like(targets), size_aware=size_aware))

    assert loss(32, False) > 3 * loss(8, False)
    assert loss(32, True) == pytest.approx(loss(8, True), rel=0.15)


def test_size_aware_loss_of_an_object_that_fills_the_image_is_the_mean(rng):
    logits, full = rng(6, 6), np.ones((6, 6), np.float32)
    assert focal_loss(logits, full, full, size_aware=True) == pytest.approx(float(focal_loss(logits, full, full)))


def prediction(logits, iou):
    return MaskPrediction(jnp.asarray(logits), jnp.asarray(iou), jnp.ones(logits.shape[0], bool))


def example():
    """One object in the left half; mask 2 is right, mask 3 is half right, masks 0 and 1 are wrong."""
    targets = np.zeros((1, 4, 4), np.float32)
    targets[:, :, :2] = 1
    right = 2 * targets[0] - 1
    half = np.where(np.arange(4)[:, None] < 2, right, -1)
    return 5 * np.stack([-right, -right, right, half])[None].astype(np.float32), targets


def test_an_ambiguous_prompt_teaches_its_best_mask_alone_and_all_three_scores():
    logits, targets = example()
    scores = jnp.array([[0.9, 0.2, 0.5, 0.6]])

    def loss(logits, scores):
        terms = object_losses(prediction(logits, scores), targets, np.ones((1, 4, 4)), ambiguous=True, config=PLAIN)
        return total_loss(terms, jnp.array([True]), 1, 1.0, PLAIN)[0], terms

    (of_logits, of_scores), terms = jax.jit(jax.grad(loss, (0, 1), has_aux=True))(jnp.asarray(logits), scores)
    assert np.abs(of_logits).sum((2, 3)).astype(bool).tolist() == [[False, False, True, False]]
    # True IoUs are 0, 1 and 1/2.
    np.testing.assert_allclose(terms["iou"], [(0.2**2 + 0.5**2 + 0.1**2) / 3], rtol=1e-6)
    np.testing.assert_allclose(of_scores, [[0, 2 * 0.2 / 3, -2 * 0.5 / 3, 2 * 0.1 / 3]], rtol=1e-5)
    np.testing.assert_allclose(terms["overlap"], [0.5])  # of mask 3, whose score is the highest


def test_a_finer_target_teaches_where_the_edge_is_between_low_res_pixels():
    """Logits of a disc, learned by themselves, give that disc at full resolution; by low-res targets they do not."""
    rows, columns = np.mgrid[:64, :64]
    disc = np.hypot(rows - 30.3, columns - 33.1) < 5.5

    def overlap(scale: int) -> float:
        size = 16 * scale
        target = disc.reshape(1, size, 64 // size, size, 64 // size).mean((2, 4))

        def loss(logits):
            out = prediction(logits, jnp.zeros((1, 4)))
            terms = object_losses(out, target, np.ones((1, size, size)), ambiguous=False, config=LossConfig())
            return 20 * terms["focal"].sum() + terms["dice"].sum()

        optimizer = optax.adam(0.2)

        def step(state, _):
            logits, inner = state
            updates, inner = optimizer.update(jax.grad(loss)(logits), inner)
            return (optax.apply_updates(logits, updates), inner), None

        logits = jnp.full((1, 4, 16, 16), -2.0)
        (logits, _), _ = jax.jit(lambda state: jax.lax.scan(step, state, length=300))((logits, optimizer.init(logits)))
        sizes = {"input_size": (64, 64), "original_size": (64, 64)}
        return float(mask_iou(resize_masks(logits[0, 0], **sizes) > 0, disc))

    assert overlap(1) < 0.9
    assert overlap(4) > 0.97


def test_several_prompts_teach_mask_0_alone():
    logits, targets = example()

    def loss(logits):
        out = prediction(logits, jnp.array([[0.25, 0, 0, 0]]))
        terms = object_losses(out, targets, np.ones((1, 4, 4)), ambiguous=False, config=PLAIN)
        return terms["focal"].sum() + terms["dice"].sum(), terms

    gradient, terms = jax.jit(jax.grad(loss, has_aux=True))(jnp.asarray(logits))
    assert np.abs(gradient).sum((2, 3)).astype(bool).tolist() == [[True, False, False, False]]
    np.testing.assert_allclose(terms["iou"], [0.25**2])


def test_total_is_20_to_1_and_switches_and_leaves_out_padding():
    terms = {name: jnp.array([value, np.nan]) for name, value in (("focal", 0.1), ("dice", 0.5), ("iou", 0.2))}
    terms["overlap"] = jnp.array([0.8, 0.0])
    total, means = total_loss(terms, jnp.array([True, False]), 1, 0.0, LossConfig())
    assert float(total) == pytest.approx(20 * 0.1 + 0.5)
    assert {name: round(float(x), 6) for name, x in means.items()} == {
        "focal": 0.1,
        "dice": 0.5,
        "iou": 0.2,
        "overlap": 0.8,
    }
    assert float(total_loss(terms, jnp.array([True, False]), 4, 2.0, LossConfig())[0]) == pytest.approx(2.9 / 4)


def test_objects_that_are_padding_have_no_gradient_though_their_score_is_minus_infinity():
    logits, targets = example()
    out = MaskPrediction(jnp.asarray(logits), jnp.zeros((1, 4)), jnp.array([False]))

    def loss(logits, scores):
        scored = dataclasses.replace(out, logits=logits, iou=jnp.where(out.valid[:, None], scores, -jnp.inf))
        terms = object_losses(scored, targets, np.ones((1, 4, 4)), ambiguous=True)
        return total_loss(terms, out.valid, 1, 1.0, LossConfig())[0]

    value, gradients = jax.jit(jax.value_and_grad(loss, (0, 1)))(out.logits, out.iou)
    assert value == 0
    assert all(not np.any(gradient) for gradient in gradients)


def test_the_score_s_weight_rises():
    config = LossConfig(iou=2.0, iou_warmup=4)
    assert [float(iou_weight_at(step, config)) for step in (0, 1, 3, 9)] == [0.5, 1.0, 2.0, 2.0]
    assert float(iou_weight_at(0, LossConfig(iou=3.0))) == 3.0


def of_classes(logits, scores):
    """A prediction of one prompt, whose mask 0 nothing depends on."""
    with_first = (jnp.concatenate([jnp.full_like(x[:1], jnp.nan), x]) for x in (logits, scores))
    return MaskPrediction(*with_first, jnp.array(True))


def test_each_class_is_taught_to_its_own_mask(rng):
    logits, scores = jnp.asarray(rng(2, 4, 6)), jnp.array([0.2, 0.7])
    targets, weight = (rng(2, 4, 6) > 0).astype(np.float32), np.ones((4, 6), np.float32)
    terms = class_losses(of_classes(logits, scores), targets, weight)
    for k in range(2):
        focal = focal_loss(logits[k], targets[k], weight)
        np.testing.assert_allclose(terms["focal"][k], focal, rtol=1e-6)
        np.testing.assert_allclose(terms["dice"][k], dice_loss(logits[k], targets[k], weight), rtol=1e-6)
        overlap = mask_iou(logits[k] > 0, targets[k] > 0)
        np.testing.assert_allclose(terms["overlap"][k], overlap, rtol=1e-6)
        np.testing.assert_allclose(terms["iou"][k], (scores[k] - overlap) ** 2, rtol=1e-5)


def test_an_absent_class_is_taught_to_be_empty_and_costs_no_more_than_another():
    side, absent = 64, np.zeros((1, 64, 64), np.float32)
    weight = np.ones((side, side), np.float32)

    def loss(logits):
        terms = class_losses(of_classes(logits, jnp.zeros(1)), absent, weight)
        return 20 * terms["focal"][0] + terms["dice"][0]

    empty, open_, full = (jnp.full((1, side, side), x) for x in (-20.0, 0.0, 20.0))
    np.testing.assert_allclose(loss(empty), 0, atol=1e-4)
    np.testing.assert_allclose(loss(open_), 20 * 3 * np.log(2) / 16 + 1, atol=1e-3)  # as of a mean over pixels
    assert class_losses(of_classes(full, jnp.zeros(1)), absent, weight)["dice"] <= 1
    for logits in (empty, open_, full):
        assert jnp.isfinite(jax.grad(loss)(logits)).all()
    assert (jax.grad(loss)(open_) > 0).all()
