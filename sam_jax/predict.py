"""Masks for many prompt sets on many images: batching, padding to a few sizes, bounded memory."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from sam_jax.config import SamConfig
from sam_jax.errors import describe
from sam_jax.model import MaskPrediction, Sam, Variables
from sam_jax.prompts import EMPTY, Prompts


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The few sizes that numbers of tokens, prompt sets and images are rounded up to, so that few programs are
    compiled.

    Beyond the largest, a number is rounded up to a multiple of it.

    Attributes:
      tokens: sizes for the tokens of a prompt set (a click alone is 2 tokens, a box is 2).
      prompt_sets: sizes for the prompt sets of an image.
      images: sizes for the images.
    """

    tokens: tuple[int, ...] = (2, 4, 8, 16, 32)
    prompt_sets: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    images: tuple[int, ...] = (1, 2, 4, 8)

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            sizes = getattr(self, field.name)
            if not sizes or any(type(n) is not int or n < 1 for n in sizes) or list(sizes) != sorted(set(sizes)):
                raise ValueError(f"Sizes.{field.name} must be increasing positive integers, got {describe(sizes)}.")


def round_up(number: int, sizes: tuple[int, ...]) -> int:
    """Return the first of `sizes` that is at least `number`, or the next multiple of the last."""
    return next((size for size in sizes if size >= number), -(-number // sizes[-1]) * sizes[-1])


def predict_masks(
    model: Sam,
    variables: Variables,
    embeddings: Float[Array, "*image h w c"],
    prompts: Prompts,
    *,
    chunk: int | None = None,
    sizes: Sizes = Sizes(),
    mesh: jax.sharding.Mesh | None = None,
) -> MaskPrediction:
    """Return all masks and scores of every prompt set.

    What depends on the image alone is computed once per image. Outside of a transformation, the inputs are padded to
    `sizes` with
    empty slots before one jitted call, and the padding is cut off again; inside `jit`, `vmap` or `grad`, shapes are
    taken as they are.

    Args:
      model: the decoder, static.
      variables: its variables.
      embeddings: image embeddings, channels last: [h, w, c], or [image, h, w, c].
      prompts: prompts with axes [prompt set], or [image, prompt set].
      chunk: how many prompt sets are decoded at once, the bound on memory; by default 4 on a CPU and 64 elsewhere.
      sizes: what the numbers of tokens, prompt sets and images are rounded up to.
      mesh: devices to split images and prompt sets over (`sam_jax.sharding.make_mesh`); `chunk` is then that of each
        device. Arrays spread over several processes are taken in the shape they have, too.

    Raises:
      ValueError: for inputs whose shapes do not fit the model or each other, or coordinates outside the input frame.
    """
    check_inputs(model.config, embeddings, prompts)
    if chunk is None:
        chunk = default_chunk()
    elif chunk < 1:
        raise ValueError(f"chunk must be a positive number of prompt sets, got {chunk}.")
    run = decode
    if mesh is not None:
        from sam_jax.sharding import decode_on, fit_sizes  # it builds on this module

        run, sizes = functools.partial(decode_on, mesh), fit_sizes(sizes, mesh, images=embeddings.ndim == 4)
    if not all(is_readable(x) for x in jax.tree.leaves((variables, embeddings, prompts))):
        return run(model, variables, embeddings, prompts, chunk)
    padded, wide = pad_inputs(embeddings, prompts, sizes)
    out = run(model, variables, padded, wide, chunk)
    if wide.valid.shape == prompts.valid.shape:
        return out
    return jax.tree.map(lambda x: x[tuple(slice(n) for n in prompts.valid.shape)], out)


def is_readable(x: Any) -> bool:
    """Return whether this process can see an array's values: neither traced nor spread over several processes."""
    if isinstance(x, jax.core.Tracer):
        return False
    return not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated


def default_chunk() -> int:
    """Return how many prompt sets are decoded at once: few stay in a CPU's caches, many fill an accelerator."""
    return 4 if jax.default_backend() == "cpu" else 64


def pad_inputs(
    embeddings: Float[Array, "*image h w c"], prompts: Prompts, sizes: Sizes
) -> tuple[Float[Array, "*padded h w c"], Prompts]:
    """Return the inputs with the numbers of tokens, prompt sets and images rounded up to `sizes`."""
    *images, prompt_sets, tokens = prompts.labels.shape
    prompts = jax.tree.map(np.asarray, prompts)  # padding on the host compiles nothing
    images = [round_up(n, sizes.images) for n in images]
    prompts = prompts.pad(round_up(tokens, sizes.tokens), round_up(prompt_sets, sizes.prompt_sets), *images)
    if images and images[0] > embeddings.shape[0]:
        embeddings = jnp.pad(embeddings, [(0, images[0] - embeddings.shape[0]), (0, 0), (0, 0), (0, 0)])
    return embeddings, prompts


@functools.partial(jax.jit, static_argnames=("model", "chunk"))
def decode(
    model: Sam, variables: Variables, embeddings: Float[Array, "*image h w c"], prompts: Prompts, chunk: int
) -> MaskPrediction:
    """Decode every prompt set, `chunk` at a time, for the shapes as they are.

    The arguments are those of `predict_masks`; this is the one function that is compiled.
    """

    def one_image(embedding: Array, prompts: Prompts) -> MaskPrediction:
        def one_set(prompt_set: Prompts) -> MaskPrediction:
            return model.apply(variables, embedding, prompt_set)

        return map_chunks(one_set, prompts, chunk)

    if embeddings.ndim == 3:
        return one_image(embeddings, prompts)
    at_once = max(1, chunk // max(1, prompts.valid.shape[1]))
    return map_chunks(lambda inputs: one_image(*inputs), (embeddings, prompts), at_once)


def map_chunks(function: Any, inputs: Any, chunk: int) -> Any:
    """Map over the leading axis: `chunk` entries at a time in one vmapped call, chunks one after the other."""
    number = jax.tree.leaves(inputs)[0].shape[0]
    if number <= chunk:
        return jax.vmap(function)(inputs)
    return jax.lax.map(function, inputs, batch_size=chunk)


def check_inputs(config: SamConfig, embeddings: Array, prompts: Prompts) -> None:
    """Raise a ValueError where the inputs of `predict_masks` do not fit the model or each other."""
    wanted = (*config.grid_size, config.width)
    if not hasattr(embeddings, "shape") or embeddings.ndim not in (3, 4) or embeddings.shape[-3:] != wanted:
        hint = ""
        if getattr(embeddings, "shape", ())[-3:] == (config.width, *config.grid_size):
            hint = " It is channels first, as in PyTorch: jnp.moveaxis(embeddings, -3, -1) makes it fit."
        raise ValueError(
            f"embeddings must be {list(wanted)} (h, w, c) or [image, h, w, c], got {describe(embeddings)}.{hint}"
        )
    if not isinstance(prompts, Prompts):
        raise ValueError(f"prompts must come from sam_jax.Prompts.build, got {describe(prompts)}.")
    batch = prompts.valid.shape
    if len(batch) != embeddings.ndim - 2 or batch[:-1] != embeddings.shape[:-3]:
        axes = "[image, prompt set]" if embeddings.ndim == 4 else "[prompt set]"
        raise ValueError(
            f"prompts must have axes {axes} to fit embeddings of shape {list(embeddings.shape)}, "
            f"got {list(batch)} prompt sets."
        )
    if prompts.masks is not None and prompts.masks.shape[-2:] != config.mask_size:
        raise ValueError(
            f"Mask prompts must be {list(config.mask_size)} logits, 4 times the grid, "
            f"got {list(prompts.masks.shape[-2:])}."
        )
    if is_readable(prompts.coordinates) and is_readable(prompts.labels):
        _check_frame(config.image_size, np.asarray(prompts.coordinates), np.asarray(prompts.labels) != EMPTY)


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
