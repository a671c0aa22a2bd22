"""Masks at the original size: as logits, as booleans, packed, or as run lengths.

Inside of a transformation, across processes, and for many masks of one size, a program is compiled for the size.
Otherwise tiles are made, and a new size compiles nothing (`sam_jax.images.tiles`). The masks are the same.
"""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, UInt8

from sam_jax.batch.decode import is_readable
from sam_jax.config import Postprocessing
from sam_jax.errors import describe
from sam_jax.images.resize import TracedSize, comparison, resize_on_device
from sam_jax.images.run_lengths import coco_run_lengths
from sam_jax.images.size import Size
from sam_jax.images.tiles import pays, resize_by_tiles
from sam_jax.prompts import AnyArray


def resize_masks(
    logits: Float[AnyArray, "*batch my mx"],
    *,
    input_size: TracedSize,
    original_size: Size,
    image_size: Size | None = None,
    postprocessing: Postprocessing = "sam",
) -> Float[Array, "*batch height width"]:
    """Return logits at the original size: what bilinear to the frame, crop, bilinear to the original gives, in one
    step.

    Both resizes are linear and separable, so their composition is one small linear map per axis and the frame is never
    formed (`Sam.postprocess_masks` in `segment_anything/modeling/sam.py`). Threshold after this, at 0.

    Args:
      logits: low-res logits.
      input_size: height and width of the resized image, before padding; may be traced.
      original_size: height and width of the result.
      image_size: height and width of the padded input frame; 4 times the logits' if not given.
      postprocessing: the rule of the decoder's family, `model.config.postprocessing`. SAM 2's is one bilinear step and
        EfficientSAM's one bicubic step; of both, `input_size` and `image_size` are not looked at.
    """
    if logits.ndim < 2:
        raise ValueError(f"logits must be [..., 4h, 4w], got {describe(logits)}.")
    sizes: Any = {"input_size": input_size, "original_size": original_size}
    sizes |= {"image_size": image_size, "postprocessing": postprocessing}
    if logits.dtype.itemsize > 4 or not all(map(is_readable, (logits, *input_size))):
        return resize_on_device(logits, **sizes)
    flat = logits.reshape(-1, *logits.shape[-2:])
    return jax.device_put(resize_by_tiles(flat, **sizes).reshape(*logits.shape[:-2], *original_size))


def binary_masks(
    logits: Float[AnyArray, "*batch my mx"],
    *,
    input_size: Size,
    original_size: Size,
    image_size: Size | None = None,
    postprocessing: Postprocessing = "sam",
    threshold: float = 0.0,
    packed: bool = False,
    chunk: int = 4,
) -> Bool[Array, "*batch height width"] | UInt8[Array, "*batch height bytes"]:
    """Return `resize_masks(...) > threshold`, with a few masks as floats at once.

    Args:
      logits: low-res logits.
      input_size: height and width of the resized image, before padding.
      original_size: height and width of the result.
      image_size: height and width of the padded input frame; 4 times the logits' if not given.
      postprocessing: the rule of the decoder's family, as for `resize_masks`.
      threshold: a pixel is in the mask where its logit is above; by EfficientSAM's rule, where it is at least this.
      packed: pack each row's pixels into bytes, an eighth of the memory; `numpy.unpackbits(..., axis=-1, count=width)`
        unpacks.
      chunk: masks that exist as floats at once, where a program is compiled for the size.
    """
    sizes: Any = {"input_size": input_size, "original_size": original_size}
    sizes |= {"image_size": image_size, "postprocessing": postprocessing}
    number = int(np.prod(logits.shape[:-2]))
    if not is_readable(logits) or logits.dtype.itemsize > 4 or pays(number, *map(_hashable, sizes.values())):
        return _masks_on_device(logits, threshold=threshold, packed=packed, chunk=chunk, **sizes)
    masks = resize_by_tiles(logits.reshape(-1, *logits.shape[-2:]), threshold=threshold, **sizes)
    masks = np.packbits(masks, axis=-1) if packed else masks
    return jax.device_put(masks.reshape(*logits.shape[:-2], *masks.shape[1:]))


def _hashable(size: Any) -> tuple[int, ...] | str | None:
    return size if size is None or isinstance(size, str) else tuple(map(int, size))


@functools.partial(
    jax.jit,
    static_argnames=("input_size", "original_size", "image_size", "postprocessing", "threshold", "packed", "chunk"),
)
def _masks_on_device(
    logits: Float[AnyArray, "*batch my mx"],
    *,
    input_size: Size,
    original_size: Size,
    image_size: Size | None,
    postprocessing: Postprocessing,
    threshold: float,
    packed: bool,
    chunk: int,
) -> Bool[Array, "*batch height width"] | UInt8[Array, "*batch height bytes"]:
    """Return `binary_masks` by a program for these sizes, `chunk` masks at a time."""

    def full_size(part: Float[AnyArray, "k my mx"]) -> Array:
        resized = resize_on_device(
            part,
            input_size=input_size,
            original_size=original_size,
            image_size=image_size,
            postprocessing=postprocessing,
        )
        masks = comparison(postprocessing)(resized, threshold)
        return jnp.packbits(masks, axis=-1) if packed else masks

    batch, flat = logits.shape[:-2], logits.reshape(-1, *logits.shape[-2:])
    number = flat.shape[0]
    if number <= chunk:
        masks = full_size(flat)
        return masks.reshape(*batch, *masks.shape[1:])

    # The last chunk overlaps the one before: written in place, without the copy that joining a remainder would make.
    def step(i: Array, out: Array) -> Array:
        start = jnp.minimum(i * chunk, number - chunk)
        part = jax.lax.dynamic_slice_in_dim(flat, start, chunk)
        return jax.lax.dynamic_update_slice_in_dim(out, full_size(part), start, axis=0)

    shape = jax.eval_shape(full_size, flat)
    masks = jax.lax.fori_loop(0, -(-number // chunk), step, jnp.zeros(shape.shape, shape.dtype))
    return masks.reshape(*batch, *masks.shape[1:])


def rle_masks(
    logits: Float[AnyArray, "k my mx"],
    *,
    input_size: Size,
    original_size: Size,
    image_size: Size | None = None,
    postprocessing: Postprocessing = "sam",
    threshold: float = 0.0,
    chunk: int = 4,
) -> Iterator[dict[str, Any]]:
    """Yield each full-size mask as COCO run-length encoding, `{"size": [height, width], "counts": str}`, ready for
    JSON.

    Only `chunk` masks exist at once. The arguments are those of `binary_masks`.
    """
    for start in range(0, len(logits), chunk):
        masks = binary_masks(
            logits[start : start + chunk],
            input_size=input_size,
            original_size=original_size,
            image_size=image_size,
            postprocessing=postprocessing,
            threshold=threshold,
            chunk=chunk,
        )
        yield from map(coco_run_lengths, np.asarray(masks))
