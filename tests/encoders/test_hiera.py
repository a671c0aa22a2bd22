"""Hiera by its parts. That it equals SAM 2's is shown in `tests/parity/test_sam2.py`."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_encoder import SMALL_HIERA, noise, random_variables

from sam_jax.encoders import hiera
from sam_jax.encoders.config import HIERA_LARGE, HIERA_TINY, config_from_dict, config_to_dict
from sam_jax.encoders.encoder import make_encoder
from sam_jax.encoders.hiera import Hiera, HieraBlock, Projection, attend, max_pool

SMALL = dataclasses.replace(SMALL_HIERA, position_size=(3, 5), image_size=(64, 96))


def test_the_maps_and_their_sizes() -> None:
    encoder, frame = make_encoder(SMALL), jnp.zeros((64, 96, 3))
    features: Any = jax.eval_shape(encoder.apply, jax.eval_shape(encoder.init, jax.random.key(0), frame), frame)
    assert features.embedding.shape == (4, 6, 32)
    assert features.stride_8.shape == (8, 12, 8)
    assert features.stride_4.shape == (16, 24, 4)
    assert features.early is None
    with pytest.raises(ValueError, match=r"must have the shape \(64, 96, 3\)"):
        jax.eval_shape(encoder.init, jax.random.key(0), jnp.zeros((64, 64, 3)))


def test_a_block_that_halves_the_map_has_the_windows_of_the_stage_before() -> None:
    windows = [HIERA_LARGE.window(i) for i in range(sum(HIERA_LARGE.depths))]
    assert [windows[i] for i in (0, 1, 2, 3, 7, 8, 9, 43, 44, 45)] == [
        (8, 8), (8, 8), (8, 8), (4, 4), (4, 4), (4, 4), (16, 16), (64, 64), (16, 16), (8, 8),
    ]  # fmt: skip
    assert [i for i in range(sum(HIERA_TINY.depths)) if HIERA_TINY.is_pooling(i)] == [1, 3, 10]
    assert [HIERA_TINY.window(i) for i in (3, 4, 5, 10, 11)] == [(4, 4), (14, 14), (64, 64), (14, 14), (7, 7)]


@pytest.mark.parametrize("most", [1, 40, 200, 1 << 21])
def test_attention_in_chunks(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of windows, of rows of one window, or all at once; queries may be fewer than keys."""
    monkeypatch.setattr(hiera, "CHUNK_LOGITS", most)
    query, key, value = noise(6, 4, 2, 8, seed=1), noise(6, 9, 2, 8, seed=2), noise(6, 9, 2, 8, seed=3)
    logits = jnp.einsum("nqhd,nkhd->nhqk", query, key) / np.sqrt(8)
    want = jnp.einsum("nhqk,nkhd->nqhd", jax.nn.softmax(logits, -1), value)
    np.testing.assert_allclose(attend(query, key, value), want, atol=1e-6)


def test_tokens_that_fill_up_windows_are_attended_to() -> None:
    """They are zeros after the norm, so that their keys and values are the biases."""
    block = HieraBlock(width=8, heads=2, window=(4, 4), pooling=False, dtype=jnp.dtype("float32"))
    x = noise(6, 6, 8)
    variables = random_variables(block, x)
    params = variables["params"]
    changed = {"params": params | {"qkv": params["qkv"] | {"bias": params["qkv"]["bias"].at[16:].add(1)}}}
    one, other = (block.apply(each, x) for each in (variables, changed))
    assert jnp.abs(one - other)[4:].max() > 1e-3
    # Where no window is filled up, only the value's bias counts, and it is the same for every token of a window.
    np.testing.assert_allclose(max_pool(x[:4, :4]), x[:4, :4].reshape(2, 2, 2, 2, 8).max((1, 3)))


def test_two_linear_layers_as_one() -> None:
    first, second = Projection(6, 10, jnp.dtype("float32")), Projection(10, 3, jnp.dtype("float32"))
    x = noise(4, 5, 6)
    of_first, of_second = random_variables(first, x), random_variables(second, noise(4, 5, 10))
    want = second.apply(of_second, first.apply(of_first, x))
    found = first.bind(of_first)(x, after=second.bind(of_second))
    np.testing.assert_allclose(found, want, atol=1e-5)


def test_gradients_and_bfloat16() -> None:
    encoder, frame = Hiera(SMALL), noise(64, 96, 3)
    variables = random_variables(encoder, frame)

    def loss(params: Any) -> jax.Array:
        return sum(jnp.sin(x).sum() for x in jax.tree.leaves(encoder.apply({"params": params}, frame)))

    gradients = jax.jit(jax.grad(loss))(variables["params"])
    assert all(jnp.isfinite(leaf).all() and jnp.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradients))
    rounded = Hiera(dataclasses.replace(SMALL, dtype="bfloat16")).apply(variables, frame)
    exact = encoder.apply(variables, frame)
    for one, other in zip(jax.tree.leaves(rounded), jax.tree.leaves(exact), strict=True):
        assert one.dtype == jnp.bfloat16
        assert jnp.abs(one - other).max() < 0.1 * jnp.abs(other).max()


def test_settings_in_json() -> None:
    assert config_from_dict(config_to_dict(SMALL)) == SMALL
    assert config_to_dict(SMALL)["kind"] == "hiera"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"widths": (8, 16, 32)}, "HieraConfig.widths must be 4 positive integers"),
        ({"heads": (1, 2, 4, 5)}, r"must be divisible by heads = \(1, 2, 4, 5\)"),
        ({"out_width": 12}, "out_width must be divisible by 8, got 12"),
        ({"global_blocks": (5,)}, "rising indices of the 5 blocks"),
        ({"global_blocks": (2,)}, "must not be the first blocks of stages"),
        ({"window_sizes": (4, 3, 6, 3)}, "must be even but for the last"),
        ({"image_size": (64, 100)}, "two multiples of 32 and of 16 pixels"),
        ({"preprocessing": "sam3"}, "preprocessing must be one of"),
    ],
)
def test_settings_that_no_hiera_has(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **change)
