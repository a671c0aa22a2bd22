"""Full-size masks of images of any size by a few programs: tiles of one size, as many as an image needs.

What depends on the image's size, which low-res pixels each pixel reads and their weights, is computed on the host and
passed in. So an image of a new size compiles nothing. A program of its own is faster by a third and takes a second to
compile: it pays after about a thousand masks of one size.
"""

import collections
import functools
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from sam_jax.config import Postprocessing
from sam_jax.images.resize import Taps, axis_taps, comparison, mask_axes, tap_matrix, tapped_rows
from sam_jax.images.size import Size
from sam_jax.prompts import AnyArray

HEIGHT, WIDTH = 64, 128
"""Of a tile, in pixels; measured on two cores."""

TOGETHER = 3
"""Masks that are resized at once."""

PAYS = 1000
"""From so many masks of one size on, a program for that size pays."""

_asked = collections.Counter[Any]()
_threads = ThreadPoolExecutor(2, "sam-jax-tiles")


def pays(masks: int, *sizes: Any) -> bool:
    """Return whether so many more masks of these sizes make a program of their own worth its compilation."""
    _asked[sizes] += masks
    return _asked[sizes] > PAYS


def resize_by_tiles(
    logits: Float[AnyArray, "n my mx"],
    *,
    input_size: Size,
    original_size: Size,
    image_size: Size | None = None,
    postprocessing: Postprocessing = "sam",
    threshold: float | None = None,
) -> Float[np.ndarray, "n height width"] | Bool[np.ndarray, "n height width"]:
    """Return what `resize_masks` returns, on the host; with a threshold, what `binary_masks` returns."""
    mx = logits.shape[-1]
    height, width = original_size
    side = 1 << max(9, (max(original_size) - 1).bit_length())  # a program is for images of up to this side
    whole = int(input_size[0]), int(input_size[1])
    axes = mask_axes(logits, whole, original_size, image_size, postprocessing)
    rows, columns = (_in_tiles(axis_taps(axis), n, side) for axis, n in zip(axes, (HEIGHT, WIDTH), strict=True))
    down, across = -(-height // HEIGHT), -(-width // WIDTH)
    # The low-res columns that a tile reads: few, unless the image is narrow.
    read = min(mx, 4 * WIDTH * mx // side + 8) if 4 * width >= side else mx
    half = -(-across // 2)
    # The bytes of room are touched, so that they are few; and small images share it, so that the programs are few.
    room = 1 << max(4, (down * half - 1).bit_length())
    compare = None if threshold is None else comparison(postprocessing)
    program = functools.partial(_tiles, room=room, read=read, compare=compare)
    masks = _aligned((len(logits), height, width), np.float32 if threshold is None else np.bool_)

    def make(first: int, left: int, count: int) -> None:
        part = logits[first : first + TOGETHER]
        of_part = Taps(*(np.roll(x, -left, 0)[: side // WIDTH // 2] for x in columns))
        tiles = program(part, rows, of_part, down, count, threshold or 0.0)
        columns_of_tiles = np.asarray(tiles)[:, : down * count].reshape(len(part), count, down * HEIGHT, WIDTH)
        for column in range(count):
            start = (left + column) * WIDTH
            place = masks[first : first + TOGETHER, :, start : start + WIDTH]
            place[:] = columns_of_tiles[:, column, :height, : width - start]

    groups = [max(0, min(first, len(logits) - TOGETHER)) for first in range(0, len(logits), TOGETHER)]
    work = [(first, left, min(half, across - left)) for first in groups for left in range(0, across, half)]
    list(_threads.map(lambda item: make(*item), work))
    return masks


def _aligned(shape: tuple[int, ...], dtype: type) -> np.ndarray:
    """An array that JAX takes as it is on a CPU: its memory begins at a multiple of 64 bytes."""
    memory = np.empty(math.prod(shape) * np.dtype(dtype).itemsize + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + memory.size - 64].view(dtype).reshape(shape)


def _in_tiles(taps: Taps, length: int, side: int) -> Taps:
    """The taps of one axis, filled up to `side` pixels and grouped by tiles."""
    more = ((0, side - len(taps.pixel)), (0, 0))
    index, weight = np.pad(taps.pixel, more, mode="edge"), np.pad(taps.weight, more)
    number = index.shape[-1]
    return Taps(index.reshape(-1, length, number), weight.reshape(-1, length, number))


@functools.partial(jax.jit, static_argnames=("room", "read", "compare"))
def _tiles(
    logits: Float[AnyArray, "k my mx"],
    rows: Any,
    columns: Any,
    down: Int[AnyArray, ""] | int,
    across: Int[AnyArray, ""] | int,
    threshold: float | Float[AnyArray, ""],
    room: int,
    read: int,
    compare: Callable[[Any, Any], Any] | None,
) -> Array:
    """Room for tiles, of which `down` x `across` are made, column by column; what is behind them is anything.

    They are logits, or with a comparison where these stand it with the threshold.
    """
    tiles = jax.lax.empty((len(logits), room, HEIGHT, WIDTH), jnp.bool_ if compare else jnp.float32)

    def column(c: Array, tiles: Array) -> Array:
        index, weight = columns.pixel[c], columns.weight[c]
        first = jnp.minimum(index[0, 0], logits.shape[-1] - read)
        seen = jax.lax.dynamic_slice_in_dim(logits.astype(jnp.float32), first, read, axis=2)
        matrix = tap_matrix(index - first, weight, read)
        wide = jnp.einsum("kyx,wx->kyw", seen, matrix, precision=jax.lax.Precision.HIGHEST)
        wide = jax.lax.optimization_barrier(wide)  # otherwise XLA would multiply again in each tap

        def tile(r: Array, tiles: Array) -> Array:
            resized = tapped_rows(wide, Taps(rows.pixel[r], rows.weight[r]))
            made = (compare(resized, threshold) if compare else resized)[:, None]
            return jax.lax.dynamic_update_slice(tiles, made, (0, c * down + r, 0, 0))

        return jax.lax.fori_loop(0, down, tile, tiles)

    return jax.lax.fori_loop(0, across, column, tiles)
