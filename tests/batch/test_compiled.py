import dataclasses
from typing import Any

import jax
import numpy as np
import pytest
from random_model import MODEL, SEVERAL_MAPS, family_model, random_embedding, random_features, random_variables

import sam_jax
from sam_jax import Prompts, Sizes, predict_masks
from sam_jax.decoder.features import maps_of

VARIABLES = random_variables()


def test_requests_compile_nothing_and_padding_comes_back_marked() -> None:
    service = sam_jax.compile(MODEL, VARIABLES, sizes=Sizes(tokens=(4,), prompt_sets=(1, 4)))
    prompts = Prompts.build(boxes=np.tile([0.0, 0, 50, 60], (3, 1)))
    embedding = np.asarray(random_embedding())
    want = predict_masks(MODEL, VARIABLES, embedding, prompts)
    compiled = []

    def count(event: str, seconds: float, **_: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(count)
    out = service(VARIABLES, embedding, prompts)
    again = service(VARIABLES, embedding, Prompts.build(points=[[[5, 5]]], labels=[[1]]))
    jax.block_until_ready((out, again))
    assert not compiled
    np.testing.assert_allclose(out.logits[:3], want.logits, atol=1e-6 * float(np.abs(want.logits).max()))
    assert out.valid.tolist() == [True, True, True, False]
    assert (out.iou[3] == -np.inf).all()
    assert again.valid.shape == (1,)


def test_images_and_mask_prompts() -> None:
    service = sam_jax.compile(
        MODEL, VARIABLES, sizes=Sizes(tokens=(2,), prompt_sets=(1,), images=(2,)), images=True, masks=True
    )
    mask = np.random.default_rng(0).normal(size=(2, 1, *MODEL.config.mask_size)).astype(np.float32)
    embeddings = random_embedding(2)
    for prompts in (Prompts.build(masks=mask), Prompts.build(boxes=np.ones((2, 1, 4)), images=True)):
        want = predict_masks(MODEL, VARIABLES, embeddings, prompts, sizes=service.sizes)
        out = service(VARIABLES, embeddings, prompts)
        np.testing.assert_array_equal(out.logits, want.logits)


def test_what_was_not_compiled_is_an_error() -> None:
    service = sam_jax.compile(MODEL, VARIABLES, sizes=Sizes(tokens=(2,), prompt_sets=(1,)))
    with pytest.raises(ValueError, match=r"No program was compiled for .*\[2, 2\] without.*compiled are \[1, 2\]"):
        service(VARIABLES, random_embedding(), Prompts.build(boxes=np.ones((2, 4))))
    with pytest.raises(ValueError, match="with mask prompts; compiled are none"):
        service(VARIABLES, random_embedding(), Prompts.build(masks=np.full((1, 32, 32), -2.0)))


def test_the_best_mask_of_a_padded_result() -> None:
    prompts = Prompts.build(points=np.full((3, 1, 2), 40.0), labels=np.ones((3, 1), int))
    sizes = Sizes(tokens=(2,), prompt_sets=(4,))
    out = sam_jax.compile(MODEL, VARIABLES, sizes=sizes)(VARIABLES, random_embedding(), prompts)
    masks, scores = sam_jax.best_masks(out, prompts)
    want, _ = sam_jax.best_masks(predict_masks(MODEL, VARIABLES, random_embedding(), prompts, sizes=sizes), prompts)
    assert masks.shape[0] == scores.shape[0] == 4
    np.testing.assert_allclose(masks[:3], want, atol=1e-6 * float(np.abs(want).max()))
    with pytest.raises(ValueError, match=r"must be of these prompts.*got \[4\] prompt sets for prompts of \[5\]"):
        sam_jax.best_masks(out, prompts.pad(2, 5))


def test_prepared_images_and_one_mask_each() -> None:
    image = sam_jax.prepare_image(MODEL, VARIABLES, random_embedding())
    prompts = Prompts.build(points=np.full((1, 1, 2), 40.0), labels=np.ones((1, 1), int))
    sizes = Sizes(tokens=(2,), prompt_sets=(1,))
    service = sam_jax.compile(MODEL, VARIABLES, sizes=sizes, prepared=True, best=True)
    out = service(VARIABLES, image, prompts)
    want = predict_masks(MODEL, VARIABLES, image, prompts, sizes=sizes, best=True)
    np.testing.assert_array_equal(out.logits, want.logits)
    assert out.iou.shape == (1, 1)
    with pytest.raises(ValueError, match=r"without mask prompts; compiled are none"):
        service(VARIABLES, random_embedding(), prompts)
    with pytest.raises(ValueError, match=r"embedding must be float32.*got .*bfloat16"):
        service(VARIABLES, random_embedding().astype("bfloat16"), prompts)


@pytest.mark.parametrize("family", SEVERAL_MAPS)
def test_all_maps_go_in_and_all_outputs_come_out(family: str) -> None:
    model = family_model(family)
    variables, features = random_variables(model), random_features(model=model)
    sizes = Sizes(tokens=(2,), prompt_sets=(1,))
    service = sam_jax.compile(model, variables, sizes=sizes)
    prompts = Prompts.build(boxes=np.array([[5.0, 6, 70, 80]]))
    out = service(variables, features, prompts)
    jax.tree.map(np.testing.assert_array_equal, out, predict_masks(model, variables, features, prompts, sizes=sizes))
    last = list(maps_of(features))[-1]
    other = dataclasses.replace(features, **{last: maps_of(features)[last].astype("bfloat16")})
    with pytest.raises(ValueError, match=rf"{last} must be float32.*got .*bfloat16"):
        service(variables, other, prompts)
