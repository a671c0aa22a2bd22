import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_encoder import SMALL_EFFICIENT_VIT, noise, random_variables

from sam_jax.encoders.bicubic import bicubic_matrix, resize_bicubic
from sam_jax.encoders.config import (
    EFFICIENT_VIT_L0,
    EFFICIENT_VIT_L1,
    EFFICIENT_VIT_L2,
    EFFICIENT_VIT_XL0,
    EFFICIENT_VIT_XL1,
)
from sam_jax.encoders.efficient_vit import EfficientViT, GroupDense, linear_attention

F32 = jnp.dtype("float32")
PRESETS = {
    "l0": EFFICIENT_VIT_L0,
    "l1": EFFICIENT_VIT_L1,
    "l2": EFFICIENT_VIT_L2,
    "xl0": EFFICIENT_VIT_XL0,
    "xl1": EFFICIENT_VIT_XL1,
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"widths": (4, 8, 8, 8)}, "widths must be those of 5 or 6 stages"),
        ({"widths": (4, 8, 8, 8, 0)}, "widths must be 5 positive integers"),
        ({"depths": (1, 0, 1, 1)}, "depths must be 5 integers from 0"),
        ({"depths": (1, 0, 1, 1, -1)}, "depths must be 5 integers from 0"),
        ({"kinds": ("fused",) * 5}, "kinds must be 4 of fused, inverted, attention"),
        ({"kinds": ("fused", "fused", "fused", "window")}, "kinds must be 4 of fused, inverted, attention"),
        ({"ratios": (4, 4, 4, 1.5)}, "ratios must be 4 positive integers"),
        ({"head_width": 5}, r"stages with attention must be divisible by head_width = 5, got \(4, 8, 8, 8, 16\)"),
        ({"neighbourhood": 4}, "neighbourhood must be odd, got 4"),
        ({"neck_depth": -1}, "neck_depth must be an integer from 0, got -1"),
        ({"neck_ratio": 0}, "neck_ratio must be a positive integer, got 0"),
        ({"image_size": (64, 100)}, "image_size must be two multiples of 32 pixels"),
        ({"prompt_frame": (64,)}, "prompt_frame must be 2 positive integers"),
        ({"prompt_frame": (128, 128)}, r"prompt_frame must have the proportions of image_size = \(64, 96\)"),
        ({"dtype": "float16"}, "dtype must be one of float32, bfloat16, float64, got 'float16'"),
    ],
)
def test_config_says_what_is_wrong(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL_EFFICIENT_VIT, **change)


@pytest.mark.parametrize("config", PRESETS.values(), ids=PRESETS)
def test_presets_make_embeddings_of_the_decoder_s_shape(config):
    image = jax.ShapeDtypeStruct((*config.image_size, 3), F32)
    embedding, _ = jax.eval_shape(EfficientViT(config).init_with_output, jax.random.key(0), image)
    assert embedding.shape == (64, 64, 256)
    assert (config.grid_size, config.prompt_frame) == ((64, 64), (1024, 1024))


def test_attention_is_a_mean_of_the_values_by_weights_of_the_keys():
    qkv = noise(12, 3, 3, 8)
    query, key, value = np.moveaxis(np.asarray(qkv, np.float64), 2, 0)
    weights = np.einsum("qhd,khd->hqk", query.clip(0), key.clip(0))
    expected = np.einsum("hqk,khd->qhd", weights / weights.sum(-1, keepdims=True), value)
    np.testing.assert_allclose(linear_attention(qkv), expected, rtol=0, atol=1e-6)


def test_a_token_that_attends_to_nothing_gathers_zeros():
    qkv = noise(6, 1, 3, 4).at[2, :, 0].set(-1.0)
    out = linear_attention(qkv)
    np.testing.assert_array_equal(out[2], 0)
    assert np.abs(np.delete(out, 2, 0)).min() > 0


def test_groups_of_channels_do_not_see_each_other():
    x, layer = noise(2, 3, 8), GroupDense(4, F32)
    variables = random_variables(layer, x)
    kernel = variables["params"]["kernel"][0, 0]
    expected = jnp.concatenate([x[..., :4] @ kernel[:, :4], x[..., 4:] @ kernel[:, 4:]], -1)
    np.testing.assert_allclose(layer.apply(variables, x), expected, rtol=0, atol=1e-6)


def test_bicubic_weights_sum_to_one_and_the_border_is_clamped():
    matrix = bicubic_matrix(4, 8)
    np.testing.assert_allclose(matrix.sum(1), 1)
    # Beside the centre of the second pixel, by a quarter: of the kernel at -1.25, -0.25, 0.75 and 1.75 pixels.
    np.testing.assert_allclose(matrix[3], [-0.10546875, 0.87890625, 0.26171875, -0.03515625])
    np.testing.assert_allclose(matrix[0], [-0.03515625 + 0.26171875 + 0.87890625, -0.10546875, 0, 0])
    np.testing.assert_array_equal(bicubic_matrix(5, 5), np.eye(5))


def test_bicubic_keeps_a_constant_map():
    x = jnp.full((3, 5, 2), 7.0)
    np.testing.assert_allclose(resize_bicubic(x, (8, 4)), np.full((8, 4, 2), 7), rtol=1e-6)
