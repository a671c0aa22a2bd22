"""The small layers against values by hand and against float64."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from sam_jax.decoder.layers import ConvTranspose2x2, Mlp, PatchConv, gelu, layer_norm

FLOAT32 = jnp.dtype("float32")


def test_gelu_is_the_exact_one():
    """The tanh form is wrong by up to 5e-4."""
    x = np.linspace(-6, 6, 241)
    exact = np.array([value * 0.5 * (1 + math.erf(value / math.sqrt(2))) for value in x])
    np.testing.assert_allclose(gelu(jnp.asarray(x, jnp.float32)), exact, atol=5e-7)
    with jax.enable_x64(True):
        np.testing.assert_allclose(gelu(jnp.asarray(x)), exact, atol=1e-15)


def test_gelu_keeps_the_dtype_and_has_a_gradient():
    assert gelu(jnp.ones(3, jnp.bfloat16)).dtype == jnp.bfloat16
    assert jax.grad(gelu)(jnp.float32(0)) == 0.5


@pytest.mark.parametrize("epsilon", [1e-6, 1e-5])
def test_norm_of_a_variance_as_small_as_epsilon(epsilon):
    """(a, -a) has variance a^2: with a^2 = epsilon the result is (a, -a) / sqrt(2 epsilon)."""
    a = math.sqrt(epsilon)
    result = layer_norm(epsilon, FLOAT32).apply(
        {"params": {"scale": jnp.ones(2), "bias": jnp.zeros(2)}}, jnp.array([[a, -a]])
    )
    np.testing.assert_allclose(result, [[math.sqrt(0.5), -math.sqrt(0.5)]], rtol=1e-6)


def test_norm_of_a_large_mean(rng):
    """Mean 50 and deviation 0.1: Flax's fast variance is wrong by 3e-2 here."""
    x = 50 + np.float32(0.1) * rng(16, 256)
    scale, bias = rng(256), rng(256)
    params = {"scale": jnp.asarray(scale), "bias": jnp.asarray(bias)}
    exact = x.astype(np.float64)
    exact = (exact - exact.mean(-1, keepdims=True)) / np.sqrt(exact.var(-1, keepdims=True) + 1e-5) * scale + bias
    result = layer_norm(1e-5, FLOAT32).apply({"params": params}, jnp.asarray(x))
    np.testing.assert_allclose(result, exact, atol=2e-4)
    fast = nn.LayerNorm(epsilon=1e-5).apply({"params": params}, jnp.asarray(x))
    assert np.abs(fast - exact).max() > 1e-3


def test_norm_statistics_of_bfloat16_are_float32(rng):
    x = jnp.asarray(3 + rng(4, 256), jnp.bfloat16)
    params = {"scale": jnp.ones(256), "bias": jnp.zeros(256)}
    result = layer_norm(1e-5, jnp.dtype("bfloat16")).apply({"params": params}, x)
    exact = layer_norm(1e-5, FLOAT32).apply({"params": params}, x.astype(jnp.float32))
    assert result.dtype == jnp.bfloat16
    np.testing.assert_allclose(result.astype(jnp.float32), exact, rtol=2**-8, atol=1e-6)


def test_mlp_has_a_relu_between_its_layers_and_none_after():
    dense = {"kernel": jnp.array([[1.0, -1.0]]), "bias": jnp.array([0.0, 0.5])}
    last = {"kernel": jnp.array([[-1.0], [-10.0]]), "bias": jnp.array([0.25])}
    mlp = Mlp((2, 1), FLOAT32)
    result = mlp.apply({"params": {"layer_0": dense, "layer_1": last}}, jnp.array([[3.0], [-2.0], [0.0]]))
    np.testing.assert_array_equal(result, [[-2.75], [-24.75], [-4.75]])


def test_transposed_convolution_puts_each_pixel_where_the_kernel_says(rng):
    """Output (2i + a, 2j + b) is input (i, j) times kernel (a, b); mirrored blocks would have the right shapes too."""
    x, kernel, bias = rng(3, 5, 4), rng(2, 2, 6, 4), rng(6)
    result = ConvTranspose2x2(6, FLOAT32).apply(
        {"params": {"kernel": jnp.asarray(kernel), "bias": jnp.asarray(bias)}}, jnp.asarray(x)
    )
    assert result.shape == (6, 10, 6)
    for (i, j), (a, b) in (((0, 0), (0, 1)), ((0, 0), (1, 0)), ((2, 4), (0, 0)), ((1, 3), (1, 1))):
        np.testing.assert_allclose(result[2 * i + a, 2 * j + b], kernel[a, b] @ x[i, j] + bias, atol=2e-6)


def test_transposed_convolution_is_that_of_flax(rng):
    params = {"params": {"kernel": jnp.asarray(rng(2, 2, 6, 4)), "bias": jnp.asarray(rng(6))}}
    x = jnp.asarray(rng(3, 5, 4))
    other = nn.ConvTranspose(6, (2, 2), strides=(2, 2), padding="VALID", transpose_kernel=True)
    np.testing.assert_allclose(ConvTranspose2x2(6, FLOAT32).apply(params, x), other.apply(params, x), atol=2e-6)


@pytest.mark.parametrize(("shape", "size"), [((6, 10, 3), 2), ((8, 8, 3), 4), ((3, 5, 4), 1), ((7, 5, 3), 2)])
def test_convolution_of_patches_is_that_of_flax(rng, shape, size):
    """Forward and in every gradient, and where a last row or column is not a whole patch."""
    params = {"params": {"kernel": jnp.asarray(rng(size, size, shape[-1], 6)), "bias": jnp.asarray(rng(6))}}
    x = jnp.asarray(rng(*shape))
    patches, flax = PatchConv(6, size, FLOAT32), nn.Conv(6, (size, size), strides=size, padding="VALID")
    np.testing.assert_allclose(patches.apply(params, x), flax.apply(params, x), atol=4e-6)
    found, expected = (
        jax.grad(lambda *inputs: jnp.sum(jnp.sin(module.apply(*inputs))), (0, 1))(params, x)  # noqa: B023
        for module in (patches, flax)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), found, expected)
    jax.tree.map(np.testing.assert_array_equal, patches.init(jax.random.key(0), x), flax.init(jax.random.key(0), x))
