"""Convolutions that several encoders are made of."""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen.dtypes import promote_dtype
from jaxtyping import Array, Float

NHWC = ("NHWC", "HWIO", "NHWC")


def depthwise(
    x: Float[Array, "h w c"], kernel: Float[Array, "k k 1 c"], stride: int
) -> Float[Array, "(h+{stride}-1)//{stride} (w+{stride}-1)//{stride} c"]:
    """Convolve each channel with its own kernel, zeros around the map.

    A sum of shifted maps, which XLA fuses into one loop: on a CPU its grouped convolution takes eight times as long.
    """
    (h, w, _), side = x.shape, kernel.shape[0]
    x = jnp.pad(x, ((side // 2, side // 2), (side // 2, side // 2), (0, 0)))
    shifted = (x[i : i + h : stride, j : j + w : stride] * kernel[i, j][None] for i in range(side) for j in range(side))
    return functools.reduce(jnp.add, shifted)


class ConvNorm(nn.Module):
    """A convolution without bias and a batch norm with stored statistics, done as one convolution.

    The statistics are in the collection `constants`: they are measured, not trained, so no optimizer may see them.

    Attributes:
      features: output channels.
      dtype: compute dtype.
      side: height and width of the kernel, whose centre is on the pixel.
      stride: step in pixels.
      depthwise: whether each channel has its own convolution.
      epsilon: of the norm; the default is PyTorch's.
    """

    features: int
    dtype: jnp.dtype
    side: int = 1
    stride: int = 1
    depthwise: bool = False
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: Float[Array, "h w c"]) -> Float[Array, "a b {self.features}"]:
        """Return the normalised map."""
        inputs = 1 if self.depthwise else x.shape[-1]
        kernel = self.param(
            "kernel", nn.initializers.lecun_normal(), (self.side, self.side, inputs, self.features), jnp.float32
        )
        scale = self.param("scale", nn.initializers.ones, (self.features,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        mean = self.variable("constants", "mean", jnp.zeros, (self.features,), jnp.float32).value
        variance = self.variable("constants", "variance", jnp.ones, (self.features,), jnp.float32).value
        factor = scale * jax.lax.rsqrt(variance + self.epsilon)
        x, kernel, bias = promote_dtype(x, kernel * factor[None, None, None], bias - mean * factor, dtype=self.dtype)
        bias = bias[None, None]
        if self.depthwise:
            return depthwise(x, kernel, self.stride) + bias
        padding = [(self.side // 2, self.side // 2)] * 2
        strides = (self.stride, self.stride)
        return jax.lax.conv_general_dilated(x[None], kernel, strides, padding, dimension_numbers=NHWC)[0] + bias
