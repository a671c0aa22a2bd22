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


def nothing_yet() -> LowRankTokens:
    return LowRankTokens(None, jnp.ones((1, HW)), jnp.zeros((1, WIDTH)), ())


def out_of(block: int) -> Any:
    return VARIABLES["params"]["mask_decoder"]["two_way"][f"block_{block}"]["image_to_token"]["out"]


@pytest.mark.parametrize(("tokens", "factors"), [(1, 1), (6, HEADS * 5 + 1), (9, INNER + 1), (30, INNER + 1)])
def test_the_rank_of_a_block(tokens: int, factors: int, rng: Any) -> None:
    """Each token but the first is a factor of each head, up to the channels of a head; nothing is lost."""
    weights = jax.nn.softmax(jnp.asarray(rng(HEADS, tokens, HW)), axis=1)
    value = jnp.asarray(rng(HEADS, tokens, INNER // HEADS))
    image = with_factors(nothing_yet(), weights, value, out_of(0))
    assert image.factors.shape == (factors, HW)
    assert image.rows.shape == (factors, WIDTH)
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
    assert shapes == [(5, WIDTH // 2), (3, WIDTH // 2)]
    tables = [eqn.outvars[0].aval.shape for eqn in equations(program.jaxpr) if eqn.primitive.name == "dot_general"]
    # The positional part's keys and queries of block 1, and the final keys.
    assert tables.count((HEADS, INNER // HEADS, HW)) == 3


def equations(jaxpr: Any) -> Any:
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            if hasattr(value, "jaxpr"):
                yield from equations(value.jaxpr)


def test_a_mask_prompt_is_refused() -> None:
    prompts = Prompts.build(masks=np.ones((1, 12, 20)) * 3)
    with pytest.raises(ValueError, match="decode_absorbed takes them"):
        decode_low_rank(MODEL, VARIABLES, PREPARE(VARIABLES, random_embedding(model=MODEL)), prompts)
