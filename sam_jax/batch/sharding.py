"""Many devices: images and prompt sets are split over a mesh, and every device decodes its own share.

The variables are on every device, and no prompt set needs another one: devices decode without a word to each other.
Only the gradient of the variables is summed over them.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from sam_jax.batch.decode import Images, Path, Sizes, decode_batch, image_axes, is_readable, pad_inputs
from sam_jax.decoder.model import MaskPrediction, Sam, Variables
from sam_jax.prompts import Prompts

IMAGE, PROMPT_SET = "image", "prompt_set"
"""The mesh's axes."""


def make_mesh(
    images: int = 1,
    devices: Sequence[jax.Device] | None = None,  # pyright: ignore[reportInvalidTypeForm]
) -> Mesh:
    """Return a mesh with the axes "image" and "prompt_set".

    Of several images, each row of devices takes its share and splits the prompt sets of each image over the row. The
    prompt sets of a single image are split over all devices.

    Args:
      images: rows. As many as there are devices is best for many images with few prompt sets each.
      devices: by default all, those of other processes too (`jax.devices()`).

    Raises:
      ValueError: if the devices do not fill `images` equal rows.
    """
    devices = jax.devices() if devices is None else devices
    if images < 1 or not devices or len(devices) % images:
        raise ValueError(f"A mesh needs devices in equal rows; got {len(devices)} devices for {images} rows.")
    return Mesh(np.array(devices).reshape(images, -1), (IMAGE, PROMPT_SET))


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Return a pytree with every array on every device: the variables, once, before many calls of `predict_masks`.

    Every process brings the same values.
    """
    return _place_all(tree, mesh, PartitionSpec())


def shard_inputs(
    embeddings: Images,
    prompts: Prompts,
    mesh: Mesh,
    sizes: Sizes = Sizes(),  # noqa: B008 - frozen
) -> tuple[Images, Prompts]:
    """Return the inputs of `predict_masks`, padded and with each device's share on that device.

    `predict_masks` does so itself, but returns as many prompt sets as it was given, and cutting off its padding copies
    the results to every device. Results for inputs that were padded beforehand stay where they were computed; `valid`
    tells prompt sets from padding.

    Every process brings the same values and places its own share. Where each process has its own images,
    `jax.make_array_from_process_local_data` makes one array of them.

    Args:
      embeddings: as in `predict_masks`. Those of a single image go to every device, of several they are split over the
        image axis.
      prompts: prompts with axes [prompt set], or [image, prompt set].
      mesh: what `make_mesh` returned.
      sizes: what the numbers of tokens, prompt sets and images are rounded up to, then to multiples of the mesh.
    """
    sizes = fit_sizes(sizes, mesh, images=bool(image_axes(embeddings)))
    return _place_inputs(*pad_inputs(embeddings, prompts, sizes), mesh)


def fit_sizes(sizes: Sizes, mesh: Mesh, images: bool) -> Sizes:
    """Return sizes that the mesh divides evenly; `images` says whether there is an image axis."""
    divisors = _divisors(mesh, images)
    return dataclasses.replace(
        sizes,
        prompt_sets=_multiples(sizes.prompt_sets, divisors[-1]),
        images=_multiples(sizes.images, divisors[0]) if images else sizes.images,
    )


def decode_on(
    mesh: Mesh,
    model: Sam,
    variables: Variables,
    embeddings: Images,
    prompts: Prompts,
    **how: Any,
) -> MaskPrediction:
    """Decode as `decode_batch`, in whose words `how` is, split over the mesh: `chunk` is that of each device.

    Raises:
      ValueError: if the mesh does not divide the images and prompt sets evenly, or is another kind of mesh.
    """
    batch, divisors = prompts.valid.shape, _divisors(mesh, prompts.valid.ndim == 2)
    if any(number % divisor for number, divisor in zip(batch, divisors, strict=True)):
        raise ValueError(
            f"Inside of a transformation and across processes, the mesh must divide the prompts evenly: their axes are "
            f"{list(batch)}, the mesh's {list(divisors)}. sam_jax.shard_inputs pads them."
        )
    embeddings, prompts = _place_inputs(embeddings, prompts, mesh)
    return split_decode(model, replicate(variables, mesh), embeddings, prompts, mesh=mesh, **how)


@functools.partial(jax.jit, static_argnames=("model", "chunk", "path", "best", "mesh", "platform"))
def split_decode(
    model: Sam,
    variables: Variables,
    embeddings: Images,
    prompts: Prompts,
    chunk: int | None,
    path: Path,
    mesh: Mesh,
    best: bool = False,
    platform: str | None = None,
) -> MaskPrediction:
    """Run `decode_batch` on every device's share. In plain `jit`, its loop over chunks would gather every share
    first.
    """
    of_embeddings, of_prompts = _specs(prompts.valid.ndim == 2)
    return jax.shard_map(
        functools.partial(decode_batch, model, chunk=chunk, path=path, best=best, platform=platform),
        mesh=mesh,
        in_specs=(PartitionSpec(), of_embeddings, of_prompts),
        out_specs=of_prompts,
        check_vma=False,  # the check fails in the gradient of `erf` (jax 0.12); there are no collectives to check
    )(variables, embeddings, prompts)


def _specs(images: bool) -> tuple[PartitionSpec, PartitionSpec]:
    """How embeddings and prompts are split."""
    if images:
        return PartitionSpec(IMAGE), PartitionSpec(IMAGE, PROMPT_SET)
    return PartitionSpec(), PartitionSpec((IMAGE, PROMPT_SET))


def _divisors(mesh: Mesh, images: bool) -> tuple[int, ...]:
    """Into how many parts the mesh splits each of the prompts' axes."""
    if not {IMAGE, PROMPT_SET} <= set(mesh.axis_names):
        raise ValueError(f"The mesh must have the axes {IMAGE!r} and {PROMPT_SET!r}, got {mesh.axis_names}.")
    parts = mesh.shape[IMAGE], mesh.shape[PROMPT_SET]
    return parts if images else (math.prod(parts),)


def _multiples(numbers: tuple[int, ...], divisor: int) -> tuple[int, ...]:
    return tuple(sorted({-(-number // divisor) * divisor for number in numbers}))


def _place_inputs(embeddings: Images, prompts: Prompts, mesh: Mesh) -> tuple[Images, Prompts]:
    of_embeddings, of_prompts = _specs(prompts.valid.ndim == 2)
    return _place_all(embeddings, mesh, of_embeddings), _place_all(prompts, mesh, of_prompts)


def _place_all(tree: Any, mesh: Mesh, spec: PartitionSpec) -> Any:
    return jax.tree.map(lambda x: _place(x, mesh, spec), tree)


def _place(x: Any, mesh: Mesh, spec: PartitionSpec) -> Array:
    """Put each device's share of an array on it; nothing moves where it is there already."""
    sharding = NamedSharding(mesh, spec)
    if sharding.is_fully_addressable or not is_readable(x) or getattr(x, "sharding", None) == sharding:
        return jax.device_put(x, sharding)
    # device_put would send the values around, to compare them with those of the other processes
    return jax.make_array_from_callback(x.shape, sharding, np.asarray(x).__getitem__)
