"""What the filters need to know of masks, counted at the image's own size without making its pixels.

Sizes are arrays, so that one program counts in images of every size. Tiles of a few thousand pixels are made, counted
and forgotten, and only where a low-res logit is high enough.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from sam_jax.config import Postprocessing
from sam_jax.images.resize import Axis, Taps, TracedSize, comparison, mask_axes, tap_matrix, tapped_rows, taps_of
from sam_jax.prompts import AnyArray

HEIGHT, WIDTH = 32, 128
"""Of a tile, in pixels; measured on two cores."""

SEGMENT = 16
"""Tiles below each other that one number per pixel counts: three counts of 5 bits, and a bit for each tile."""

NOTHING = -1e30
"""A logit that is never in a mask."""

FAR = 1 << 24
"""A coordinate beyond every image."""


@struct.dataclass
class MaskStatistics:
    """Counts of pixels at the original size.

    Attributes:
      outer: pixels whose logit is above minus the offset.
      area: pixels whose logit is above 0, which are the mask.
      inner: pixels whose logit is above the offset.
      boxes: first and last pixels (x0, y0, x1, y1) of the mask; zeros for an empty one.
    """

    outer: Int[Array, "*k"]
    area: Int[Array, "*k"]
    inner: Int[Array, "*k"]
    boxes: Int[Array, "*k 4"]


def _pixels_of(axis: Axis, first: Array, last: Array) -> tuple[Array, Array]:
    """The pixels that read low-res ones from `first` to `last`, or a few more: the first, and the end."""
    step = axis.frame / axis.low * axis.original / axis.size
    begin = jnp.floor((first - 2) * step).astype(jnp.int32) - 2
    end = jnp.ceil((last + 3) * step).astype(jnp.int32) + 2
    return jnp.clip(begin, 0, axis.original), jnp.clip(end, 0, axis.original)


def count_pixels(
    logits: Float[Array, "k my mx"],
    *,
    input_size: TracedSize,
    original_size: TracedSize,
    image_size: tuple[int, int],
    postprocessing: Postprocessing = "sam",
    offset: float | Float[AnyArray, ""],
) -> MaskStatistics:
    """Return what full-size masks would be counted to: exactly what `resize_masks` and sums give.

    Args:
      logits: low-res logits.
      input_size: height and width of the resized image, before padding; may be traced.
      original_size: height and width of the image; may be traced.
      image_size: height and width of the padded input frame.
      postprocessing: as in `SamConfig`.
      offset: of the stability score, at least 0.
    """
    rows, columns = mask_axes(logits, input_size, original_size, image_size, postprocessing)
    logits = logits.astype(jnp.float32)
    # A pixel is a mean of low-res logits, so that where all of them are low nothing is counted. The margin is rounding.
    # A cubic pixel can be higher than all that it reads.
    high = jnp.ones(logits.shape, bool) if rows.cubic else logits > -offset - 1e-3 * jnp.maximum(offset, 1)
    top, bottom = _pixels_of(rows, *_ends(high.any((0, 2))))
    left, right = _pixels_of(columns, *_ends(high.any((0, 1))))
    compare = comparison(postprocessing)
    first, last = left // WIDTH, -(-right // WIDTH)
    last = jnp.where(high.any(), last, first)

    def column(c: Array, counted: MaskStatistics) -> MaskStatistics:
        wide = _widened(logits, columns, c * WIDTH)

        def segment(s: Array, counted: MaskStatistics) -> MaskStatistics:
            place = c * WIDTH, s * SEGMENT * HEIGHT
            return _merged(counted, _count_segment(wide, rows, *place, bottom, offset, compare))

        height = SEGMENT * HEIGHT
        return lax.fori_loop(top // height, -(-bottom // height), segment, counted)

    k = len(logits)
    zeros = jnp.zeros(k, jnp.int32)
    nothing = MaskStatistics(zeros, zeros, zeros, jnp.tile(jnp.array([FAR, FAR, -1, -1], jnp.int32), (k, 1)))
    # Two loops that know nothing of each other run at the same time.
    middle = (first + last) // 2
    counted = _merged(lax.fori_loop(first, middle, column, nothing), lax.fori_loop(middle, last, column, nothing))
    return dataclasses.replace(counted, boxes=jnp.where(counted.area[:, None] > 0, counted.boxes, 0))


def _ends(used: Bool[Array, " n"]) -> tuple[Array, Array]:
    return jnp.argmax(used), used.shape[0] - 1 - jnp.argmax(used[::-1])


def _merged(one: MaskStatistics, other: MaskStatistics) -> MaskStatistics:
    """The counts of both parts of an image together."""
    low = jnp.minimum(one.boxes[:, :2], other.boxes[:, :2])
    high = jnp.maximum(one.boxes[:, 2:], other.boxes[:, 2:])
    boxes = jnp.concatenate([low, high], -1)
    return MaskStatistics(one.outer + other.outer, one.area + other.area, one.inner + other.inner, boxes)


def _widened(logits: Float[Array, "k my mx"], axis: Axis, start: Array) -> Float[Array, "k rows width"]:
    """The low-res rows at `WIDTH` pixels of the original width, and a row of `NOTHING` below them."""
    pixel = start + jnp.arange(WIDTH, dtype=jnp.int32)
    index, weight = taps_of(pixel, axis)

    def reading(read: int) -> Array:
        begin = jnp.minimum(index[0, 0], axis.low - read)
        seen = lax.dynamic_slice_in_dim(logits, begin, read, axis=2)
        matrix = tap_matrix(index - begin, weight, read)
        return jnp.einsum("kyx,wx->kyw", seen, matrix, precision=lax.Precision.HIGHEST)

    # How many low-res columns these pixels read: few, unless the image is small.
    reads = [*(n for n in (32, 64, 128) if n < axis.low), axis.low]
    needed = WIDTH * axis.low * axis.size // (axis.frame * axis.original) + 5
    branch = jnp.searchsorted(jnp.array(reads), needed)
    wide = lax.switch(branch, [lambda read=read: reading(read) for read in reads])
    wide = jnp.where(pixel < axis.original, wide, NOTHING)
    wide = jnp.concatenate([wide, jnp.full((len(wide), 1, WIDTH), NOTHING, wide.dtype)], axis=1)
    return lax.optimization_barrier(wide)  # otherwise XLA would multiply again in each tap


def _count_segment(
    wide: Float[Array, "k rows width"],
    axis: Axis,
    left: Array,
    top: Array,
    bottom: Array,
    offset: float | Float[AnyArray, ""],
    compare: Callable[[Any, Any], Any],
) -> MaskStatistics:
    """Count in the tiles of a segment, of which those from the row `bottom` on are empty; `compare` tells the mask."""

    def tile(t: Array, code: Int[Array, "k height width"]) -> Int[Array, "k height width"]:
        pixel = top + t * HEIGHT + jnp.arange(HEIGHT, dtype=jnp.int32)
        index, weight = taps_of(pixel, axis)
        inside = (pixel < axis.original)[:, None]
        index = jnp.where(inside, index, axis.low)
        weight = jnp.where(inside, weight, jnp.eye(1, weight.shape[1], dtype=weight.dtype))
        logit = tapped_rows(wide, Taps(index, weight))
        here = (1 << 5) | (1 << (15 + t))  # one more in the area, and the tile's bit
        code += (logit > -offset).astype(jnp.int32)
        code += jnp.where(compare(logit, 0), here, 0)
        return code + jnp.where(logit > offset, 1 << 10, 0)

    number = jnp.minimum(SEGMENT, -(-(bottom - top) // HEIGHT))
    zero = jnp.zeros((len(wide), HEIGHT, WIDTH), jnp.int32)
    code = lax.fori_loop(0, number, tile, zero)
    outer, area, inner = code & 31, (code >> 5) & 31, (code >> 10) & 31
    columns = left + jnp.arange(WIDTH, dtype=jnp.int32)
    x0, x1 = _extent((area > 0).any(1), columns)
    tiles = lax.reduce(code >> 15, np.int32(0), lax.bitwise_or, (2,))
    of_tile = (tiles[..., None] >> jnp.arange(SEGMENT)) & 1
    rows = top + jnp.arange(HEIGHT, dtype=jnp.int32)[:, None] + HEIGHT * jnp.arange(SEGMENT, dtype=jnp.int32)
    y0, y1 = _extent(of_tile.reshape(len(wide), -1) > 0, rows.reshape(-1))
    boxes = jnp.stack([x0, y0, x1, y1], -1)
    return MaskStatistics(outer.sum((1, 2)), area.sum((1, 2)), inner.sum((1, 2)), boxes)


def _extent(used: Bool[Array, "k n"], place: Int[Array, " n"]) -> tuple[Int[Array, " k"], Int[Array, " k"]]:
    """The first and the last place in use: `FAR` and -1 where none is."""
    return jnp.where(used, place, FAR).min(1), jnp.where(used, place, -1).max(1)
