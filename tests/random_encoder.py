"""Encoders and their layers with random weights, so that nothing is tested with ones and zeros."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


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
