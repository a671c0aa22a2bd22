"""Every program compiled before the first request, so that a service never compiles on one."""

import dataclasses
import functools
import itertools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sam_jax.batch.decode import Images, Sizes, decode_batch, pad_inputs, platform_of
from sam_jax.batch.predict import check_inputs
from sam_jax.config import SamConfig
from sam_jax.decoder.features import features_of, map_shapes, maps_of
from sam_jax.decoder.model import MaskPrediction, Sam, Variables
from sam_jax.errors import describe
from sam_jax.fast.low_rank import ImageState, prepare_image
from sam_jax.prompts import Prompts

Key = tuple[tuple[int, ...], bool, bool]
"""What tells one program from another: [(image,) prompt set, token], mask prompts or not, prepared images or not."""


@dataclasses.dataclass(frozen=True)
class CompiledDecoder:
    """Compiled programs for a few sizes, as `compile` makes them.

    Attributes:
      model: the decoder.
      sizes: what the numbers of tokens, prompt sets and images are rounded up to.
      programs: the compiled program for each size.
    """

    model: Sam
    sizes: Sizes
    programs: Mapping[Key, jax.stages.Compiled]

    def __call__(self, variables: Variables, embeddings: Images, prompts: Prompts) -> MaskPrediction:
        """Return all masks and scores as `predict_masks` does, but with the padding left on.

        Cutting it off on the device would compile; `np.asarray(out.iou)[:n]` compiles nothing. The first entries are
        those of `prompts`; `valid` is False, and `iou` minus infinity, for prompt sets that exist only as padding.

        Raises:
          ValueError: for inputs that do not fit the model or each other, are larger than every compiled size, or are
            of another dtype than was compiled for.
        """
        check_inputs(self.model.config, embeddings, prompts)
        prepared = isinstance(embeddings, ImageState)
        for name, value in () if prepared else maps_of(embeddings).items():
            if value.dtype != np.float32:
                raise ValueError(
                    f"{name} must be float32, for which the programs were compiled; got {describe(value)}. "
                    "Cast it when it is made."
                )
        embeddings, padded = pad_inputs(embeddings, prompts, self.sizes)
        key = padded.labels.shape, padded.masks is not None, prepared
        if key not in self.programs:
            axes = "[image, prompt set, token]" if len(key[0]) == 3 else "[prompt set, token]"
            known = ", ".join(str(list(shape)) for shape, *kind in self.programs if tuple(kind) == key[1:])
            with_masks = "with" if key[1] else "without"
            given = f"{with_masks} mask prompts{' on prepared images' if prepared else ''}"
            raise ValueError(
                f"No program was compiled for {axes} {list(prompts.labels.shape)} {given}; "
                f"compiled are {known or 'none'}."
            )
        return self.programs[key](variables, embeddings, padded)


def compile(
    model: Sam,
    variables: Variables,
    *,
    sizes: Sizes,
    images: bool = False,
    masks: bool = False,
    prepared: bool = False,
    best: bool = False,
    chunk: int | None = None,
) -> CompiledDecoder:
    """Compile the decoder for every combination of `sizes`.

    Args:
      model: the decoder.
      variables: its variables; only shapes and dtypes are read.
      sizes: numbers of tokens, prompt sets and images to compile for.
      images: whether embeddings have an image axis; if not, `sizes.images` is not used.
      masks: whether some requests have mask prompts; then each size is compiled with and without.
      prepared: whether images come as `prepare_image` makes them, instead of as embeddings.
      best: keep one mask of each prompt set, as in `predict_masks`.
      chunk: how many prompt sets are decoded at once, as in `predict_masks`.
    """
    if not isinstance(sizes, Sizes):
        raise ValueError(f"sizes must be a sam_jax.Sizes, got {describe(sizes)}.")
    config = model.config
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), variables)
    counts, platform = [sizes.images] if images else [], platform_of(())
    programs = {}
    for *batch, tokens in itertools.product(*counts, sizes.prompt_sets, sizes.tokens):
        for with_masks in (False, True) if masks else (False,):
            image = feature_shapes(config, *batch[:-1])
            if prepared:
                prepare = functools.partial(prepare_image, model)
                image = jax.eval_shape(jax.vmap(prepare, (None, 0)) if images else prepare, shapes, image)
            prompts = prompt_shapes(tuple(batch), tokens, config.mask_size if with_masks else None)
            program = decode_batch.lower(model, shapes, image, prompts, chunk, best=best, platform=platform).compile()
            programs[(*batch, tokens), with_masks, prepared] = program
    return CompiledDecoder(model, sizes, programs)


def feature_shapes(config: SamConfig, *images: int) -> Any:
    """Return the features of images, or of one, of shapes instead of arrays, for tracing ahead of time."""
    return features_of(
        {name: jax.ShapeDtypeStruct((*images, *shape), jnp.float32) for name, shape in map_shapes(config).items()}
    )


def prompt_shapes(batch: tuple[int, ...], tokens: int, mask_size: tuple[int, int] | None) -> Prompts:
    """Return prompts of shapes instead of arrays, for tracing ahead of time."""
    return jax.eval_shape(
        lambda: Prompts(
            coordinates=jnp.zeros((*batch, tokens, 2), jnp.float32),
            labels=jnp.zeros((*batch, tokens), jnp.int32),
            masks=None if mask_size is None else jnp.zeros((*batch, *mask_size), jnp.float32),
            has_mask=None if mask_size is None else jnp.zeros(batch, bool),
            valid=jnp.zeros(batch, bool),
        )
    )
