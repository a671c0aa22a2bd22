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
from sam_jax.fast.low_rank import decode_low_rank, normalised, prepare_image, with_added

CONFIG = dataclasses.replace(TINY, image_size=(96, 160), grid_size=(3, 5))
MODEL = Sam(CONFIG)
HW, WIDTH, HEADS, INNER = 15, CONFIG.width, CONFIG.heads, CONFIG.width // CONFIG.attention_downsample
VARIABLES = random_variables(MODEL)
PREPARE = jax.jit(functools.partial(prepare_image, MODEL))


def kernels_of(block: int) -> Any:
    """The image-to-token attention of a block, and its norm."""
    block_params = VARIABLES["params"]["mask_decoder"]["two_way"][f"block_{block}"]
    return block_params["image_to_token"]["out"], block_params["norm_image_to_token"]


@pytest.mark.parametrize(("tokens", "factors"), [(1, 0), (6, HEADS * 5), (9, INNER), (30, INNER)])
def test_the_rank_of_a_block(tokens: int, factors: int, rng: Any) -> None:
    """Each token but the first is a factor of each head, up to the channels of a head; nothing is lost."""
    weights = jax.nn.softmax(jnp.asarray(rng(HEADS, 2, tokens, HW)), axis=2)
    value = jnp.asarray(rng(2, HEADS, tokens, INNER // HEADS))
    image = with_added(None, weights, value)
    (added,) = image.added
    assert image.factors.shape == (2, factors, HW)
    assert added.rows.shape == (2, factors, INNER)
    gathered = jnp.einsum("hpnx,phnd->pxhd", weights, value).reshape(2, HW, INNER)
    ours = jnp.einsum("prx,prk->pxk", image.factors, added.rows) + added.first[:, None]
    np.testing.assert_allclose(ours, gathered, atol=1e-5)


def test_the_next_block_keeps_the_factors_and_scales_them_by_the_gain(rng: Any) -> None:
    weights = jax.nn.softmax(jnp.asarray(rng(HEADS, 2, 6, HW)), axis=2)
    value = jnp.asarray(rng(2, HEADS, 6, INNER // HEADS))
    one = with_added(None, weights, value)._replace(gain=jnp.asarray(rng(2, HW)))
    two = with_added(one, weights[:, :, ::-1], value)
    np.testing.assert_array_equal(two.factors[:, : HEADS * 5], one.gain[:, None] * one.factors)
    np.testing.assert_array_equal(two.levels, jnp.stack([one.gain, jnp.ones((2, HW))], 1))
    assert two.added[0] is one.added[0]


def test_tokens_that_cancel_the_image_leave_a_finite_norm(rng: Any) -> None:
    """Rounding can bring a variance of almost zero below it, were it not for the bound."""
    (out, _), value = kernels_of(0), jnp.asarray(1e4 * rng(1, HEADS, 1, INNER // HEADS))
    row = value.reshape(-1) @ out["kernel"] + out["bias"]
    no_mask = VARIABLES["params"]["prompt_encoder"]["no_mask_embedding"]
    state = PREPARE(VARIABLES, jnp.broadcast_to(-row - no_mask, (3, 5, WIDTH)) * (1 + 1e-7 * jnp.asarray(rng(3, 5, 1))))
    image = with_added(None, jnp.ones((HEADS, 1, 1, HW)), value)
    assert jnp.isfinite(normalised(image, state.updates[0], CONFIG.block_norm_eps).gain).all()


def test_the_gain_is_that_of_the_norm_of_what_is_written_out(rng: Any) -> None:
    """Through two blocks, the second of which has the first one's gain and its own tokens in the variance."""
    embedding = random_embedding(model=MODEL)
    state = PREPARE(VARIABLES, embedding)
    no_mask = VARIABLES["params"]["prompt_encoder"]["no_mask_embedding"]
    written, image = (embedding + no_mask).reshape(HW, WIDTH), None
    for block in range(2):
        weights = jax.nn.softmax(3 * jnp.asarray(rng(HEADS, 1, 6, HW)), axis=2)
        value = jnp.asarray(rng(1, HEADS, 6, INNER // HEADS))
        image = normalised(with_added(image, weights, value), state.updates[block], CONFIG.block_norm_eps)
        out, norm = kernels_of(block)
        gathered = jnp.einsum("hpnx,phnd->xphd", weights, value).reshape(HW, INNER)
        sums = written + gathered @ out["kernel"] + out["bias"]
        deviation = jnp.sqrt(jnp.var(sums, -1) + CONFIG.block_norm_eps)
        np.testing.assert_allclose(image.gain[0], 1 / deviation, rtol=2e-5)
        written = (sums - sums.mean(-1, keepdims=True)) / deviation[:, None] * norm["scale"] + norm["bias"]


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
