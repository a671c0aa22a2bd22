"""PyTorch's bicubic resize, which JAX's `cubic` is not: its kernel is another, and it has no clamped border."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

SHARPNESS = -0.75
"""The slope of the kernel one pixel from its centre; `jax.image.resize` has -0.5."""


def bicubic_matrix(size: int, new_size: int) -> Float[np.ndarray, "{new_size} {size}"]:
    """Return the weights of the old pixels in each new one along one axis.

    As `torch.nn.functional.interpolate(mode="bicubic")` does: half-pixel centres, no antialiasing, four pixels for each
    new one, those beyond the border being the pixel at the border.

    Args:
      size: pixels there are.
      new_size: pixels to make.
    """
    centres = (np.arange(new_size) + 0.5) * size / new_size - 0.5
    taps = np.floor(centres).astype(int)[:, None] + np.arange(-1, 3)
    matrix = np.zeros((new_size, size))
    np.add.at(
        matrix, (np.arange(new_size)[:, None], taps.clip(0, size - 1)), cubic_kernel(np.abs(centres[:, None] - taps))
    )
    return matrix


def cubic_kernel(distance: Any, xp: Any = np) -> Any:
    """Return the cubic convolution kernel (Keys, 1981) at distances from 0 to 2 pixels, by NumPy or JAX (`xp`)."""
    a, d = SHARPNESS, distance
    near = ((a + 2) * d - (a + 3)) * d**2 + 1
    far = a * (d - 1) * (d - 2) ** 2  # multiplied out, it would lose digits beside 2
    return xp.where(d <= 1, near, far)


def resize_bicubic(x: Float[Array, "h w c"], size: tuple[int, int]) -> Float[Array, "{size[0]} {size[1]} c"]:
    """Return a map resized as PyTorch does.

    Args:
      x: the map.
      size: height and width to make.
    """
    rows, columns = (bicubic_matrix(old, new).astype(x.dtype) for old, new in zip(x.shape[:2], size, strict=True))
    return jnp.einsum("ah,hwc,bw->abc", rows, x, columns, precision=jax.lax.Precision.HIGHEST)
