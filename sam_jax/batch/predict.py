"""Masks for many prompt sets on many images: batching, padding to a few sizes, bounded memory."""

import functools
import math
from typing import get_args

import jax
import numpy as np
from jaxtyping import Bool, Float

from sam_jax.batch.decode import (
    Images,
    Path,
    Sizes,
    decode_batch,
    image_axes,
    is_readable,
    pad_inputs,
    platform_of,
)
from sam_jax.batch.sharding import decode_on, fit_sizes
from sam_jax.config import SamConfig
from sam_jax.decoder.features import check_maps, map_shapes, maps_of
from sam_jax.decoder.model import MaskPrediction, Sam, Variables
from sam_jax.errors import describe
from sam_jax.fast.low_rank import ImageState
from sam_jax.prompts import EMPTY, Prompts


def predict_masks(
    model: Sam,
    variables: Variables,
    embeddings: Images,
    prompts: Prompts,
    *,
    chunk: int | None = None,
    sizes: Sizes = Sizes(),  # noqa: B008 - frozen
    mesh: jax.sharding.Mesh | None = None,
    path: Path = "auto",
    best: bool = False,
) -> MaskPrediction:
    """Return all masks and scores of every prompt set.

    What depends on the image alone is computed once per image. Outside of a transformation, the inputs are padded to
    `sizes` with empty slots before one jitted call, and the padding is cut off again; inside `jit`, `vmap` or `grad`,
    shapes are taken as they are.

    Args:
      model: the decoder, static.
      variables: its variables.
      embeddings: image embeddings, channels last: [h, w, c], or [image, h, w, c]; `ImageFeatures` where the decoder
        takes more maps of an image; or what `prepare_image` made of either.
      prompts: prompts with axes [prompt set], or [image, prompt set].
      chunk: how many prompt sets are decoded at once, the bound on memory; by default 4 on a CPU and 64 elsewhere.
      sizes: what the numbers of tokens, prompt sets and images are rounded up to.
      mesh: devices to split images and prompt sets over (`sam_jax.make_mesh`); `chunk` is then that of each device.
        Arrays spread over several processes are taken in the shape they have, too.
      path: how to decode; "auto" takes the fastest for the device and the shapes (`choose_path`). None changes a result
        beyond rounding. "auto" and "fused" cannot be exported for a platform that has kernels and another one at once:
        JAX lowers a kernel for one platform.
      best: keep one mask of each prompt set, the one that `best_masks` takes, chosen before the next chunk is decoded:
        the mask axis of the result is 1, and the other masks cost no memory.

    Raises:
      ValueError: for inputs whose shapes do not fit the model or each other, or coordinates outside the input frame.
    """
    check_inputs(model.config, embeddings, prompts)
    check_path(path, embeddings, prompts)
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk must be a positive number of prompt sets, got {chunk}.")
    run = decode_batch
    if mesh is not None:
        images = bool(image_axes(embeddings))
        run, sizes = functools.partial(decode_on, mesh), fit_sizes(sizes, mesh, images=images)
    run = functools.partial(run, model, chunk=chunk, path=path, best=best)
    if not all(is_readable(x) for x in jax.tree.leaves((variables, embeddings, prompts))):
        return run(variables, embeddings, prompts)
    padded, wide = pad_inputs(embeddings, prompts, sizes)
    platform = mesh.devices.flat[0].platform if mesh is not None else platform_of((variables, embeddings))
    out = run(variables, padded, wide, platform=platform)
    if wide.valid.shape == prompts.valid.shape:
        return out
    return jax.tree.map(lambda x: x[tuple(slice(n) for n in prompts.valid.shape)], out)


def check_inputs(config: SamConfig, images: Images, prompts: Prompts) -> None:
    """Raise a ValueError where the inputs of `predict_masks` do not fit the model or each other."""
    check_images(config, images)
    of_images = image_axes(images)
    if not isinstance(prompts, Prompts):
        raise ValueError(f"prompts must come from sam_jax.Prompts.build, got {describe(prompts)}.")
    batch = prompts.valid.shape
    if len(batch) != len(of_images) + 1 or batch[:-1] != of_images:
        axes = "[image, prompt set]" if of_images else "[prompt set]"
        hint = ""
        if of_images and batch == of_images:
            hint = " If their first axis is images, Prompts.build(..., images=True) says so."
        given = f"{of_images[0]} images" if of_images else "one image"
        raise ValueError(f"prompts must have axes {axes} to fit {given}, got {list(batch)} prompt sets.{hint}")
    if prompts.masks is not None and prompts.masks.shape[-2:] != config.mask_size:
        raise ValueError(
            f"Mask prompts must be {list(config.mask_size)} logits, 4 times the grid, "
            f"got {list(prompts.masks.shape[-2:])}."
        )
    if is_readable(prompts.coordinates) and is_readable(prompts.labels):
        _check_frame(config.image_size, np.asarray(prompts.coordinates), np.asarray(prompts.labels) != EMPTY)


def check_images(config: SamConfig, images: Images) -> None:
    """Raise a ValueError for images, prepared or not, that the model does not take."""
    if not isinstance(images, ImageState):
        check_maps(maps_of(images), map_shapes(config))
        return
    prepared, wanted = images.written.embedding, [config.width, math.prod(config.grid_size)]
    if list(prepared.shape[-2:]) != wanted:
        raise ValueError(
            f"A prepared image must be of this model: its embedding is {list(prepared.shape[-2:])} [channel, pixel], "
            f"not {wanted}."
        )


def check_path(path: Path, images: Images, prompts: Prompts) -> None:
    """Raise a ValueError for a path that is none, or that cannot decode these images and prompts."""
    if path not in get_args(Path):
        raise ValueError(f"path must be one of {', '.join(get_args(Path))}, got {describe(path)}.")
    if path == "low_rank" and prompts.masks is not None:
        raise ValueError(
            'path="low_rank" decodes prompts without masks; "auto" takes another path where there are some.'
        )
    if path == "plain" and isinstance(images, ImageState):
        raise ValueError('path="plain" takes the image encoder\'s output, not what prepare_image made of it.')


def _check_frame(
    image_size: tuple[int, int], coordinates: Float[np.ndarray, "*n 2"], present: Bool[np.ndarray, "*n"]
) -> None:
    """Raise where a click or corner is more than a pixel outside the input frame."""
    height, width = image_size
    outside = present & ((coordinates < -1) | (coordinates > np.array([width, height]) + 1)).any(-1)
    if outside.any():
        index = tuple(int(i) for i in np.argwhere(outside)[0])
        x, y = coordinates[index].tolist()
        raise ValueError(
            f"Coordinates must be (x, y) in the input frame, x up to {width} and y up to {height}; token {index[-1]} "
            f"of prompt set {index[-2]} is ({x:g}, {y:g}). sam_jax.to_input_frame moves coordinates from the original "
            "image; check that they are not (y, x)."
        )
