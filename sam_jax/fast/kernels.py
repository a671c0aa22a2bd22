"""What kernels take and compute, on a TPU (`kernels_tpu`) and on a GPU (`kernels_cuda`).

A kernel goes over the image tokens of one prompt set, a block of rows of the grid after the other, and everything
between two arrays of image tokens stays on the chip. Pixels are the last axis, so that they fill a vector. What is
multiplied with the image tokens is absorbed into few rows (`sam_jax.fast.absorbed`), which stay on the chip for all
blocks.

There are two: `attend` is an update of the image tokens and the gathering after it; `upscaled_masks` is the mask head.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jaxtyping import Array, Float


class Blocks(NamedTuple):
    """A grid of image tokens as kernels take it, some rows at a time.

    Attributes:
      height: rows of the grid.
      width: columns of the grid.
      rows: rows of a block.
      columns: columns of a block, with those that are padding.
    """

    height: int
    width: int
    rows: int
    columns: int

    @property
    def number(self) -> int:
        """How many blocks there are."""
        return -(-self.height // self.rows)

    @property
    def pixels(self) -> int:
        """Image tokens of a block."""
        return self.rows * self.columns

    def padded(self, x: Float[Array, "*n hw"]) -> Float[Array, "*n pixels"]:
        """Return a map with zeros where the blocks are larger than the grid."""
        x = x.reshape(*x.shape[:-1], self.height, self.width)
        wider = [(0, self.number * self.rows - self.height), (0, self.columns - self.width)]
        x = jnp.pad(x, [(0, 0)] * (x.ndim - 2) + wider)
        return x.reshape(*x.shape[:-2], -1)

    def cropped(self, x: Float[Array, "*n pixels"]) -> Float[Array, "*n hw"]:
        """Return a map without what `padded` put around it."""
        x = x.reshape(*x.shape[:-1], self.number * self.rows, self.columns)[..., : self.height, : self.width]
        return x.reshape(*x.shape[:-2], -1)


class Update(NamedTuple):
    """An image-to-token attention and the norm after it; rows are [head, token], tokens padded to the same number.

    Attributes:
      keys: what the logits are: products of rows with the placed image tokens.
      bias: added to the logits; the least number where no pixel may attend to the token.
      values: the tokens' values, projected.
      out_bias: added to what a pixel gathers.
      scale: the norm's.
      norm_bias: the norm's.
    """

    keys: Float[Array, "p r c"]
    bias: Float[Array, "p r 1"]
    values: Float[Array, "p c r"]
    out_bias: Float[Array, "c 1"]
    scale: Float[Array, "c 1"]
    norm_bias: Float[Array, "c 1"]


class Head(NamedTuple):
    """The mask head of prompt sets, as `upscale` in `sam_jax.fast.image_form` computes it.

    Attributes:
      first: the first transposed convolution's kernel, centred over channels.
      first_bias: its bias.
      scale: the norm's.
      norm_bias: the norm's.
      second: the second transposed convolution's kernel, the same for every sub-pixel of the first.
      second_bias: its bias.
      weights: what the masks are products of the upscaled tokens with.
    """

    first: Float[Array, "o c"]
    first_bias: Float[Array, "o 1"]
    scale: Float[Array, "o//4 1"]
    norm_bias: Float[Array, "o//4 1"]
    second: Float[Array, "4*d o//4"]
    second_bias: Float[Array, "4*d 1"]
    weights: Float[Array, "p m d"]


def dot(a: Array, b: Array, contract: tuple[int, int] = (1, 0)) -> Array:
    """Return a product of matrices, in float32 at least; of float32, exact on every backend."""
    dtype = jnp.promote_types(a.dtype, jnp.float32)
    precision = lax.Precision.HIGHEST if a.dtype == dtype else None
    axes = ((contract[0],), (contract[1],)), ((), ())
    return lax.dot_general(a, b, axes, precision=precision, preferred_element_type=dtype)


def within(blocks: Blocks, block: Array, shape: tuple[int, ...]) -> Array:
    """Return which pixels of a block, the last axis of a shape, are in the grid."""
    place = lax.broadcasted_iota(jnp.int32, shape, 1)
    columns = jnp.int32(blocks.columns)
    row, column = lax.div(place, columns), lax.rem(place, columns)
    return (block * blocks.rows + row < blocks.height) & (column < blocks.width)


def updated(
    heads: int, epsilon: float, x: Float[Array, "c x"], position: Float[Array, "c x"], update: Update
) -> Float[Array, "c x"]:
    """Return a block of image tokens after an image-to-token attention and the norm after it."""
    logits = dot(update.keys, x + position) + update.bias
    logits = logits.reshape(heads, -1, logits.shape[-1])
    weights = jnp.exp(logits - logits.max(1, keepdims=True))
    weights = (weights / weights.sum(1, keepdims=True)).reshape(-1, weights.shape[-1])
    y = x + dot(update.values, weights.astype(x.dtype)) + update.out_bias
    y = y - y.mean(0, keepdims=True)
    y = y * lax.rsqrt(jnp.square(y).mean(0, keepdims=True) + epsilon)
    return (y * update.scale + update.norm_bias).astype(x.dtype)


def head_inputs(blocks: Blocks, channels: int, head: Head, maps: list[Array]) -> list[pl.BlockSpec]:
    """Return what a program [prompt set, block] of the mask head reads: image tokens, the head, the image's maps."""
    pixels = blocks.pixels
    return [
        pl.BlockSpec((None, channels, pixels), lambda p, x: (p, 0, x)),
        *(pl.BlockSpec(x.shape, lambda p, x: (0, 0)) for x in head[:-1]),
        pl.BlockSpec((None, *head.weights.shape[1:]), lambda p, x: (p, 0, 0)),
        *(pl.BlockSpec((*m.shape[:-1], pixels), lambda p, x, n=m.ndim: (*(0,) * (n - 1), x)) for m in maps),
    ]
