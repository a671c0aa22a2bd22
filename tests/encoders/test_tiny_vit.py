import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_encoder import SMALL_TINY_VIT, noise, random_variables

from sam_jax.encoders.config import LITE_MEDSAM, TINY_VIT
from sam_jax.encoders.tiny_vit import TinyViT, WindowAttention, offset_index

F32 = jnp.dtype("float32")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"widths": (4, 8, 12)}, "widths must be 4 positive integers"),
        ({"depths": (1, 0, 1, 1)}, "depths must be 4 positive integers"),
        ({"heads": (2, 3, 5)}, r"widths must be divisible by heads = \(2, 3, 5\)"),
        ({"window_sizes": (3, 5, 4.0)}, "window_sizes must be 3 positive integers"),
        ({"image_size": (64, 100)}, "image_size must be two multiples of 16 pixels"),
        ({"out_width": 0}, "out_width must be a positive integer, got 0"),
        ({"stem_stride": 3}, "stem_stride must be 1 or 2, got 3"),
        ({"dtype": "float16"}, "dtype must be one of float32, bfloat16, float64, got 'float16'"),
    ],
)
def test_config_says_what_is_wrong(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL_TINY_VIT, **change)


@pytest.mark.parametrize(("config", "side"), [(TINY_VIT, 1024), (LITE_MEDSAM, 256)], ids=["MobileSAM", "LiteMedSAM"])
def test_presets_make_embeddings_of_the_decoder_s_shape(config, side):
    image = jnp.broadcast_to(jnp.zeros(()), (side, side, 3))
    encoder = TinyViT(config)
    init = functools.partial(encoder.init_with_output, method="encode_with_early_feature")
    embedding, early = jax.eval_shape(lambda: init(jax.random.key(0), image)[0])
    assert embedding.shape == (64, 64, 256)
    assert early.shape == (64, 64, 160)
    assert config.grid_size == (64, 64)


def test_offsets_are_counted_row_by_row():
    # Tokens 0 1 / 2 3: 1 is one column from 0, 2 one row, 3 one of each.
    np.testing.assert_array_equal(offset_index(2), [[0, 1, 2, 3], [1, 0, 3, 2], [2, 3, 0, 1], [3, 2, 1, 0]])


def test_each_offset_has_its_own_bias():
    index = offset_index(4).reshape(4, 4, 4, 4)
    row, column, other_row, other_column = np.indices(index.shape)
    np.testing.assert_array_equal(index // 4, abs(row - other_row))
    np.testing.assert_array_equal(index % 4, abs(column - other_column))


def test_windows_do_not_see_each_other():
    x = noise(4, 3, 3, 8)
    attention = WindowAttention(2, F32)
    apply = jax.jit(functools.partial(attention.apply, random_variables(attention, x)))
    difference = np.abs(apply(x.at[2, 1, 1, 0].add(1.0)) - apply(x)).max(-1) > 1e-6
    np.testing.assert_array_equal(difference.all((1, 2)), [False, False, True, False])
    assert not difference[[0, 1, 3]].any()
