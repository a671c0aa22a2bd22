"""The small layers that both halves of the decoder are made of."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.linen.dtypes import promote_dtype
from jaxtyping import Array, Float

CONV_NORM_EPS = 1e-6
"""Epsilon of the norms between convolutions (`LayerNorm2d` in `segment_anything/modeling/common.py`)."""


def gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Return the exact GELU, x * Phi(x).

    Written with `erf`: the `erfc` form of `jax.nn.gelu` takes twice as long on a CPU for the same float32 result.
    """
    return 0.5 * x * (1 + jax.lax.erf(x * np.sqrt(0.5).astype(x.dtype)))


def layer_norm(
    epsilon: float, dtype: jnp.dtype, name: str | None = None, axes: int | Sequence[int] = -1
) -> nn.LayerNorm:
    """Return a LayerNorm over the channels, its statistics in at least float32; or over more axes, the last among them.

    The fast variance E[x^2] - E[x]^2 is off: it loses digits where the mean is large beside the deviation.
    """
    return nn.LayerNorm(epsilon=epsilon, use_fast_variance=False, dtype=dtype, name=name, reduction_axes=axes)


class Mlp(nn.Module):
    """Linear layers `layer_0`, `layer_1`, ... with a ReLU between them (`MLP` in `mask_decoder.py`).

    Attributes:
      widths: output channels of each layer.
      dtype: compute dtype.
      activation: what is between the layers, if it is no ReLU.
    """

    widths: tuple[int, ...]
    dtype: jnp.dtype
    activation: Callable[[Array], Array] = nn.relu

    @nn.compact
    def __call__(self, x: Float[Array, "*n channels"]) -> Float[Array, "*n out"]:
        """Map the last axis through the layers."""
        for i, width in enumerate(self.widths):
            x = nn.Dense(width, dtype=self.dtype, name=f"layer_{i}")(self.activation(x) if i else x)
        return x


class PatchConv(nn.Module):
    """Convolution whose stride is its kernel's size: a linear layer on patches.

    No two patches share a pixel, so it is a space-to-depth and one matrix product, whose gradient is one, too; that of
    a convolution takes several times as long on a CPU. The kernel's layout is that of `nn.Conv`: [size, size, in, out].

    Attributes:
      features: output channels.
      size: height and width of a patch.
      dtype: compute dtype.
      use_bias: whether a bias is added.
    """

    features: int
    size: int
    dtype: jnp.dtype
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "h w c"]) -> Float[Array, "h//{self.size} w//{self.size} {self.features}"]:
        """Return the mapped patches; rows and columns beyond the last whole patch are left out."""
        (h, w, c), size = x.shape, self.size
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (size, size, c, self.features), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32) if self.use_bias else None
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
        patches = x[: h // size * size, : w // size * size].reshape(h // size, size, w // size, size, c)
        y = jnp.einsum("hkwli,klio->hwo", patches, kernel)
        return y if bias is None else y + bias[None, None]


class ConvTranspose2x2(nn.Module):
    """Transposed convolution with kernel 2 and stride 2: twice the height and width.

    No two output pixels share an input window, so it is one matrix product and a depth-to-space. The kernel's layout is
    that of `nn.ConvTranspose(transpose_kernel=True)`: [2, 2, out, in].

    Attributes:
      features: output channels.
      dtype: compute dtype.
    """

    features: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "h w c"]) -> Float[Array, "2*h 2*w {self.features}"]:
        """Return the upscaled map."""
        h, w, c = x.shape
        init = nn.initializers.lecun_normal(in_axis=-1, out_axis=-2)
        kernel = self.param("kernel", init, (2, 2, self.features, c), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
        blocks = jnp.einsum("hwi,kloi->hkwlo", x, kernel)
        return blocks.reshape(2 * h, 2 * w, self.features) + bias[None, None]
