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
    stability_score,
    take_masks,
)


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
