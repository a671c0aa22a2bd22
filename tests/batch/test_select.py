from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sam_jax import (
    MaskPrediction,
    Prompts,
    best_masks,
    mask_boxes,
    mask_nms,
    select_masks,
    take_masks,
)
from sam_jax.batch.select import Hq
from sam_jax.decoder.stability import stability_score


def prediction(iou: list[list[float]]) -> MaskPrediction:
    """Masks whose every pixel is 10 * prompt set + mask."""
    scores = jnp.array(iou)
    sets, masks = scores.shape
    value = 10.0 * jnp.arange(sets)[:, None] + jnp.arange(masks)
    return MaskPrediction(jnp.broadcast_to(value[..., None, None], (sets, masks, 4, 4)), scores, jnp.ones(sets, bool))


def test_select_masks() -> None:
    out = prediction([[0.9, 0.1, 0.2, 0.3], [0.8, 0.4, 0.5, 0.6]])
    logits, iou = select_masks(out, multimask=True)
    np.testing.assert_array_equal(logits[:, :, 0, 0], [[1, 2, 3], [11, 12, 13]])
    np.testing.assert_array_equal(iou, out.iou[:, 1:])
    logits, iou = select_masks(out, multimask=False)
    np.testing.assert_array_equal(logits[:, :, 0, 0], [[0], [10]])
    np.testing.assert_array_equal(iou, out.iou[:, :1])


HQ_IOU = [[0.9, 0.1, 0.3, 0.2], [0.8, 0.4, 0.4, 0.4], [0.7, 0.1, 0.5, 0.5]]
"""The best multimask output is 2; any, of which the first is taken; 2 or 3, likewise."""


def with_hq(iou: list[list[float]] = HQ_IOU) -> MaskPrediction:
    """The HQ mask of every prompt set is 100 more than its number."""
    out = prediction(iou)
    return out.replace(hq=jnp.broadcast_to(100.0 + jnp.arange(len(iou))[:, None, None], (len(iou), 4, 4)))


@pytest.mark.parametrize(
    ("multimask", "hq", "values", "scores"),
    [
        (True, "add", [102, 112, 124], [0.3, 0.4, 0.5]),
        (True, "only", [100, 101, 102], [0.3, 0.4, 0.5]),
        (False, "add", [100, 111, 122], [0.9, 0.8, 0.7]),
        (False, "only", [100, 101, 102], [0.9, 0.8, 0.7]),
    ],
)
@pytest.mark.parametrize("xp", [np, jnp], ids=["NumPy", "JAX"])
def test_select_masks_of_sam_hq(multimask: bool, hq: Hq, values: list[float], scores: list[float], xp: Any) -> None:
    """One mask, and the score of the one to which the HQ mask is added, or would be."""
    logits, iou = select_masks(jax.tree.map(xp.asarray, with_hq()), multimask, hq=hq)
    assert isinstance(logits, xp.ndarray)
    assert logits.shape == (3, 1, 4, 4)
    np.testing.assert_array_equal(logits[..., 0, 0], np.array(values)[:, None])
    np.testing.assert_allclose(iou, np.array(scores)[:, None])


@pytest.mark.parametrize("multimask", [True, False])
def test_without_the_hq_mask_sam_hq_is_selected_as_sam(multimask: bool) -> None:
    jax.tree.map(
        np.testing.assert_array_equal,
        select_masks(with_hq(), multimask, hq="none"),
        select_masks(prediction(HQ_IOU), multimask),
    )


@pytest.mark.parametrize("hq", ["add", "only", "none"])
@pytest.mark.parametrize("multimask", [True, False])
def test_other_models_have_no_hq_mask_to_choose(multimask: bool, hq: Hq) -> None:
    out = prediction(HQ_IOU)
    jax.tree.map(np.testing.assert_array_equal, select_masks(out, multimask, hq=hq), select_masks(out, multimask))


def test_an_unknown_use_of_the_hq_mask_is_refused(untyped: None) -> None:
    with pytest.raises(ValueError, match="hq must be one of add, only, none, got 'both'"):
        select_masks(with_hq(), hq="both")


def test_best_masks_of_sam_hq_have_its_mask_added() -> None:
    """Two clicks are ambiguous; three are clear. Of equal scores the first counts."""
    prompts = Prompts.build(points=[[[1, 1]] * 2, [[1, 1]] * 2, [[1, 1]] * 3], labels=[[1, 1], [1, 1], [1, 1, 1]])
    logits, iou = best_masks(with_hq(), prompts)
    np.testing.assert_array_equal(logits[:, 0, 0], [102, 112, 122])
    np.testing.assert_allclose(iou, [0.3, 0.4, 0.7])


def test_best_masks_of_sam2_take_another_one_where_mask_0_is_not_stable() -> None:
    out = prediction(HQ_IOU).replace(single=jnp.array([3, 0, 2]))
    prompts = Prompts.build(points=[[[1, 1]] * 3, [[1, 1]] * 3, [[1, 1]]], labels=[[1] * 3, [1] * 3, [1]])
    logits, iou = best_masks(out, prompts)
    np.testing.assert_array_equal(logits[:, 0, 0], [3, 10, 22])
    np.testing.assert_allclose(iou, [0.2, 0.8, 0.5])


def test_best_masks_by_real_prompts_whatever_the_padding() -> None:
    """One click, two clicks and a box are ambiguous; three clicks, or a click and a box, are clear."""
    prompts = Prompts.build(
        points=[[[1, 1]], [[1, 1]] * 2, None, [[1, 1]] * 3, [[1, 1]]],
        labels=[[1], [1, 0], None, [1, 1, 0], [1]],
        boxes=[None, None, [0, 0, 3, 3], None, [0, 0, 3, 3]],
    )
    out = prediction([[0.9, 0.1, 0.3, 0.2]] * 5)
    for padded in (prompts, prompts.pad(16, 5)):
        logits, iou = best_masks(out, padded)
        np.testing.assert_array_equal(logits[:, 0, 0], [2, 12, 22, 30, 40])
        np.testing.assert_allclose(iou, [0.3, 0.3, 0.3, 0.9, 0.9])


def test_take_masks() -> None:
    logits, iou = take_masks(prediction([[0.9, 0.1], [0.8, 0.4]]), jnp.array([1, 0]))
    np.testing.assert_array_equal(logits[:, 0, 0], [1, 10])
    np.testing.assert_allclose(iou, [0.1, 0.8])


def test_stability_score() -> None:
    """2 of 8 pixels above 1, 6 above -1; nothing above -1; everything above 1."""
    logits = jnp.array([[[2, 3, 0.5, 0], [-0.5, 0.9, -2, -3]], [[-5] * 4] * 2, [[5] * 4] * 2])
    np.testing.assert_allclose(stability_score(logits), [2 / 6, 0, 1])
    np.testing.assert_allclose(stability_score(logits, offset=2.5), [1 / 7, 0, 1])
    assert jnp.isfinite(jax.grad(lambda x: stability_score(x).sum())(logits)).all()


def test_mask_boxes() -> None:
    masks = np.zeros((3, 6, 8), bool)
    masks[0, 2:5, 3:7] = True
    masks[1, 5, 7] = True
    np.testing.assert_array_equal(mask_boxes(jnp.asarray(masks)), [[3, 2, 6, 4], [7, 5, 7, 5], [0, 0, 0, 0]])


def test_mask_nms_keeps_the_best_of_each_group() -> None:
    masks = np.zeros((5, 10, 10), bool)
    masks[0, :4] = True
    masks[1, :5] = True  # IoU with mask 0 is 0.8
    masks[2, 6:] = True
    masks[3, 6:, 1:] = True  # IoU with mask 2 is 0.9
    masks[4, 6:] = True
    scores = jnp.array([0.5, 0.9, 0.8, 0.7, -jnp.inf])
    assert mask_nms(jnp.asarray(masks), scores, 0.7).tolist() == [False, True, True, False, False]
    assert mask_nms(jnp.asarray(masks), scores, 0.85).tolist() == [True, True, True, False, False]
    assert mask_nms(jnp.asarray(masks), scores, 0.95).tolist() == [True, True, True, True, False]


def test_mask_nms_is_greedy() -> None:
    """A mask that a removed mask overlaps is kept."""
    masks = jnp.asarray([[[1, 1, 1, 1, 0, 0]], [[0, 1, 1, 1, 1, 0]], [[0, 0, 1, 1, 1, 1]]], bool)
    assert mask_nms(masks, jnp.array([0.9, 0.8, 0.7]), 0.5).tolist() == [True, False, True]


@pytest.mark.parametrize("function", [best_masks, mask_nms, mask_boxes, stability_score])
def test_all_can_be_jitted(function: object) -> None:
    arguments = {
        best_masks: (prediction([[0.9, 0.1]]), Prompts.build(boxes=[[0, 0, 1, 1]])),
        mask_nms: (jnp.ones((2, 3, 3), bool), jnp.array([0.1, 0.2])),
        mask_boxes: (jnp.ones((2, 3, 3), bool),),
        stability_score: (jnp.ones((2, 3, 3)),),
    }[function]
    jax.tree.map(np.testing.assert_array_equal, jax.jit(function)(*arguments), function(*arguments))
