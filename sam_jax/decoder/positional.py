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
    """Return the Fourier features of the centres of a grid of `grid_size` = (h, w) cells that covers the frame.

    A phase is one of the column plus one of the row, so that `sin(x + y) = sin x cos y + cos x sin y` needs sines of h
    + w places and not of hw. On a CPU that is a third of the time of one click. To float32 it is as exact.
    """
    h, w = grid_size
    x = (jnp.arange(w, dtype=jnp.float32) + 0.5) / w
    y = (jnp.arange(h, dtype=jnp.float32) + 0.5) / h
    of_x = fourier_features(jnp.stack([x, jnp.full_like(x, 0.5)], -1), gaussian_matrix)
    of_y = fourier_features(jnp.stack([jnp.full_like(y, 0.5), y], -1), gaussian_matrix)
    (sin_x, cos_x), (sin_y, cos_y) = (jnp.split(of_axis.T, 2) for of_axis in (of_x, of_y))
    sin_y, cos_y, sin_x, cos_x = sin_y[:, :, None], cos_y[:, :, None], sin_x[:, None], cos_x[:, None]
    # Channels first up to here: the fast paths take them so, and the plain modules read each value once.
    features = jnp.concatenate([sin_x * cos_y + cos_x * sin_y, cos_x * cos_y - sin_x * sin_y])
    return jnp.moveaxis(features, 0, -1)
