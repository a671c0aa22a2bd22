"""The kernels of a TPU (`sam_jax.fast.kernels`), in Pallas's language for it."""

import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from sam_jax.decoder.layers import CONV_NORM_EPS, gelu
from sam_jax.fast.kernels import Blocks, Head, Update, dot, head_inputs, updated, within

PIXELS = 512
"""Image tokens of a block, about."""

LANES = 128
"""Numbers of a vector. A block is a multiple of it, and so is a row of logits, which has four for each pixel."""

BLOCKS_IN_TURN = pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary"))
"""Of the grid's axes [prompt set, block], the second has an order."""


def blocks_of(grid_size: tuple[int, int]) -> Blocks:
    """Return the blocks of a grid. They have an even number of rows: four times as many fill a tile."""
    height, width = grid_size
    columns = -(-width // (LANES // 4)) * (LANES // 4)
    least = max(2, LANES // math.gcd(columns, LANES))
    rows = least * max(1, min(PIXELS // columns, height) // least)
    return Blocks(height, width, rows, columns)


def attend(
    blocks: Blocks,
    heads: int,
    epsilon: float,
    tokens: Float[Array, "#p c x"],
    shift: Float[Array, "c 1"],
    position: Float[Array, "c x"],
    update: Update | None,
    queries: Float[Array, "p q c"],
    *,
    interpret: bool,
) -> tuple[Float[Array, "p c x"] | None, Float[Array, "p q c"]]:
    """Return the updated image tokens, where there is an update, and what queries gather of them.

    Args:
      blocks: what the pixels are in.
      heads: of the update's rows.
      epsilon: the norm's.
      tokens: image tokens, those of all prompt sets or of each.
      shift: added to all of them first.
      position: the image tokens' positional part.
      update: what changes the image tokens before they are gathered.
      queries: rows whose products with the placed image tokens are attention logits.
      interpret: run on any device, slowly.
    """
    (sets, number, channels), pixels = queries.shape, blocks.pixels
    accumulator = jnp.promote_types(tokens.dtype, jnp.float32)

    own = 0 if len(tokens) == 1 else 1
    in_specs = [
        pl.BlockSpec((None, channels, pixels), lambda p, x: (own * p, 0, x)),
        pl.BlockSpec((channels, 1), lambda p, x: (0, 0)),
        pl.BlockSpec((channels, pixels), lambda p, x: (0, x)),
        pl.BlockSpec((None, number, channels), lambda p, x: (p, 0, 0)),
    ]
    out_specs = [pl.BlockSpec((None, number, channels), lambda p, x: (p, 0, 0))]
    out_shape = [jax.ShapeDtypeStruct((sets, number, channels), tokens.dtype)]
    if update is not None:
        of_set = [pl.BlockSpec((None, *x.shape[1:]), lambda p, x: (p, 0, 0)) for x in update[:3]]
        of_all = [pl.BlockSpec(x.shape, lambda p, x: (0, 0)) for x in update[3:]]
        in_specs += of_set + of_all
        out_specs.append(pl.BlockSpec((None, channels, pixels), lambda p, x: (p, 0, x)))
        out_shape.append(jax.ShapeDtypeStruct((sets, channels, blocks.number * pixels), tokens.dtype))

    def kernel(tokens_ref: Any, shift_ref: Any, position_ref: Any, queries_ref: Any, *refs: Any) -> None:
        update_refs = refs[: len(in_specs) - 4]
        gathered_ref, *written, sum_ref, largest_ref, total_ref = refs[len(in_specs) - 4 :]
        block = pl.program_id(1)
        x, position = tokens_ref[...] + shift_ref[...], position_ref[...]
        if update_refs:
            x = updated(heads, epsilon, x, position, Update(*(ref[...] for ref in update_refs)))
            written[0][...] = x

        @pl.when(block == 0)
        def _() -> None:
            sum_ref[...] = jnp.zeros_like(sum_ref)
            total_ref[...] = jnp.zeros_like(total_ref)
            largest_ref[...] = jnp.full_like(largest_ref, -jnp.inf)

        logits = dot(queries_ref[...], x + position)
        if blocks.number * pixels > blocks.height * blocks.width:
            logits = jnp.where(within(blocks, block, logits.shape), logits, -jnp.inf)
        before = largest_ref[...]
        largest = jnp.maximum(before, logits.max(1, keepdims=True))
        weights, less = jnp.exp(logits - largest), jnp.exp(before - largest)
        largest_ref[...] = largest
        total_ref[...] = total_ref[...] * less + weights.sum(1, keepdims=True)
        sum_ref[...] = sum_ref[...] * less + dot(weights.astype(x.dtype), x, (1, 1))

        @pl.when(block == blocks.number - 1)
        def _() -> None:
            gathered_ref[...] = (sum_ref[...] / total_ref[...]).astype(gathered_ref.dtype)

    gathered, *written = pl.pallas_call(
        kernel,
        grid=(sets, blocks.number),
        in_specs=in_specs,
        out_specs=out_specs,
        out_shape=out_shape,
        scratch_shapes=[pltpu.VMEM((number, size), accumulator) for size in (channels, 1, 1)],
        compiler_params=BLOCKS_IN_TURN,
        interpret=interpret,
    )(tokens, shift, position, queries, *(update or ()))
    return written[0] if written else None, gathered


def upscaled_masks(
    blocks: Blocks,
    head: Head,
    tokens: Float[Array, "p c x"],
    stride_8: Float[Array, "o x"] | None,
    stride_4: Float[Array, "16 d x"] | None,
    *,
    upscaled: bool,
    interpret: bool,
) -> tuple[Float[Array, "p m my mx"], Float[Array, "p 16 d x"] | None]:
    """Return the masks' logits, and the upscaled tokens by sub-pixel where these are wanted.

    Args:
      blocks: what the pixels are in.
      head: weights.
      tokens: image tokens.
      stride_8: added to the first convolution.
      stride_4: added to the second one.
      upscaled: whether the upscaled tokens are returned.
      interpret: run on any device, slowly.
    """
    (sets, channels, _), (masks, depth) = tokens.shape, head.weights.shape[1:]
    pixels, result = blocks.pixels, jnp.promote_types(tokens.dtype, jnp.float32)
    maps = [x for x in (stride_8, stride_4) if x is not None]
    rows, columns = 4 * blocks.rows, 4 * blocks.columns
    in_specs = head_inputs(blocks, channels, head, maps)
    out_specs = [pl.BlockSpec((None, masks, rows, columns), lambda p, x: (p, 0, x, 0))]
    out_shape = [jax.ShapeDtypeStruct((sets, masks, blocks.number * rows, columns), result)]
    if upscaled:
        out_specs.append(pl.BlockSpec((None, 16, depth, pixels), lambda p, x: (p, 0, 0, x)))
        out_shape.append(jax.ShapeDtypeStruct((sets, 16, depth, blocks.number * pixels), tokens.dtype))

    def kernel(tokens_ref: Any, *refs: Any) -> None:
        weights = Head(*(ref[...] for ref in refs[: len(head)]))
        map_refs, (logits_ref, *upscaled_ref) = refs[len(head) : len(in_specs) - 1], refs[len(in_specs) - 1 :]
        stride_8_ref = map_refs[0] if stride_8 is not None else None
        stride_4_ref = map_refs[-1] if stride_4 is not None else None
        x = dot(weights.first, tokens_ref[...]) + weights.first_bias
        if stride_8_ref is not None:
            x = x + stride_8_ref[...]
        width, logits = len(weights.scale), {}
        for i in range(4):
            y = x[i * width : (i + 1) * width]
            y = y * lax.rsqrt(jnp.square(y).mean(0, keepdims=True) + CONV_NORM_EPS)
            y = gelu(y * weights.scale + weights.norm_bias).astype(tokens_ref.dtype)
            z = dot(weights.second, y) + weights.second_bias
            for j in range(4):
                u = z[j * depth : (j + 1) * depth]
                if stride_4_ref is not None:
                    u = u + stride_4_ref[4 * i + j]
                u = gelu(u).astype(tokens_ref.dtype)
                logits[i, j] = dot(weights.weights, u)
                for ref in upscaled_ref:
                    ref[4 * i + j] = u
        # Both convolutions have a row and a column for each sub-pixel.
        for first, second in itertools.product(range(2), repeat=2):
            line = interleaved([logits[2 * first + i, 2 * second + j] for i in range(2) for j in range(2)])
            for row in range(blocks.rows):
                place = slice(row * columns, (row + 1) * columns)
                logits_ref[:, 4 * row + 2 * first + second, :] = line[:, place]

    logits, *of_tokens = pl.pallas_call(
        kernel,
        grid=(sets, blocks.number),
        in_specs=in_specs,
        out_specs=out_specs,
        out_shape=out_shape,
        compiler_params=BLOCKS_IN_TURN,
        interpret=interpret,
    )(tokens, *head, *maps)
    return logits[..., : 4 * blocks.height, : 4 * blocks.width], of_tokens[0] if of_tokens else None


def interleaved(parts: list[Float[Array, "m x"]]) -> Float[Array, "m 4*x"]:
    """Return four maps as one, whose columns are those of each in turn."""
    lane = lax.broadcasted_iota(jnp.int32, (len(parts[0]), LANES), 1)
    turn, share = lane & 3, LANES // 4
    is_turn = [turn == i for i in range(4)]
    chosen = [(lane >> 2) + start for start in range(0, LANES, share)]
    vectors = []
    for start in range(0, parts[0].shape[1], share):
        first = start - start % LANES
        vector, *others = (
            lanes_of(lax.slice_in_dim(part, first, first + LANES, axis=1), chosen[start % LANES // share])
            for part in parts
        )
        for i, other in enumerate(others, 1):
            vector = lax.select(is_turn[i], other, vector)
        vectors.append(vector)
    return lax.concatenate(vectors, 1)


def lanes_of(x: Float[Array, "m lanes"], chosen: Int[Array, "m lanes"]) -> Float[Array, "m lanes"]:
    """Return chosen numbers of each row, as `jnp.take_along_axis`, which would be traced anew in every call."""
    numbers = lax.GatherDimensionNumbers(
        offset_dims=(),
        collapsed_slice_dims=(1,),
        start_index_map=(1,),
        operand_batching_dims=(0,),
        start_indices_batching_dims=(0,),
    )
    return lax.gather(x, lax.expand_dims(chosen, (2,)), numbers, (1, 1), mode="promise_in_bounds")
