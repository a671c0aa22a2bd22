"""Larger networks that compute what a smaller one does, for training to go on with (Net2Net, arXiv 1511.05641).

Widening copies every channel. What sums over channels gets half of each weight for either copy, plus a random number
for one and minus it for the other: the sum is the same, and the copies can learn different things. Deepening puts in
blocks that add nothing yet.
"""

import dataclasses
import itertools
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Int, Key

from sam_jax.decoder.model import Sam, Variables
from sam_jax.encoders.vit import ImageEncoder

_SUMMED_OUTPUT = "hypernetworks/layer_2/"
"""Where the product with the upscaled embedding sums over outputs."""
_FREQUENCIES = "gaussian_matrix"


def widen_decoder(key: Key[Array, ""], model: Sam, variables: Variables) -> tuple[Sam, Variables]:
    """Return a decoder of twice the width, with twice the heads and hidden channels, whose masks and scores are equal.

    It takes embeddings of twice the channels (`widen_neck`).

    Args:
      key: of the random numbers by which copies differ.
      model: the decoder, with an even number of heads.
      variables: its variables.

    Raises:
      ValueError: for an odd number of heads.
    """
    config = model.config
    if config.heads % 2:
        raise ValueError(f"A decoder to widen must have an even number of heads, got {config.heads}.")
    doubled = {name: 2 * getattr(config, name) for name in ("width", "heads", "mlp_width", "iou_head_width")}
    wide = Sam(dataclasses.replace(config, **doubled))
    return wide, _widened(key, variables, jax.eval_shape(wide.init, key))


def widen_neck(key: Key[Array, ""], encoder: ImageEncoder, variables: Variables) -> tuple[ImageEncoder, dict[str, Any]]:
    """Return an encoder whose embedding has every channel twice, as `widen_decoder`'s decoder takes it.

    Args:
      key: of the random numbers by which copies differ.
      encoder: the image encoder.
      variables: its variables.
    """
    wide = ImageEncoder(dataclasses.replace(encoder.config, out_width=2 * encoder.config.out_width))
    return wide, _widened(key, variables, _shapes(wide))


def deepen_encoder(
    key: Key[Array, ""], encoder: ImageEncoder, variables: Variables, length: int
) -> tuple[ImageEncoder, dict[str, Any]]:
    """Return an encoder of the same embeddings, with more blocks in windows in front of its global blocks.

    Args:
      key: of the new blocks' random numbers.
      encoder: a ViT that ends with a global block.
      variables: its variables.
      length: blocks up to each global one, and with it.

    Raises:
      ValueError: if there are blocks after the last global one, or more up to a global one than `length`.
    """
    config = encoder.config
    ends = [-1, *config.global_blocks]
    groups = [range(start + 1, end + 1) for start, end in itertools.pairwise(ends)]
    if ends[-1] != config.depth - 1 or any(len(group) > length for group in groups):
        raise ValueError(
            f"The encoder must have groups of at most {length} blocks that end with a global one, got depth="
            f"{config.depth} and global_blocks={config.global_blocks}."
        )
    global_blocks = tuple(length * (i + 1) - 1 for i in range(len(groups)))
    deep = ImageEncoder(dataclasses.replace(config, depth=length * len(groups), global_blocks=global_blocks))
    image = jnp.zeros((*config.image_size, 3))
    params: dict[str, Any] = dict(jax.jit(deep.init)(key, image)["params"])
    old = variables["params"]
    # The blocks of a group go to the end of the new one; those before them are new.
    places = {
        last - len(group) + 1 + i: block
        for group, last in zip(groups, global_blocks, strict=True)
        for i, block in enumerate(group)
    }
    for place in range(length * len(groups)):
        name = f"block_{place}"
        params[name] = old[f"block_{places[place]}"] if place in places else _adding_nothing(params[name])
    return deep, {"params": params | {name: old[name] for name in old if not name.startswith("block_")}}


def _adding_nothing(block: dict[str, Any]) -> dict[str, Any]:
    """A new block whose last layers are zero. Its other weights learn as soon as these have moved."""
    last = {"attention": "out", "mlp": "layer_1"}
    zeros = {part: block[part] | {name: jax.tree.map(jnp.zeros_like, block[part][name])} for part, name in last.items()}
    return block | zeros


def _shapes(encoder: ImageEncoder) -> Any:
    image = jax.ShapeDtypeStruct((*encoder.config.image_size, 3), jnp.float32)
    return jax.eval_shape(encoder.init, jax.random.key(0), image)


def _widened(key: Key[Array, ""], variables: Any, shapes: Any) -> dict[str, Any]:
    """The variables for the shapes, of which some axes are twice as long."""
    wanted: dict[str, Any] = flatten_dict(shapes, sep="/")
    given: dict[str, Any] = flatten_dict(variables, sep="/")
    wide = {
        path: _with_copies(jax.random.fold_in(key, zlib.crc32(path.encode())), path, leaf, wanted[path].shape)
        for path, leaf in given.items()
    }
    return unflatten_dict(wide, sep="/")


def _with_copies(key: Key[Array, ""], path: str, leaf: Array, shape: tuple[int, ...]) -> Array:
    """A leaf in float32, with both copies along each axis that is twice as long in `shape`."""
    leaf = jnp.asarray(leaf, jnp.float32)
    axes = [axis for axis, (old, new) in enumerate(zip(leaf.shape, shape, strict=True)) if old != new]
    for axis in axes:
        # The Gaussian matrix has half of a position's channels, which are their sines and their cosines.
        parts = 1 if path.endswith(_FREQUENCIES) else 2
        leaf = jnp.take(leaf, copies(leaf.shape[axis], parts), axis)
    summed = [axis for axis in axes if axis in _summed_axes(path, leaf.ndim)]
    leaf = leaf / 2 ** len(summed)
    spread = leaf.std() / np.sqrt(2)
    for axis in summed:
        noise = spread * jax.random.normal(jax.random.fold_in(key, axis), leaf.shape)
        leaf = leaf + noise - jnp.take(noise, _other_copy(leaf.shape[axis]), axis)
    return leaf


def _summed_axes(path: str, ndim: int) -> set[int]:
    """The axes that whoever reads a leaf sums over."""
    of_outputs = {ndim - 1} if _SUMMED_OUTPUT in path else set()
    if not path.endswith("kernel"):
        return of_outputs
    # A transposed convolution has its inputs last; see `Upscaling`.
    return of_outputs | {ndim - 1 if "upscaling/conv" in path else ndim - 2}


def copies(channels: int, parts: int = 2) -> Int[np.ndarray, " doubled"]:
    """Return which channel each of twice as many is a copy of: those of each part twice, then those of the next.

    With two parts, sines, which are the first half of a position, stay there; a pair of heads has its channels in a
    row, each head as wide as it was.
    """
    return np.concatenate([part for part in np.arange(channels).reshape(parts, -1) for _ in range(2)])


def _other_copy(doubled: int) -> Int[np.ndarray, " doubled"]:
    """Where the other copy of each channel is."""
    return np.arange(doubled).reshape(2, 2, -1)[:, ::-1].ravel()
