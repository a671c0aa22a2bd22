"""Fourier features of coordinates and of the grid.

The official class is `PositionEmbeddingRandom` in `segment_anything/modeling/prompt_encoder.py`.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def fourier_features(coordinates: Float[Array, "*n 2"], gaussian_matrix: Float[Array, "2 f"]) -> Float[Array, "*n 2*f"]:
    """Return sin and cos of random projections of (x, y).

    Always float32 with the highest matmul precision: phases reach 24 rad, where bfloat16 is wrong by 0.1 rad.

    Args:
      coordinates: (x, y) as fractions of the padded input frame's width and height.
      gaussian_matrix: the checkpoint's random frequencies.
    """
    centred = 2 * coordinates.astype(jnp.float32) - 1
    frequencies = gaussian_matrix.astype(jnp.float32)
    phases = 2 * np.float32(np.pi) * jnp.matmul(centred, frequencies, precision=jax.lax.Precision.HIGHEST)
    return jnp.concatenate([jnp.sin(phases), jnp.cos(phases)], axis=-1)


def grid_features(grid_size: tuple[int, int], gaussian_matrix: Float[Array, "2 f"]) -> Float[Array, "h w 2*f"]:
    """Return the Fourier features of the centres of a grid of `grid_size` = (h, w) cells that covers the frame."""
    h, w = grid_size
    y = (jnp.arange(h, dtype=jnp.float32) + 0.5) / h
    x = (jnp.arange(w, dtype=jnp.float32) + 0.5) / w
    centres = jnp.stack(jnp.meshgrid(x, y), axis=-1)
    return fourier_features(centres, gaussian_matrix)
