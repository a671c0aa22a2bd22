import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_model import MODEL, SEVERAL_MAPS, family_model, random_embedding, random_features, random_variables

from sam_jax import Prompts, best_masks, click, predict_masks, start_clicks

VARIABLES = random_variables()
EMBEDDING = random_embedding()
POINTS = np.array([[[20, 30], [90, 80]], [[40, 50], [60, 70]], [[10, 90], [100, 20]]], np.float32)  # [step, object, 2]
LABELS = np.array([[1, 1], [0, 1], [1, 0]])


def by_hand(target: int) -> list[jax.Array]:
    """The loop as a user would write it with `Prompts.build`, for one object."""
    mask, logits = None, []
    for step in range(len(POINTS)):
        clicks = {"points": [POINTS[: step + 1, target]], "labels": [LABELS[: step + 1, target]]}
        prompts = Prompts.build(**clicks) if mask is None else Prompts.build(**clicks, masks=[np.asarray(mask)])
        out = predict_masks(MODEL, VARIABLES, EMBEDDING, prompts)
        mask = best_masks(out, prompts)[0][0]
        logits.append(out.logits[0])
    return logits


def test_clicks_for_a_batch_equal_the_loop_by_hand_for_each_object() -> None:
    state, seen = start_clicks(MODEL.config, (2,), clicks=3), []
    for points, labels in zip(POINTS, LABELS, strict=True):
        out, state = click(MODEL, VARIABLES, EMBEDDING, state, points, labels)
        seen.append(out.logits)
    for target in range(2):
        for got, want in zip(seen, by_hand(target), strict=True):
            np.testing.assert_allclose(got[target], want, atol=2e-5 * float(jnp.abs(want).max()))


def test_a_session_is_one_scan() -> None:
    def step(state: Prompts, new: tuple[jax.Array, jax.Array]) -> tuple[Prompts, jax.Array]:
        out, state = click(MODEL, VARIABLES, EMBEDDING, state, *new)
        return state, out.logits

    start = start_clicks(MODEL.config, (2,), clicks=3)
    final, logits = jax.jit(lambda *new: jax.lax.scan(step, start, new))(POINTS, LABELS)
    want = by_hand(1)[-1]
    np.testing.assert_allclose(logits[-1, 1], want, atol=2e-5 * float(jnp.abs(want).max()))
    np.testing.assert_array_equal(final.labels[0], [-1, 1, 0, 1])


def test_an_object_without_a_click_keeps_its_slots() -> None:
    state = start_clicks(MODEL.config, (2,), clicks=1)
    _, state = click(MODEL, VARIABLES, EMBEDDING, state, POINTS[0], np.array([1, -2]))
    np.testing.assert_array_equal(state.labels, [[-1, 1], [-1, -2]])


def test_starting_with_boxes() -> None:
    state = start_clicks(MODEL.config, (2,), clicks=1, boxes=np.array([[0, 0, 9, 9], [5, 5, 50, 60]], np.float32))
    np.testing.assert_array_equal(state.labels, [[2, 3, -2], [2, 3, -2]])


def test_no_slot_left_is_an_error() -> None:
    state = start_clicks(MODEL.config, (2,), clicks=1)
    _, state = click(MODEL, VARIABLES, EMBEDDING, state, POINTS[0], LABELS[0])
    with pytest.raises(ValueError, match="No empty slot is left"):
        click(MODEL, VARIABLES, EMBEDDING, state, POINTS[1], LABELS[1])


def test_clicks_alone_add_up_where_a_decoder_takes_no_masks() -> None:
    model = family_model("efficient_sam")
    variables, features = random_variables(model), random_features(model=model)
    state = start_clicks(model.config, (2,), clicks=2)
    for points, labels in zip(POINTS[:2], LABELS[:2], strict=True):
        out, state = click(model, variables, features, state, points, labels)
    assert state.masks is None
    both = Prompts.build(points=np.stack(POINTS[:2], 1), labels=np.stack(LABELS[:2], 1), images=False)
    np.testing.assert_allclose(out.logits, predict_masks(model, variables, features, both).logits, atol=1e-5)


@pytest.mark.parametrize("family", SEVERAL_MAPS)
def test_the_best_masks_of_each_family_go_back(family: str) -> None:
    model = family_model(family)
    variables, features = random_variables(model), random_features(model=model)
    state = start_clicks(model.config, (2,), clicks=1)
    out, after = click(model, variables, features, state, POINTS[0], LABELS[0])
    prompts = dataclasses.replace(after, masks=state.masks, has_mask=state.has_mask)
    jax.tree.map(np.testing.assert_array_equal, out, predict_masks(model, variables, features, prompts))
    best = best_masks(out, prompts)[0]
    np.testing.assert_array_equal(after.masks, np.clip(best, -32, 32) if family == "sam2" else best)
