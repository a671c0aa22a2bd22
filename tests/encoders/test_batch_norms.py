"""What holds for the encoders with batch norms alike: TinyViT and EfficientViT."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_encoder import SMALL_EFFICIENT_VIT, SMALL_TINY_VIT, noise, random_variables

from sam_jax.encoders.config import EncoderConfig, kind_of
from sam_jax.encoders.encoder import make_encoder

LEAVES = {
    SMALL_TINY_VIT: {"kernel", "bias", "scale", "offset_bias"},
    SMALL_EFFICIENT_VIT: {"kernel", "bias", "scale"},
}
"""What the parameters of each are called."""

of_each = pytest.mark.parametrize("config", LEAVES, ids=kind_of)


@functools.cache
def variables_of(config: EncoderConfig) -> Any:
    return random_variables(make_encoder(config), noise(*config.image_size, 3))


@functools.partial(jax.jit, static_argnames="config")
def encode(config: EncoderConfig, variables: Any, image: jax.Array) -> Any:
    return make_encoder(config).apply(variables, image)


@of_each
def test_statistics_are_constants_and_nothing_else_is(config: EncoderConfig) -> None:
    names = {
        collection: {path[-1].key for path, _ in jax.tree.leaves_with_path(tree)}
        for collection, tree in variables_of(config).items()
    }
    assert names == {"params": LEAVES[config], "constants": {"mean", "variance"}}


@of_each
def test_images_need_not_be_square_and_vmap_adds_their_axis(config: EncoderConfig) -> None:
    images = noise(2, 64, 96, 3)
    together = jax.jit(jax.vmap(make_encoder(config).apply, in_axes=(None, 0)))(variables_of(config), images)
    assert together.shape == (2, *config.grid_size, 16)
    for image, embedding in zip(images, together, strict=True):
        np.testing.assert_allclose(embedding, encode(config, variables_of(config), image), rtol=0, atol=1e-5)


@of_each
def test_an_image_of_another_size_is_refused(config: EncoderConfig) -> None:
    with pytest.raises(ValueError, match=r"must have the shape \(64, 96, 3\), got an array of shape \(96, 64, 3\)"):
        make_encoder(config).apply(variables_of(config), noise(96, 64, 3))


@of_each
def test_bfloat16_stays_close(config: EncoderConfig) -> None:
    image = noise(64, 96, 3)
    exact = encode(config, variables_of(config), image)
    rough = encode(dataclasses.replace(config, dtype="bfloat16"), variables_of(config), image)
    assert rough.dtype == jnp.bfloat16
    np.testing.assert_allclose(rough.astype(jnp.float32), exact, rtol=0, atol=0.05 * np.abs(exact).max())
