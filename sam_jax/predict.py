"""Masks for many prompt sets on many images: batching, padding to a few sizes, bounded memory."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Bool, Float

from sam_jax.absorbed import decode_absorbed
from sam_jax.config import SamConfig
from sam_jax.errors import describe
from sam_jax.low_rank import ImageState, decode_low_rank, prepare_image
from sam_jax.model import MaskPrediction, Sam, Variables
from sam_jax.prompts import EMPTY, AnyArray, Prompts

Images = Float[AnyArray, "... h w c"] | ImageState
"""Image embeddings, or what `prepare_image` made of them."""

Path = Literal["auto", "plain", "absorbed", "low_rank"]
"""How to decode: the Flax modules as they are, or one of the two forms that need fewer operations for the same sum."""

LOW_RANK_TOKENS = 24
"""Up to how many tokens of a prompt set the low-rank form pays."""


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
    embeddings: Images,
    prompts: Prompts,
    *,
    chunk: int | None = None,
    sizes: Sizes = Sizes(),
    mesh: jax.sharding.Mesh | None = None,
    path: Path = "auto",
) -> MaskPrediction:
    """Return all masks and scores of every prompt set.

    What depends on the image alone is computed once per image. Outside of a transformation, the inputs are padded to
    `sizes` with empty slots before one jitted call, and the padding is cut off again; inside `jit`, `vmap` or `grad`,
    shapes are taken as they are.

    Args:
      model: the decoder, static.
      variables: its variables.
      embeddings: image embeddings, channels last: [h, w, c], or [image, h, w, c]; or what `prepare_image` made of them.
      prompts: prompts with axes [prompt set], or [image, prompt set].
      chunk: how many prompt sets are decoded at once, the bound on memory; by default 4 on a CPU and 64 elsewhere.
      sizes: what the numbers of tokens, prompt sets and images are rounded up to.
      mesh: devices to split images and prompt sets over (`sam_jax.make_mesh`); `chunk` is then that of each device.
        Arrays spread over several processes are taken in the shape they have, too.
      path: how to decode; "auto" takes the fastest for the shapes (`choose_path`). None changes a result beyond
        rounding.

    Raises:
      ValueError: for inputs whose shapes do not fit the model or each other, or coordinates outside the input frame.
    """
    check_inputs(model.config, embeddings, prompts)
    check_path(path, prompts)
    if chunk is None:
        chunk = default_chunk()
    elif chunk < 1:
        raise ValueError(f"chunk must be a positive number of prompt sets, got {chunk}.")
    run = decode
    if mesh is not None:
        from sam_jax.sharding import decode_on, fit_sizes  # it builds on this module

        images = embeddings_of(embeddings).ndim == 4
        run, sizes = functools.partial(decode_on, mesh), fit_sizes(sizes, mesh, images=images)
    if not all(is_readable(x) for x in jax.tree.leaves((variables, embeddings, prompts))):
        return run(model, variables, embeddings, prompts, chunk, path)
    padded, wide = pad_inputs(embeddings, prompts, sizes)
    out = run(model, variables, padded, wide, chunk, path)
    if wide.valid.shape == prompts.valid.shape:
        return out
    return jax.tree.map(lambda x: x[tuple(slice(n) for n in prompts.valid.shape)], out)


def is_readable(x: Any) -> bool:
    """Return whether this process can see an array's values: neither traced nor spread over several processes."""
    if isinstance(x, Tracer):
        return False
    return not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated


def default_chunk() -> int:
    """Return how many prompt sets are decoded at once: few stay in a CPU's caches, many fill an accelerator."""
    return 4 if jax.default_backend() == "cpu" else 64


def pad_inputs(embeddings: Images, prompts: Prompts, sizes: Sizes) -> tuple[Images, Prompts]:
    """Return the inputs with the numbers of tokens, prompt sets and images rounded up to `sizes`."""
    *images, prompt_sets, tokens = prompts.labels.shape
    prompts = jax.tree.map(np.asarray, prompts)  # padding on the host compiles nothing
    target = [round_up(n, sizes.images) for n in images]
    prompts = prompts.pad(round_up(tokens, sizes.tokens), round_up(prompt_sets, sizes.prompt_sets), *target)
    if target > images:
        more = target[0] - images[0]
        embeddings = jax.tree.map(lambda x: jnp.pad(x, [(0, more)] + [(0, 0)] * (x.ndim - 1)), embeddings)
    return embeddings, prompts


@functools.partial(jax.jit, static_argnames=("model", "chunk", "path"))
def decode(
    model: Sam,
    variables: Variables,
    images: Images,
    prompts: Prompts,
    chunk: int,
    path: Path = "auto",
) -> MaskPrediction:
    """Decode every prompt set, `chunk` at a time, for the shapes as they are.

    The arguments are those of `predict_masks`; this is the one function that is compiled.
    """
    prompt_sets, tokens = prompts.labels.shape[-2:]
    prepared = isinstance(images, ImageState)
    if path == "auto":
        path = choose_path(tokens, prompt_sets, prompts.masks is not None, prepared)

    def one_image(inputs: tuple[Any, Prompts]) -> MaskPrediction:
        image, prompts = inputs
        if path == "low_rank":
            state = image if prepared else prepare_image(model, variables, image)
            return map_groups(functools.partial(decode_low_rank, model, variables, state), prompts, chunk)
        embedding = jnp.asarray(embeddings_of(image))
        if path == "absorbed":
            return map_groups(functools.partial(decode_absorbed, model, variables, embedding), prompts, chunk)
        return map_groups(jax.vmap(functools.partial(model.apply, variables, embedding)), prompts, chunk)

    if embeddings_of(images).ndim == 3:
        return one_image((images, prompts))
    return map_groups(jax.vmap(one_image), (images, prompts), max(1, chunk // max(1, prompt_sets)))


def choose_path(tokens: int, prompt_sets: int, has_masks: bool, prepared: bool) -> Path:
    """Return the fastest path for the shapes, by measurement on two CPU cores.

    Image tokens of low rank pay for few tokens, on an image that is prepared or that several prompt sets share. A mask
    prompt makes the image tokens the prompt set's own, so that they have to be written out.

    Args:
      tokens: tokens of each prompt set, empty slots included.
      prompt_sets: prompt sets of each image.
      has_masks: whether there are mask prompts.
      prepared: whether the image's part is there already.
    """
    if not has_masks and tokens <= LOW_RANK_TOKENS and (prepared or prompt_sets > 1):
        return "low_rank"
    return "absorbed"


def embeddings_of(images: Images) -> Float[AnyArray, "... h w c"]:
    """Return the embeddings, prepared or not."""
    return images.embedding if isinstance(images, ImageState) else images


def map_groups(function: Callable[[Any], Any], inputs: Any, size: int) -> Any:
    """Map a function of a batch over groups of at most `size` entries of the leading axis, one after the other."""
    number = jax.tree.leaves(inputs)[0].shape[0]
    if number <= size:
        return function(inputs)
    groups, rest = divmod(number, size)
    whole = jax.tree.map(lambda x: x[: groups * size].reshape(groups, size, *x.shape[1:]), inputs)
    out = jax.tree.map(lambda x: x.reshape(groups * size, *x.shape[2:]), jax.lax.map(function, whole))
    if not rest:
        return out
    last = function(jax.tree.map(lambda x: x[groups * size :], inputs))
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), out, last)


def check_inputs(config: SamConfig, images: Images, prompts: Prompts) -> None:
    """Raise a ValueError where the inputs of `predict_masks` do not fit the model or each other."""
    wanted = (*config.grid_size, config.width)
    embeddings = embeddings_of(images)
    shape = getattr(embeddings, "shape", ())
    if len(shape) not in (3, 4) or shape[-3:] != wanted:
        hint = ""
        if shape[-3:] == (config.width, *config.grid_size):
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


def check_path(path: Path, prompts: Prompts) -> None:
    """Raise a ValueError for a path that is none, or that cannot decode these prompts."""
    if path not in get_args(Path):
        raise ValueError(f"path must be one of {', '.join(get_args(Path))}, got {describe(path)}.")
    if path == "low_rank" and prompts.masks is not None:
        raise ValueError(
            'path="low_rank" decodes prompts without masks; "auto" takes another path where there are some.'
        )


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
