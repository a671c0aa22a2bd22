"""Attention: by hand, against a plain form, and with keys that nothing attends to."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sam_jax.decoder.attention import Attention, attend, attention_weights


def test_two_keys_by_hand():
    """Products of 2 ln 3 and 0, divided by the square root of 4 channels: odds of 3 to 1."""
    query = jnp.ones((1, 1, 4))
    key = jnp.stack([jnp.full((1, 4), np.log(3) / 2), jnp.zeros((1, 4))])
    weights = attention_weights(query, key)
    np.testing.assert_allclose(weights, [[[0.75, 0.25]]], rtol=1e-6)
    value = jnp.array([[[4.0, 0.0, 0.0, 1.0]], [[0.0, 8.0, 0.0, 1.0]]])
    np.testing.assert_allclose(attend(query, key, value), [[[3, 2, 0, 1]]], rtol=1e-6)


def module_and_variables(rng, downsample):
    module = Attention(width=12, heads=3, downsample=downsample, dtype=jnp.dtype("float32"))
    shapes = jax.eval_shape(module.init, jax.random.key(0), *(jnp.zeros((n, 12)) for n in (2, 4, 4)))
    return module, jax.tree.map(lambda leaf: jnp.asarray(rng(*leaf.shape)) / 3, shapes)


@pytest.mark.parametrize("downsample", [1, 2])
def test_module_is_the_plain_form(rng, downsample):
    """Each head owns a contiguous slice of the inner channels; the scale is that of one head."""
    module, variables = module_and_variables(rng, downsample)
    query, key, value = rng(5, 12), rng(7, 12), rng(7, 12)
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables["params"])

    def project(name, x):
        return x @ params[name]["kernel"] + params[name]["bias"]

    projected = [project(*pair) for pair in (("query", query), ("key", key), ("value", value))]
    size = 12 // downsample // 3
    heads = []
    for head in range(3):
        q, k, v = (x[:, head * size : (head + 1) * size] for x in projected)
        logits = np.exp(q @ k.T / np.sqrt(size))
        heads.append(logits / logits.sum(-1, keepdims=True) @ v)
    expected = project("out", np.concatenate(heads, -1))
    result = module.apply(variables, *(jnp.asarray(x) for x in (query, key, value)))
    np.testing.assert_allclose(result, expected, atol=3e-6)


def test_masked_keys_are_as_if_they_were_not_there(rng):
    module, variables = module_and_variables(rng, 1)
    query, key, value = (jnp.asarray(rng(n, 12)) for n in (5, 7, 7))
    mask = jnp.array([True, False, True, True, False, True, False])
    masked = module.apply(variables, query, key, value, mask)
    without = module.apply(variables, query, key[mask], value[mask])
    np.testing.assert_allclose(masked, without, atol=1e-6)
    assert jnp.abs(masked - module.apply(variables, query, key, value)).max() > 0.01


def test_masked_keys_have_no_weight_however_large_their_products(rng):
    query, key = jnp.asarray(rng(4, 2, 8)), jnp.asarray(rng(3, 2, 8)).at[1].multiply(1e4)
    weights = attention_weights(query, key, jnp.array([True, False, True]))
    np.testing.assert_array_equal(weights[..., 1], 0)
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-6)


def test_nothing_to_attend_to_is_finite(rng):
    query, key = jnp.asarray(rng(4, 2, 8)), jnp.asarray(rng(3, 2, 8))
    none = jnp.zeros(3, bool)
    assert jnp.isfinite(attention_weights(query, key, none)).all()
    gradient = jax.grad(lambda q: attend(q, key, key, none).sum())(query)
    assert jnp.isfinite(gradient).all()


def test_large_products_do_not_overflow(rng):
    weights = attention_weights(jnp.asarray(1e4 * rng(4, 2, 8)), jnp.asarray(1e4 * rng(3, 2, 8)))
    assert jnp.isfinite(weights).all()


def test_the_softmax_of_bfloat16_is_float32(rng):
    query, key = (jnp.asarray(rng(n, 2, 8), jnp.bfloat16) for n in (4, 3))
    weights = attention_weights(query, key)
    assert weights.dtype == jnp.float32
    exact = attention_weights(query.astype(jnp.float32), key.astype(jnp.float32))
    np.testing.assert_allclose(weights, exact, rtol=1e-5)
    assert attend(query, key, key).dtype == jnp.bfloat16
