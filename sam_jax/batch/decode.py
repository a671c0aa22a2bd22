"""The one jitted function, for shapes as they are: padding to a few sizes, chunks, the choice of a path."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Float

from sam_jax.batch.select import best_alone
from sam_jax.decoder.features import ImageFeatures, maps_of
from sam_jax.decoder.model import MaskPrediction, Sam, Variables
from sam_jax.errors import describe
from sam_jax.fast.absorbed import decode_absorbed
from sam_jax.fast.fused import decode_fused
from sam_jax.fast.image_form import written_image
from sam_jax.fast.low_rank import ImageState, decode_low_rank, prepare_image
from sam_jax.fast.platforms import on_cpu
from sam_jax.prompts import AnyArray, Prompts

Images = Float[AnyArray, "... h w c"] | ImageFeatures | ImageState
"""Image embeddings, all maps of images where a family has several, or what `prepare_image` made of either."""

Path = Literal["auto", "plain", "absorbed", "low_rank", "fused"]
"""How to decode: the Flax modules as they are, one of the two forms that need fewer operations for the same sum, or by
kernels that move fewer bytes (`absorbed` where there are none: on a CPU, and in float32 on a GPU)."""

LOW_RANK_TOKENS = 24
"""Up to how many tokens of a prompt set the low-rank form pays."""

CPU_CHUNK, CHUNK = 4, 64
"""How many prompt sets are decoded at once: few stay in a CPU's caches, many fill an accelerator."""


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


def is_readable(x: Any) -> bool:
    """Return whether this process can see an array's values: neither traced nor spread over several processes."""
    if isinstance(x, Tracer):
        return False
    return not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated


def platform_of(inputs: Any) -> str | None:
    """Return the kind of device that a call on readable inputs will run on; None where the call is being traced."""
    default = jnp.zeros(())
    if isinstance(default, Tracer):
        return None
    committed = [x for x in jax.tree.leaves(inputs) if isinstance(x, jax.Array) and x.committed]
    return next(iter((*committed, default)[0].devices())).platform


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


@functools.partial(jax.jit, static_argnames=("model", "chunk", "path", "best", "platform"))
def decode_batch(
    model: Sam,
    variables: Variables,
    images: Images,
    prompts: Prompts,
    chunk: int | None = None,
    path: Path = "auto",
    best: bool = False,
    platform: str | None = None,
) -> MaskPrediction:
    """Decode every prompt set, `chunk` at a time, for the shapes as they are.

    The arguments are those of `predict_masks`; this is the one function that is compiled. With a `platform` it is
    traced for that kind of device alone, which takes a third of the time.
    """
    prompt_sets, tokens = prompts.labels.shape[-2:]
    choice, elsewhere = path, path
    if path == "auto":
        choice = choose_path(tokens, prompt_sets, prompts.masks is not None, isinstance(images, ImageState))
        elsewhere = "auto"
    few, many = (CPU_CHUNK, CHUNK) if chunk is None else (chunk, chunk)
    of_cpu = functools.partial(decode_by, model, few, best, choice)
    if choice == elsewhere and (few == many or prompts.valid.size <= few):
        return of_cpu(variables, images, prompts)
    of_others = functools.partial(decode_by, model, many, best, elsewhere)
    if platform is not None:
        return (of_cpu if platform == "cpu" else of_others)(variables, images, prompts)
    # Gradients would keep the arrays of both: those of one are computed a second time instead.
    return on_cpu(of_cpu, jax.checkpoint(of_others, prevent_cse=False), variables, images, prompts)


def decode_by(
    model: Sam, chunk: int, best: bool, path: Path, variables: Variables, images: Images, prompts: Prompts
) -> MaskPrediction:
    """Return what `decode_batch` does, by one path: "auto" is what devices take that are no CPU.

    On a GPU that is "absorbed" as long as its kernels were not measured on one.
    """
    prompt_sets, prepared = prompts.labels.shape[-2], isinstance(images, ImageState)

    def one_image(inputs: tuple[Any, Prompts]) -> MaskPrediction:
        image, prompts = inputs
        if path == "low_rank":
            state = image if prepared else prepare_image(model, variables, image)
            decode: Any = functools.partial(decode_low_rank, model, variables, state)
        elif path == "plain":
            decode = jax.vmap(functools.partial(model.apply, variables, jax.tree.map(jnp.asarray, image)))
        else:
            written = image.written if prepared else written_image(model, variables, image)
            fused = functools.partial(decode_fused, platforms=("tpu",) if path == "auto" else ("tpu", "cuda"))
            form = decode_absorbed if path == "absorbed" else fused
            decode = functools.partial(form, model, variables, written)
        return map_groups(lambda group: best_alone(decode(group), group) if best else decode(group), prompts, chunk)

    if not image_axes(images):
        return one_image((images, prompts))
    return map_groups(jax.vmap(one_image), (images, prompts), max(1, chunk // max(1, prompt_sets)))


def choose_path(tokens: int, prompt_sets: int, has_masks: bool, prepared: bool) -> Path:
    """Return the fastest path for the shapes, by measurement on two CPU cores. Others take one for all shapes.

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


def image_axes(images: Images) -> tuple[int, ...]:
    """Return the axes of images, prepared or not: none, or their number."""
    if isinstance(images, ImageState):
        return images.written.embedding.shape[:-2]
    return maps_of(images)["embedding"].shape[:-3]


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
