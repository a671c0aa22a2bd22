"""Which token makes which mask, and what logits and IoUs are made of."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_model import MODEL, random_variables

from sam_jax.decoder.mask_decoder import MaskDecoder
from sam_jax.decoder.model import Sam

CONFIG = dataclasses.replace(MODEL.config, grid_size=(3, 5))
PARAMS = random_variables()["params"]["mask_decoder"]


@functools.cache
def jitted(config: Any) -> Any:
    decoder = MaskDecoder(config)

    def run(params: Any, image: Any, *inputs: Any) -> Any:
        variables = {"params": params}
        return decoder.apply(variables, image, jnp.zeros_like(image), *inputs, capture_intermediates=True)

    return jax.jit(run)


def decode(params: Any, inputs: tuple, config: Any = CONFIG) -> tuple[jax.Array, jax.Array]:
    out = jitted(config)(params, *inputs)[0]
    return out.logits, out.iou


@pytest.fixture
def inputs(rng) -> tuple:
    h, w = CONFIG.grid_size
    image, position, tokens = rng(h, w, CONFIG.width), rng(h, w, CONFIG.width), rng(2, CONFIG.width)
    return jnp.asarray(image), jnp.asarray(position), jnp.asarray(tokens), jnp.ones(2, bool)


def replaced(params: Any, path: str, change: Any) -> Any:
    """Parameters with one leaf changed."""
    first, _, rest = path.partition("/")
    return params | {first: replaced(params[first], rest, change) if rest else change(params[first])}


def test_shapes(inputs):
    logits, iou = decode(PARAMS, inputs)
    assert logits.shape == (4, 12, 20)
    assert iou.shape == (4,)


def mlp(layers: Any, x: Any) -> Any:
    """Layers with a ReLU between them."""
    for i in range(3):
        x = (np.maximum(x, 0) if i else x) @ layers[f"layer_{i}"]["kernel"] + layers[f"layer_{i}"]["bias"]
    return x


def test_what_logits_and_iou_are_made_of(inputs):
    """IoUs come from token 0; the weights of mask m's logits from token 1 + m and a hypernetwork of its own."""
    out, state = jitted(CONFIG)(PARAMS, *inputs)
    parts = jax.tree.map(np.asarray, state["intermediates"])
    tokens, _ = parts["two_way"]["__call__"][0]
    (features,) = parts["upscaling"]["__call__"]
    for m in range(4):
        hypernetwork = jax.tree.map(lambda leaf, m=m: np.asarray(leaf[m]), PARAMS["hypernetworks"])
        np.testing.assert_allclose(out.logits[m], features @ mlp(hypernetwork, tokens[1 + m]), atol=1e-5)
    np.testing.assert_allclose(out.iou, mlp(PARAMS["iou_head"], tokens[0]), atol=1e-5)


@pytest.mark.parametrize("mask", [0, 2])
def test_each_mask_has_its_own_hypernetwork(mask, inputs):
    params = replaced(PARAMS, "hypernetworks/layer_2/bias", lambda bias: bias.at[mask].add(1))
    before, after = decode(PARAMS, inputs), decode(params, inputs)
    difference = np.abs(after[0] - before[0]).max((1, 2))
    assert (difference > 0.01).tolist() == [m == mask for m in range(4)]
    np.testing.assert_array_equal(after[1], before[1])


def test_iou_is_linear_output(inputs):
    """It is no probability: it can exceed 1 or be negative."""
    params = replaced(PARAMS, "iou_head/layer_2/bias", lambda bias: bias + jnp.array([5, -5, 0, 0.5]))
    before, after = decode(PARAMS, inputs), decode(params, inputs)
    np.testing.assert_allclose(after[1] - before[1], [5, -5, 0, 0.5], atol=1e-6)
    np.testing.assert_array_equal(after[0], before[0])


def test_the_decoder_works_without_prompt_tokens(inputs):
    image, position, tokens, mask = inputs
    none = decode(PARAMS, (image, position, tokens[:0], mask[:0]))
    empty = decode(PARAMS, (image, position, tokens, jnp.zeros(2, bool)))
    for a, b in zip(none, empty, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    assert jnp.abs(none[0] - decode(PARAMS, inputs)[0]).max() > 0.01


@pytest.mark.parametrize("masks", [1, 8])
def test_any_number_of_masks(masks, inputs):
    config = dataclasses.replace(CONFIG, multimask_outputs=masks)
    params = random_variables(Sam(config))["params"]["mask_decoder"]
    logits, iou = decode(params, inputs, config)
    assert logits.shape == (masks + 1, 12, 20)
    assert iou.shape == (masks + 1,)


def test_results_of_bfloat16_are_float32(inputs):
    exact, exact_iou = decode(PARAMS, inputs)
    logits, iou = decode(PARAMS, inputs, dataclasses.replace(CONFIG, dtype="bfloat16"))
    assert (logits.dtype, iou.dtype) == (jnp.float32, jnp.float32)
    assert jnp.abs(logits - exact).max() < 0.2 * exact.std()
    np.testing.assert_allclose(iou, exact_iou, atol=0.2)
    # The product itself is not rounded to 8 bits: neighbouring logits would be equal then.
    assert len(np.unique(np.asarray(logits))) > 0.99 * logits.size
