"""Which mask SAM 2 takes for a clear prompt: mask 0 where it is stable, else the best of the others."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_model import SAM2
from stable_masks import ALL, CASES, IOU, SIDE, TAKEN

from sam_jax import select_masks
from sam_jax.config import SamConfig
from sam_jax.decoder.mask_decoder import DecoderOutput
from sam_jax.decoder.model import MaskPrediction, prediction_of, single_mask

CONFIG = SamConfig(**SAM2)


def prediction(masks: np.ndarray, iou: np.ndarray, valid: np.ndarray | None = None) -> MaskPrediction:
    """What the model makes of a decoder's output."""
    valid = np.ones(len(masks), bool) if valid is None else valid
    out = DecoderOutput(jnp.asarray(masks), jnp.asarray(iou), jnp.zeros(len(masks)), None)
    return prediction_of(CONFIG, out, jnp.asarray(valid))


def scores(number: int = len(CASES)) -> np.ndarray:
    return np.tile(IOU, (number, 1))


@pytest.mark.parametrize("case", CASES)
def test_one_prompt_set(case):
    masks, index = CASES[case]
    assert single_mask(jnp.asarray(masks), jnp.asarray(IOU)) == index


@pytest.mark.parametrize("compile", [lambda function: function, jax.jit], ids=["eager", "jit"])
def test_several_prompt_sets_in_one_call(compile):
    """Each set is judged on its own, and has the score of the mask that it takes."""
    out = compile(prediction)(ALL, scores())
    np.testing.assert_array_equal(out.single, TAKEN)
    taken, iou = compile(functools.partial(select_masks, multimask=False))(out)
    assert taken.shape == (len(CASES), 1, SIDE, SIDE)
    np.testing.assert_array_equal(taken[:, 0], ALL[np.arange(len(CASES)), TAKEN])
    np.testing.assert_array_equal(iou[:, 0], scores()[0][TAKEN])


def test_axes_of_images_and_of_prompt_sets():
    twice = jnp.stack([ALL, ALL[::-1]])
    np.testing.assert_array_equal(single_mask(twice, jnp.asarray([scores()] * 2)), np.stack([TAKEN, TAKEN[::-1]]))


def test_the_scores_of_each_set_say_which_is_best():
    iou = np.float32([[0.9, 0.2, 0.7, 0.5], [0.9, 0.3, 0.1, 0.4], [0.9, 0.6, 0.1, 0.4], [0.9, 0.6, 0.6, 0.6]])
    unstable = np.stack([CASES["unstable"][0]] * 4)
    np.testing.assert_array_equal(prediction(unstable, iou).single, [2, 3, 1, 1])


def test_multimask_outputs_are_what_they_are():
    out = prediction(ALL, scores())
    masks, iou = select_masks(out, multimask=True)
    np.testing.assert_array_equal(masks, ALL[:, 1:])
    np.testing.assert_array_equal(iou, scores()[:, 1:])


def test_padding_changes_nothing():
    """A set that is padding has scores of minus infinity; the others take the masks that they took without it."""
    valid = np.arange(len(CASES)) % 3 > 0
    out = prediction(ALL, scores(), valid)
    np.testing.assert_array_equal(np.asarray(out.single)[valid], TAKEN[valid])
    assert np.isneginf(select_masks(out, multimask=False)[1][~valid]).all()


def test_stability_is_that_of_mask_0_before_the_hq_mask_is_added():
    """In HQ-SAM 2. The HQ mask makes each of these stable."""
    out = DecoderOutput(*(jnp.asarray(x) for x in (ALL, scores(), scores()[:, 0], np.full_like(ALL[:, 0], 9))))
    config = SamConfig(**SAM2, hq=True)
    together = prediction_of(config, out, jnp.ones(len(CASES), bool))
    np.testing.assert_array_equal(together.single, TAKEN)
    assert together.hq is None
    np.testing.assert_array_equal(together.logits, ALL + 9)


def test_other_families_always_take_mask_0():
    out = DecoderOutput(jnp.asarray(ALL), jnp.asarray(scores()), None, None)
    plain = prediction_of(SamConfig(), out, jnp.ones(len(CASES), bool))
    assert plain.single is None
    np.testing.assert_array_equal(select_masks(plain, multimask=False)[0][:, 0], ALL[:, 0])
