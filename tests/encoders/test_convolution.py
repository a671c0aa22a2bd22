import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_encoder import noise, random_variables

from sam_jax.encoders.convolution import ConvNorm, depthwise

F32 = jnp.dtype("float32")


@pytest.mark.parametrize("stride", [1, 2])
def test_depthwise_is_a_grouped_convolution(stride):
    x, kernel = noise(7, 6, 5), noise(3, 3, 1, 5, seed=2)
    expected = jax.lax.conv_general_dilated(
        x[None],
        kernel,
        (stride, stride),
        [(1, 1), (1, 1)],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=5,
    )
    np.testing.assert_allclose(depthwise(x, kernel, stride), expected[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("depthwise", [False, True])
def test_conv_norm_is_a_convolution_and_then_a_norm(depthwise):
    x, layer = noise(6, 8, 4), ConvNorm(4, F32, side=3, stride=2, depthwise=depthwise, epsilon=0.1)
    variables = random_variables(layer, x)
    params, constants = variables["params"], variables["constants"]
    plain = jax.lax.conv_general_dilated(
        x[None],
        params["kernel"],
        (2, 2),
        [(1, 1), (1, 1)],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=4 if depthwise else 1,
    )[0]
    normalised = (plain - constants["mean"]) / np.sqrt(constants["variance"] + 0.1)
    expected = normalised * params["scale"] + params["bias"]
    np.testing.assert_allclose(layer.apply(variables, x), expected, rtol=0, atol=2e-6)
