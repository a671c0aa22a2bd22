"""What depends on what in the two-way transformer: residuals, positional parts, empty slots, order."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_model import MODEL, random_variables

from sam_jax.decoder.two_way import TwoWayBlock, TwoWayTransformer

# The last norm's epsilon is as large as what it adds to, so that the other one in its place would be seen.
CONFIG = dataclasses.replace(MODEL.config, final_norm_eps=0.5)
PARAMS = random_variables()["params"]["mask_decoder"]["two_way"]
TOKENS, PIXELS = 6, 20
ALL = jnp.ones(TOKENS, bool)


@functools.cache
def jitted(module: Any) -> Any:
    return jax.jit(lambda params, *inputs: module.apply({"params": params}, *inputs, capture_intermediates=True))


def run_block(first: bool, params: Any, *inputs: jax.Array) -> dict[str, Any]:
    """Return what each part of a block returned."""
    _, state = jitted(TwoWayBlock(CONFIG, first=first))(params, *inputs)
    return {name: outputs["__call__"][0] for name, outputs in state["intermediates"].items() if name != "__call__"}


def run_transformer(*inputs: jax.Array) -> tuple[jax.Array, jax.Array]:
    return jitted(TwoWayTransformer(CONFIG))(PARAMS, *inputs)[0]


@pytest.fixture
def inputs(rng) -> list[jax.Array]:
    """Tokens, image, and the positional parts of both."""
    return [jnp.asarray(rng(n, CONFIG.width)) for n in (TOKENS, PIXELS, TOKENS, PIXELS)]


def changed(a: jax.Array, b: jax.Array) -> bool:
    return float(jnp.abs(a - b).max()) > 1e-2


def without(params: Any, *path: str) -> Any:
    """Parameters with a layer's kernel and bias at zero."""
    if not path:
        return jax.tree.map(jnp.zeros_like, params)
    return params | {path[0]: without(params[path[0]], *path[1:])}


@pytest.mark.parametrize("first", [True, False])
def test_the_first_self_attention_replaces_the_tokens(first, inputs):
    """With a self-attention that returns zeros, block 0 forgets the tokens; block 1 keeps them by the residual."""
    params = without(PARAMS["block_1"], "self_attention", "out")
    tokens, *others = inputs
    norms = [run_block(first, params, x, *others, ALL)["norm_self_attention"] for x in (tokens, -tokens)]
    assert changed(*norms) != first


@pytest.mark.parametrize("first", [True, False])
def test_the_first_self_attention_sees_no_positions(first, inputs):
    tokens, image, position, image_position = inputs
    results = [
        run_block(first, PARAMS["block_1"], tokens, image, x, image_position, ALL)["self_attention"]
        for x in (position, -position)
    ]
    assert changed(*results) != first


@pytest.mark.parametrize(
    ("attention", "before"),
    [
        ("self_attention", []),
        ("token_to_image", ["self_attention"]),
        ("image_to_token", ["self_attention", "token_to_image"]),
    ],
)
def test_values_have_no_positional_part(attention, before, inputs):
    """With queries and keys at zero, here and in what comes before, all keys weigh the same: positions do not show."""
    params = PARAMS["block_1"]
    for name in (attention, *before):
        params = without(without(params, name, "query"), name, "key")
    tokens, image, position, image_position = inputs
    one, other = (
        run_block(False, params, tokens, image, sign * position, sign * image_position, ALL)[attention]
        for sign in (1, -1)
    )
    np.testing.assert_allclose(one, other, atol=1e-6)
    assert changed(one, jnp.zeros_like(one))


def test_the_initial_tokens_are_their_own_positional_part(inputs):
    """The transformer is its blocks, given the initial tokens as positional part each time, and a last attention."""
    tokens, image, _, image_position = inputs
    token_position, expected = tokens, (tokens, image)
    for i in range(CONFIG.depth):
        block = jitted(TwoWayBlock(CONFIG, first=i == 0))
        expected = block(PARAMS[f"block_{i}"], *expected, token_position, image_position, ALL)[0]
    result_tokens, result_image = run_transformer(tokens, image, image_position, ALL)
    np.testing.assert_allclose(result_image, expected[1], atol=1e-5)

    transformer = TwoWayTransformer(CONFIG)
    params = without(PARAMS, "final_token_to_image", "out")
    norm = PARAMS["final_norm"]
    centred = expected[0] - expected[0].mean(-1, keepdims=True)
    by_hand = centred / jnp.sqrt(centred.var(-1, keepdims=True) + CONFIG.final_norm_eps) * norm["scale"] + norm["bias"]
    no_final_attention = jitted(transformer)(params, tokens, image, image_position, ALL)[0][0]
    np.testing.assert_allclose(no_final_attention, by_hand, atol=1e-5)
    assert changed(result_tokens, by_hand)


@pytest.mark.parametrize("size", [1.0, 1e3])
def test_empty_slots_change_nothing(size, inputs, rng):
    tokens, image, _, image_position = inputs
    junk = jnp.asarray(size * rng(3, CONFIG.width))
    padded = jnp.concatenate([tokens[:4], junk, tokens[4:]])
    mask = jnp.array([True] * 4 + [False] * 3 + [True] * 2)
    expected_tokens, expected_image = run_transformer(tokens, image, image_position, ALL)
    result_tokens, result_image = run_transformer(padded, image, image_position, mask)
    np.testing.assert_allclose(result_tokens[mask], expected_tokens, atol=1e-5)
    np.testing.assert_allclose(result_image, expected_image, atol=1e-5)


def test_tokens_have_no_order(inputs):
    tokens, image, _, image_position = inputs
    order = jnp.array([3, 0, 5, 1, 4, 2])
    expected_tokens, expected_image = run_transformer(tokens, image, image_position, ALL)
    result_tokens, result_image = run_transformer(tokens[order], image, image_position, ALL)
    np.testing.assert_allclose(result_tokens, expected_tokens[order], atol=1e-5)
    np.testing.assert_allclose(result_image, expected_image, atol=1e-5)


def test_pixels_are_told_apart_by_their_positions_alone(inputs):
    tokens, image, _, image_position = inputs
    order = jnp.arange(PIXELS)[::-1]
    expected_tokens, expected_image = run_transformer(tokens, image, image_position, ALL)
    result_tokens, result_image = run_transformer(tokens, image[order], image_position[order], ALL)
    np.testing.assert_allclose(result_tokens, expected_tokens, atol=1e-5)
    np.testing.assert_allclose(result_image, expected_image[order], atol=1e-5)
    assert changed(run_transformer(tokens, image[order], image_position, ALL)[0], expected_tokens)


def test_the_epsilons_of_the_settings_are_used(inputs):
    """A norm makes variance v / (v + epsilon) of v. Here nothing but the norms is left: one per block on the image."""
    module = TwoWayTransformer(dataclasses.replace(CONFIG, block_norm_eps=0.5))
    params = jax.tree_util.tree_map_with_path(
        lambda path, leaf: jnp.ones_like(leaf) if path[-1].key == "scale" else jnp.zeros_like(leaf), PARAMS
    )
    tokens, image, _, image_position = inputs
    image = image / image.std(-1, keepdims=True)
    _, result = jitted(module)(params, tokens, image, image_position, ALL)[0]
    variance = 1 / 1.5
    variance /= variance + 0.5
    np.testing.assert_allclose(result.var(-1), variance, rtol=1e-5)
