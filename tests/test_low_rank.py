"""What the tables of an image hold, and image tokens of low rank in hard cases."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_model import random_embedding, random_variables

from sam_jax import Prompts, Sam
from sam_jax.config import TINY
from sam_jax.low_rank import LowRankTokens, decode_low_rank, normalised, prepare_image, with_factors

CONFIG = dataclasses.replace(TINY, image_size=(96, 160), grid_size=(3, 5))
MODEL = Sam(CONFIG)
HW, WIDTH, HEADS, INNER = 15, CONFIG.width, CONFIG.heads, CONFIG.width // CONFIG.attention_downsample
VARIABLES = random_variables(MODEL)
PREPARE = jax.jit(functools.partial(prepare_image, MODEL))
DECODE = jax.jit(functools.partial(decode_low_rank, MODEL))


def nothing_yet() -> LowRankTokens:
    return LowRankTokens(None, jnp.ones((1, HW)), jnp.zeros((1, WIDTH)), (), ())


def out_of(block: int) -> Any:
    return VARIABLES["params"]["mask_decoder"]["two_way"][f"block_{block}"]["image_to_token"]["out"]


def test_each_token_but_the_first_is_a_factor_of_each_head(rng: Any) -> None:
    """The first token's attention is what the others leave, so that factors and rows add up to attention and bias."""
    weights = jax.nn.softmax(jnp.asarray(rng(HEADS, 6, HW)), axis=1)
    value = jnp.asarray(rng(HEADS, 6, INNER // HEADS))
    image = with_factors(nothing_yet(), weights, value, out_of(0))
    assert image.factors.shape == (HEADS * 5 + 1, HW)
    gathered = jnp.einsum("hnx,hnd->xhd", weights, value).reshape(HW, INNER)
    want = gathered @ out_of(0)["kernel"] + out_of(0)["bias"]
    np.testing.assert_allclose(image.factors.T @ image.rows, want, atol=1e-5)


def test_tokens_that_cancel_the_image_leave_a_finite_norm(rng: Any) -> None:
    """Rounding can bring a variance of almost zero below it, were it not for the bound."""
    kernel = out_of(0)["kernel"]
    value = jnp.asarray(1e4 * rng(HEADS, 1, INNER // HEADS))
    row = value.reshape(-1) @ kernel + out_of(0)["bias"]
    no_mask = VARIABLES["params"]["prompt_encoder"]["no_mask_embedding"]
    state = PREPARE(VARIABLES, jnp.broadcast_to(-row - no_mask, (3, 5, WIDTH)) * (1 + 1e-7 * jnp.asarray(rng(3, 5, 1))))
    image = with_factors(nothing_yet(), jnp.ones((HEADS, 1, HW)), value, out_of(0))
    norm = {"scale": jnp.ones(WIDTH), "bias": jnp.zeros(WIDTH)}
    assert jnp.isfinite(normalised(image, state.updates[0], norm, CONFIG.block_norm_eps).gain).all()


def test_what_weights_alone_decide_is_computed_once_for_all_images() -> None:
    embeddings = random_embedding(4, model=MODEL)
    program = jax.make_jaxpr(jax.vmap(PREPARE, in_axes=(None, 0)))(VARIABLES, embeddings)
    shapes = [eqn.outvars[0].aval.shape for eqn in equations(program.jaxpr) if eqn.primitive.name == "sin"]
    assert shapes == [(3, 5, WIDTH // 2)]
    tables = [eqn.outvars[0].aval.shape for eqn in equations(program.jaxpr) if eqn.primitive.name == "dot_general"]
    # The positional part's keys and queries of both blocks, and the final keys.
    assert tables.count((INNER, HW)) == 5


def equations(jaxpr: Any) -> Any:
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            if hasattr(value, "jaxpr"):
                yield from equations(value.jaxpr)


def test_a_state_is_of_one_image_and_keeps_its_embedding() -> None:
    embeddings = random_embedding(2, model=MODEL)
    states = jax.vmap(PREPARE, in_axes=(None, 0))(VARIABLES, embeddings)
    np.testing.assert_array_equal(states.embedding, embeddings)
    prompts = Prompts.build(points=[[[20.0, 30.0]]], labels=[[1]])
    for i in range(2):
        state = jax.tree.map(lambda leaf, i=i: leaf[i], states)
        ours = DECODE(VARIABLES, state, prompts)
        want = jax.jit(MODEL.apply)(VARIABLES, embeddings[i], jax.tree.map(lambda leaf: leaf[0], prompts))
        np.testing.assert_allclose(ours.logits[0], want.logits, atol=1e-5 * jnp.abs(want.logits).max())


def test_a_mask_prompt_is_refused() -> None:
    prompts = Prompts.build(masks=np.ones((1, 12, 20)) * 3)
    with pytest.raises(ValueError, match="decode_absorbed takes them"):
        decode_low_rank(MODEL, VARIABLES, PREPARE(VARIABLES, random_embedding(model=MODEL)), prompts)
