"""Encoders and their layers with random weights, so that nothing is tested with ones and zeros."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sam_jax.encoders.config import EfficientViTConfig, HieraConfig, TinyViTConfig

SMALL_HIERA = HieraConfig(
    widths=(8, 16, 32, 64),
    depths=(1, 1, 2, 1),
    heads=(1, 2, 4, 4),
    window_sizes=(4, 4, 6, 3),
    global_blocks=(3,),
    out_width=32,
    image_size=(96, 96),
)
"""A Hiera of all kinds of blocks, which compiles fast."""
SMALL_TINY_VIT = TinyViTConfig(
    widths=(4, 8, 12, 16),
    depths=(1, 1, 1, 1),
    heads=(2, 3, 4),
    window_sizes=(3, 5, 4),
    out_width=16,
    image_size=(64, 96),
)
SMALL_EFFICIENT_VIT = EfficientViTConfig(
    widths=(4, 8, 8, 8, 16),
    depths=(1, 0, 1, 1, 1),
    head_width=8,
    neck_width=16,
    neck_depth=1,
    out_width=16,
    grid_size=(8, 12),
    image_size=(64, 96),
    prompt_frame=(128, 192),
)


def noise(*shape: int, seed: int = 1) -> jax.Array:
    """Return an array of deviation 1."""
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32))


def random_variables(module: Any, *inputs: Any) -> Any:
    """Return variables of a module for these inputs: every leaf noise, variances positive."""
    generator = np.random.default_rng(0)
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)

    def draw(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> jax.Array:
        values = 0.3 * generator.standard_normal(leaf.shape, np.float32)
        return jnp.asarray(np.exp(values) if path[-1].key == "variance" else values)

    return jax.tree_util.tree_map_with_path(draw, shapes)
