"""The kernels of a GPU (`sam_jax.fast.kernels`), in Pallas's language for Triton.

No program can wait for another one there. So each goes over some of a prompt set's blocks, and what the programs of one
prompt set gather is put together afterwards. Sizes are powers of two.
"""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Float

from sam_jax.decoder.layers import CONV_NORM_EPS
from sam_jax.fast.kernels import Blocks, Head, Update, dot, head_inputs, updated, within

PROGRAMS = 256
"""Programs of a kernel, about: a large card runs half as many at once."""

LEAST_TURNS = 2
"""Blocks that a program goes over at least: what each program gathers is written and read."""

LEAST_COLUMNS = 16
"""What a product on tensor cores has at least."""

PARAMS = plgpu.CompilerParams(num_warps=8, num_stages=1)


def blocks_of(grid_size: tuple[int, int]) -> Blocks:
    """Return the blocks of a grid: its rows."""
    height, width = grid_size
    return Blocks(height, width, 1, max(LEAST_COLUMNS, pl.next_power_of_2(width)))


def turns_of(sets: int, blocks: int) -> int:
    """Return over how many blocks a program goes, of so many prompt sets with so many blocks each."""
    enough = (n for n in range(LEAST_TURNS, blocks) if blocks % n == 0 and sets * blocks <= n * PROGRAMS)
    return next(enough, blocks)


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
    """Return the updated image tokens, where there is an update, and what queries gather of them; see `kernels_tpu`."""
    (sets, number, channels), pixels = queries.shape, blocks.pixels
    accumulator = jnp.promote_types(tokens.dtype, jnp.float32)
    turns = turns_of(sets, blocks.number)
    programs, span = blocks.number // turns, turns * pixels

    own = 0 if len(tokens) == 1 else 1
    in_specs = [
        pl.BlockSpec((None, channels, span), lambda p, x: (own * p, 0, x)),
        pl.BlockSpec((channels, 1), lambda p, x: (0, 0)),
        pl.BlockSpec((channels, span), lambda p, x: (0, x)),
        pl.BlockSpec((None, number, channels), lambda p, x: (p, 0, 0)),
    ]
    sizes = (channels, 1, 1)
    out_specs = [pl.BlockSpec((None, None, number, size), lambda p, x: (p, x, 0, 0)) for size in sizes]
    out_shape = [jax.ShapeDtypeStruct((sets, programs, number, size), accumulator) for size in sizes]
    if update is not None:
        in_specs += [pl.BlockSpec((None, *x.shape[1:]), lambda p, x: (p, 0, 0)) for x in update[:3]]
        in_specs += [pl.BlockSpec(x.shape, lambda p, x: (0, 0)) for x in update[3:]]
        out_specs.append(pl.BlockSpec((None, channels, span), lambda p, x: (p, 0, x)))
        out_shape.append(jax.ShapeDtypeStruct((sets, channels, programs * span), tokens.dtype))

    def kernel(tokens_ref: Any, shift_ref: Any, position_ref: Any, queries_ref: Any, *refs: Any) -> None:
        update_refs, (sum_ref, total_ref, largest_ref, *written) = refs[: len(in_specs) - 4], refs[len(in_specs) - 4 :]
        first = pl.program_id(1) * turns

        def turn(i: Array, before: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            place = pl.ds(i * pixels, pixels)
            x, position = tokens_ref[:, place] + shift_ref[...], position_ref[:, place]
            if update_refs:
                x = updated(heads, epsilon, x, position, Update(*(ref[...] for ref in update_refs)))
                written[0][:, place] = x
            logits = dot(queries_ref[...], x + position)
            if blocks.columns > blocks.width:
                logits = jnp.where(within(blocks, first + i, logits.shape), logits, -jnp.inf)
            gathered, total, largest = before
            less, largest = largest, jnp.maximum(largest, logits.max(1, keepdims=True))
            weights, less = jnp.exp(logits - largest), jnp.exp(less - largest)
            gathered = gathered * less + dot(weights.astype(x.dtype), x, (1, 1))
            return gathered, total * less + weights.sum(1, keepdims=True), largest

        none = [jnp.full((number, size), fill, accumulator) for size, fill in zip(sizes, (0, 0, -jnp.inf), strict=True)]
        sum_ref[...], total_ref[...], largest_ref[...] = lax.fori_loop(0, turns, turn, tuple(none))

    gathered, total, largest, *written = pl.pallas_call(
        kernel,
        grid=(sets, programs),
        in_specs=in_specs,
        out_specs=out_specs,
        out_shape=out_shape,
        compiler_params=PARAMS,
        interpret=interpret,
    )(tokens, shift, position, queries, *(update or ()))
    share = jnp.exp(largest - largest.max(1, keepdims=True))
    gathered = (gathered * share).sum(1) / (total * share).sum(1)
    return written[0] if written else None, gathered.astype(tokens.dtype)


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
    """Return the masks' logits, and the upscaled tokens by sub-pixel where these are wanted; see `kernels_tpu`."""
    (sets, channels, _), (masks, depth) = tokens.shape, head.weights.shape[1:]
    pixels, result = blocks.pixels, jnp.promote_types(tokens.dtype, jnp.float32)
    maps = [x for x in (stride_8, stride_4) if x is not None]
    in_specs = head_inputs(blocks, channels, head, maps)
    out_specs = [pl.BlockSpec((None, masks, 4, 4 * pixels), lambda p, x: (p, 0, x, 0))]
    out_shape = [jax.ShapeDtypeStruct((sets, masks, 4 * blocks.number, 4 * pixels), result)]
    if upscaled:
        out_specs.append(pl.BlockSpec((None, 16, depth, pixels), lambda p, x: (p, 0, 0, x)))
        out_shape.append(jax.ShapeDtypeStruct((sets, 16, depth, blocks.number * pixels), tokens.dtype))

    def kernel(tokens_ref: Any, *refs: Any) -> None:
        head_refs = Head(*refs[: len(head)])
        map_refs, (logits_ref, *upscaled_ref) = refs[len(head) : len(in_specs) - 1], refs[len(in_specs) - 1 :]
        x, width = tokens_ref[...], len(head.scale)
        scale, norm_bias = head_refs.scale[...], head_refs.norm_bias[...]
        # Both convolutions have a row and a column for each sub-pixel.
        for i, (row, column) in enumerate(itertools.product(range(2), repeat=2)):
            of_first = pl.ds(i * width, width)
            y = dot(head_refs.first[of_first, :], x) + head_refs.first_bias[of_first, :]
            if stride_8 is not None:
                y = y + map_refs[0][of_first, :]
            y = y * lax.rsqrt(jnp.square(y).mean(0, keepdims=True) + CONV_NORM_EPS)
            y = gelu(y * scale + norm_bias).astype(x.dtype)
            for j, (second_row, second_column) in enumerate(itertools.product(range(2), repeat=2)):
                of_second = pl.ds(j * depth, depth)
                u = dot(head_refs.second[of_second, :], y) + head_refs.second_bias[of_second, :]
                if stride_4 is not None:
                    u = u + map_refs[-1][4 * i + j]
                u = gelu(u).astype(x.dtype)
                for ref in upscaled_ref:
                    ref[4 * i + j] = u
                for mask in range(masks):
                    weights = head_refs.weights[mask][:, None].astype(result)
                    place = pl.ds(2 * row + second_row, 1), pl.Slice(2 * column + second_column, pixels, 4)
                    logits_ref[pl.ds(mask, 1), *place] = (weights * u.astype(result)).sum(0)[None, None]

    logits, *of_tokens = pl.pallas_call(
        kernel,
        grid=(sets, blocks.number),
        in_specs=in_specs,
        out_specs=out_specs,
        out_shape=out_shape,
        compiler_params=PARAMS,
        interpret=interpret,
    )(tokens, *head, *maps)
    return logits[..., : 4 * blocks.width], of_tokens[0] if of_tokens else None


def gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Return the GELU to 1e-7 of the input, without `erf`, which Triton's language has not.

    By Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26.
    """
    size = jnp.abs(x) * 0.5**0.5
    t = 1 / (1 + 0.3275911 * size)
    powers = ((((1.061405429 * t - 1.453152027) * t + 1.421413741) * t - 0.284496736) * t + 0.254829592) * t
    beyond = 0.5 * powers * jnp.exp(-size * size)  # what the normal distribution has beyond the size
    return x * jnp.where(x < 0, beyond, 1 - beyond)
