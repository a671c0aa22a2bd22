"""Between the original image and the input frame: sizes, coordinates, masks.

The official code is `segment_anything/utils/transforms.py` and `Sam.postprocess_masks` in `modeling/sam.py`.
"""

import functools
import math
import operator
from collections.abc import Callable
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int

from sam_jax.config import Postprocessing, SamConfig
from sam_jax.encoders.bicubic import cubic_kernel
from sam_jax.errors import describe
from sam_jax.images.size import Size
from sam_jax.prompts import AnyArray, Ragged

TracedSize = tuple[int | Array, int | Array]
"""A `Size`; traced inside `jit`, so that a new size is no new program."""

_PARTS = 8  # of the width, in which columns are resized; measured on two cores


def input_size_for(original_size: Size, image_size: Size = (1024, 1024)) -> Size:
    """Return the size of the resized image in the input frame: as large as fits, aspect kept, halves rounded up.

    Args:
      original_size: height and width of the image.
      image_size: height and width of the padded input frame, `config.image_size`.
    """
    height, width = original_size
    if height < 1 or width < 1:
        raise ValueError(f"original_size must be (height, width) of an image, got {describe(original_size)}.")
    scale = min(image_size[0] / height, image_size[1] / width)
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


def mask_sizes(config: SamConfig, input_size: TracedSize) -> dict[str, Any]:
    """Return what functions of low-res logits take, beside the image's size, to bring them to it by the family's rule.

    Args:
      config: settings of the decoder.
      input_size: height and width of the resized image in the input frame, before padding.
    """
    return {"input_size": input_size, "image_size": config.image_size, "postprocessing": config.postprocessing}


def comparison(postprocessing: Postprocessing) -> Callable[[Any, Any], Any]:
    """Return how a logit compares with the threshold where a pixel is in the mask: in EfficientSAM it may be equal."""
    return operator.ge if postprocessing == "efficient_sam" else operator.gt


def to_input_frame(coordinates: Ragged, *, original_size: TracedSize, input_size: TracedSize) -> Float[Array, "*n xy"]:
    """Move (x, y) clicks or (x0, y0, x1, y1) boxes from the original image to the input frame.

    Args:
      coordinates: [..., 2] clicks or [..., 4] boxes.
      original_size: height and width of the image.
      input_size: height and width of the resized image, before padding.
    """
    return _scale(coordinates, original_size, input_size)


def to_original_image(
    coordinates: Ragged, *, original_size: TracedSize, input_size: TracedSize
) -> Float[Array, "*n xy"]:
    """Move clicks or boxes from the input frame back to the original image; the inverse of `to_input_frame`."""
    return _scale(coordinates, input_size, original_size)


def _scale(coordinates: Any, source: TracedSize, target: TracedSize) -> Array:
    traced = any(isinstance(x, Tracer) for x in jax.tree.leaves((coordinates, source, target)))
    xp = jnp if traced else np  # on the host, a first call compiles nothing
    coordinates = xp.asarray(coordinates, np.float32)
    if coordinates.ndim == 0 or coordinates.shape[-1] not in (2, 4):
        raise ValueError(f"coordinates must be [..., 2] clicks or [..., 4] boxes, got {describe(coordinates)}.")
    (height, width), (new_height, new_width) = source, target
    ratio = xp.stack([xp.asarray(new_width / width), xp.asarray(new_height / height)]).astype(np.float32)
    ratio = xp.tile(ratio, coordinates.shape[-1] // 2)
    scaled = coordinates * xp.expand_dims(ratio, tuple(range(coordinates.ndim - 1)))
    return scaled if traced else jax.device_put(scaled)


def mask_to_prompt(
    mask: Ragged,
    *,
    input_size: Size,
    mask_size: Size = (256, 256),
    image_size: Size | None = None,
    logit: float = 10.0,
) -> Float[Array, "*batch my mx"]:
    """Turn binary masks of the original image into mask prompts: `logit` inside, `-logit` outside, linear in between.

    Each low-res pixel takes the mean of the mask over what it covers; the padding is outside.

    Args:
      mask: True (or 1) in the object: [..., height, width].
      input_size: height and width of the resized image, before padding.
      mask_size: height and width of a mask prompt, `config.mask_size`.
      image_size: height and width of the padded input frame; 4 times `mask_size` if not given.
      logit: the logit of a pixel that is all inside.
    """
    xp = jnp if isinstance(mask, Tracer) else np  # on the host, a new size compiles nothing
    mask = xp.asarray(mask, np.float32)
    frame = image_size or (4 * mask_size[0], 4 * mask_size[1])
    rows, columns = (
        coverage(low, full, size, original)
        for low, full, size, original in zip(mask_size, frame, input_size, mask.shape[-2:], strict=True)
    )
    if xp is np:
        return jax.device_put((logit * (2 * (rows @ mask @ columns.T) - 1)).astype(np.float32))
    inside = jnp.einsum("ah,...hw,bw->...ab", rows, mask, columns, precision=jax.lax.Precision.HIGHEST)
    return logit * (2 * inside - 1)


@functools.lru_cache(64)
def coverage(low: int, frame: int, size: int, original: int) -> Float[np.ndarray, "low original"]:
    """Return, for one axis, the share of each low-res pixel that each pixel of the original covers.

    Args:
      low: length of the low-res logits.
      frame: that of the padded input frame.
      size: that of the resized image in it.
      original: that of the original image.
    """
    edges = np.arange(low + 1) * (frame / low * original / size)
    pixels = np.arange(original)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    return (np.maximum(overlap, 0) / edges[1]).astype(np.float32)


def resize_on_device(
    logits: Float[AnyArray, "*batch my mx"],
    *,
    input_size: TracedSize,
    original_size: Size,
    image_size: Size | None = None,
    postprocessing: Postprocessing = "sam",
) -> Float[Array, "*batch height width"]:
    """Do what `sam_jax.resize_masks` does inside a transformation: a program for each original size."""
    if logits.ndim < 2:
        raise ValueError(f"logits must be [..., 4h, 4w], got {describe(logits)}.")
    axes = mask_axes(logits, input_size, original_size, image_size, postprocessing)
    dtype = jnp.promote_types(logits.dtype, jnp.float32)
    rows, columns = (taps_of(jnp.arange(axis.original, dtype=np.int32), axis) for axis in axes)
    # Measured on two cores: products along the width, then a few taps along the height.
    wide = _widened(logits.astype(dtype), columns.pixel, columns.weight.astype(dtype))
    return tapped_rows(wide, Taps(rows.pixel, rows.weight.astype(dtype)))


def enlarge(logits: Float[AnyArray, "*batch my mx"], size: tuple[int, ...]) -> Float[Array, "*batch height width"]:
    """Return logits at a finer resolution, bilinear between them: at the input frame's, the official code's first step.

    Args:
      logits: low-res logits.
      size: height and width to bring them to; where they have it already, they are returned as they are.
    """
    if logits.shape[-2:] == size:
        return jnp.asarray(logits)
    height, width = size
    frame = height, width
    return resize_on_device(logits, input_size=frame, original_size=frame, image_size=frame)


def _widened(
    logits: Float[AnyArray, "*batch my mx"], columns: Int[AnyArray, "w taps"], weights: Float[AnyArray, "w taps"]
) -> Float[Array, "*batch my w"]:
    """Resize each row: products with the matrix of the taps, a part of the columns at a time.

    Neighbours read neighbours, so each part reads a few low-res columns, and the zeros of the rest are not multiplied.
    """
    (width, _), low = columns.shape, logits.shape[-1]
    part = -(-width // _PARTS)
    read = min(low, math.ceil(part * low / width) + 4)  # the crop is at most the frame: what is read can only be less
    parts = []
    for i in range(0, width, part):
        first = jnp.minimum(columns[i, 0], low - read)
        matrix = tap_matrix(columns[i : i + part] - first, weights[i : i + part], read)
        seen = jax.lax.dynamic_slice_in_dim(logits, first, read, axis=-1)
        parts.append(jnp.einsum("...yx,wx->...yw", seen, matrix, precision=jax.lax.Precision.HIGHEST))
    # Otherwise XLA would multiply again in each tap.
    return jax.lax.optimization_barrier(jnp.concatenate(parts, -1))


class Axis(NamedTuple):
    """How one axis of the original image is made of low-res logits.

    Attributes:
      low: length of the low-res logits.
      frame: that of the padded input frame.
      size: that of the resized image in it; may be traced, as the next.
      original: that of the original image.
      cubic: bicubic from the low-res logits, whatever the frame; otherwise bilinear to the frame, and from there again.
    """

    low: int
    frame: int
    size: int | Array
    original: int | Array
    cubic: bool = False


def mask_axes(
    logits: Float[AnyArray, "*batch my mx"],
    input_size: TracedSize,
    original_size: TracedSize,
    image_size: Size | None,
    postprocessing: Postprocessing,
) -> list[Axis]:
    """Return how the height and the width of the original image are made; the arguments are `sam_jax.resize_masks`'.

    By any other rule than SAM's, logits do not go through the input frame: it is as small as they are.

    Raises:
      ValueError: if there is no such rule.
    """
    if postprocessing not in get_args(Postprocessing):
        choices = ", ".join(get_args(Postprocessing))
        raise ValueError(f"postprocessing must be one of {choices}, got {describe(postprocessing)}.")
    low: Any = logits.shape[-2:]
    frame = image_size or (4 * low[0], 4 * low[1])
    if postprocessing != "sam":
        frame, input_size = low, low
    cubic = postprocessing == "efficient_sam"
    return [Axis(*lengths, cubic) for lengths in zip(low, frame, input_size, original_size, strict=True)]


class Taps(NamedTuple):
    """Of one axis: the few low-res pixels that each pixel reads, and their weights."""

    pixel: Int[AnyArray, "*n taps"]
    weight: Float[AnyArray, "*n taps"]


def tap_matrix(index: Int[AnyArray, "w taps"], weight: Float[AnyArray, "w taps"], read: int) -> Float[Array, "w read"]:
    """Return the matrix whose product with `read` low-res pixels takes these taps of them."""
    return (jax.nn.one_hot(index, read, dtype=weight.dtype) * weight[..., None]).sum(1)


def tapped_rows(wide: Float[AnyArray, "*batch my w"], taps: Taps) -> Float[Array, "*batch n w"]:
    """Return the rows that these taps of low-res rows make."""
    weight = jnp.expand_dims(taps.weight, tuple(range(wide.ndim - 2)))
    first, *others = (
        weight[..., k, None] * jnp.take(wide, taps.pixel[:, k], axis=-2) for k in range(taps.pixel.shape[-1])
    )
    return sum(others, first)


@functools.lru_cache(64)
def axis_taps(axis: Axis) -> Taps:
    """Return the taps of all pixels of one axis on the host."""
    index, weight = taps_of(np.arange(int(axis.original), dtype=np.int32), axis, np)
    return Taps(index.astype(np.int32), weight.astype(np.float32))


def taps_of(pixel: Int[AnyArray, " n"], axis: Axis, xp: Any = jnp) -> Taps:
    """Return the taps of some pixels of one axis of the original image."""
    return _cubic_taps(pixel, axis, xp) if axis.cubic else _linear_taps(pixel, axis, xp)


def _linear_taps(pixel: Int[AnyArray, " n"], axis: Axis, xp: Any) -> Taps:
    """Three taps: a pixel reads two frame pixels in the crop, and each of those two low-res pixels, which overlap."""
    low, frame, size, original, _ = axis
    if low > frame:
        raise ValueError(f"The input frame must be at least as large as the logits, got {frame} for {low}.")
    near, far, share = _bilinear(pixel, original, size, xp)
    base, _, _ = _bilinear(near, frame, low, xp)
    weights = xp.zeros((len(pixel), 3), np.float32)
    three = xp.arange(3, dtype=np.int32)[None]
    for frame_pixel, weight in ((near, 1 - share), (far, share)):
        first, second, part = _bilinear(frame_pixel, frame, low, xp)
        for index, amount in ((first, 1 - part), (second, part)):
            weights += xp.where((index - base)[:, None] == three, (weight * amount)[:, None], np.float32(0))
    return Taps(xp.minimum(base[:, None] + three, low - 1), weights)


def _cubic_taps(pixel: Int[AnyArray, " n"], axis: Axis, xp: Any) -> Taps:
    """Four taps, as in `bicubic_matrix`; the place is counted as in `_bilinear`."""
    place, unit = (2 * pixel + 1) * axis.low - axis.original, 2 * axis.original
    first = place // unit
    share = (place - first * unit).astype(np.float32) / xp.float32(unit)
    four = xp.arange(-1, 3, dtype=np.int32)[None]
    weights = cubic_kernel(xp.abs(share[:, None] - four.astype(np.float32)), xp)
    return Taps(xp.clip(first[:, None] + four, 0, axis.low - 1), weights)


def _bilinear(
    pixel: Int[AnyArray, " n"], target: int | Array, source: int | Array, xp: Any
) -> tuple[Int[AnyArray, " n"], Int[AnyArray, " n"], Float[AnyArray, " n"]]:
    """The two source pixels around each target pixel's centre (edges clamped), and the second's share.

    The place (pixel + 1/2) source / target - 1/2 is counted in units of 1 / (2 target), so that nothing is rounded.
    """
    place, unit = xp.maximum((2 * pixel + 1) * source - target, 0), 2 * target
    first = place // unit
    share = (place - first * unit).astype(np.float32) / xp.float32(unit)
    return first, xp.minimum(first + 1, source - 1), share
