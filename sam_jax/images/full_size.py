"""Full-size binary masks in bounded memory: no float copy of all of them ever exists."""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, UInt8

from sam_jax.images.resize import Size, resize_masks
from sam_jax.prompts import AnyArray


@functools.partial(
    jax.jit, static_argnames=("input_size", "original_size", "image_size", "threshold", "packed", "chunk")
)
def binary_masks(
    logits: Float[AnyArray, "*batch my mx"],
    *,
    input_size: Size,
    original_size: Size,
    image_size: Size | None = None,
    threshold: float = 0.0,
    packed: bool = False,
    chunk: int = 4,
) -> Bool[Array, "*batch height width"] | UInt8[Array, "*batch height bytes"]:
    """Return `resize_masks(...) > threshold`, made `chunk` masks at a time.

    Args:
      logits: low-res logits.
      input_size: height and width of the resized image, before padding.
      original_size: height and width of the result.
      image_size: height and width of the padded input frame; 4 times the logits' if not given.
      threshold: a pixel is in the mask where its logit is above.
      packed: pack each row's pixels into bytes, an eighth of the memory; `numpy.unpackbits(..., axis=-1, count=width)`
        unpacks.
      chunk: masks that exist as floats at once.
    """

    def full_size(part: Float[AnyArray, "k my mx"]) -> Array:
        resized = resize_masks(part, input_size=input_size, original_size=original_size, image_size=image_size)
        masks = resized > threshold
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
    threshold: float = 0.0,
    chunk: int = 4,
) -> Iterator[dict[str, Any]]:
    """Yield each full-size mask as COCO run-length encoding, `{"size": [height, width], "counts": str}`, ready for
    JSON.

    Only `chunk` masks exist at once. The arguments are those of `binary_masks`.
    """
    from pycocotools import mask as coco

    for start in range(0, len(logits), chunk):
        masks = binary_masks(
            logits[start : start + chunk],
            input_size=input_size,
            original_size=original_size,
            image_size=image_size,
            threshold=threshold,
            chunk=chunk,
        )
        for mask in np.asarray(masks):
            encoded: Any = coco.encode(np.asfortranarray(mask, np.uint8))
            yield {"size": list(encoded["size"]), "counts": encoded["counts"].decode("ascii")}
