"""Predicting in pixels of images of any sizes: pure functions around the input frame. `Predictor` is built on them."""

import dataclasses
import functools
import os
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image

from sam_jax.batch.decode import Images
from sam_jax.batch.interactive import handed_back
from sam_jax.batch.predict import predict_masks
from sam_jax.batch.select import select_masks
from sam_jax.config import SamConfig
from sam_jax.decoder.features import Features, map_shapes, maps_of
from sam_jax.decoder.model import MaskPrediction, Sam, Variables
from sam_jax.encoders.encoder import Encoder
from sam_jax.errors import describe
from sam_jax.images.preprocess import prepare, size_in_frame
from sam_jax.images.read import rgb_pixels
from sam_jax.images.resize import mask_sizes, mask_to_prompt, to_input_frame, to_original_image
from sam_jax.images.size import Size
from sam_jax.images.tiles import resize_by_tiles
from sam_jax.prompts import NOT_A_POINT, AnyArray, Prompts, Ragged, depth_of


class EncodedImage(NamedTuple):
    """All that is kept of an image: a pytree to store, pass on and predict from.

    Attributes:
      embedding: the image embedding, all maps where the family has several, or what `prepare_image` made of either.
      input_size: height and width of the resized image in the input frame, before padding.
      original_size: height and width of the image.
    """

    embedding: Images
    input_size: Size
    original_size: Size


class Prediction(NamedTuple):
    """Masks and scores in the order of the official `predict`; `*object` is there if the prompts had that axis.

    Attributes:
      masks: at the original size.
      scores: predicted IoU of each mask; it can exceed 1.
      logits: low-res logits of each mask; one of them is the next round's mask prompt.
    """

    masks: Bool[np.ndarray, "*object k height width"]
    scores: Float[np.ndarray, "*object k"]
    logits: Float[np.ndarray, "*object k my mx"]


def encode_image(
    encoder: Encoder,
    variables: Variables,
    image: UInt8[AnyArray, "height width 3"] | Image.Image | str | os.PathLike[str],
) -> EncodedImage:
    """Return an image as the decoder needs it. One program is compiled for each encoder.

    Args:
      encoder: the image encoder.
      variables: its variables.
      image: RGB pixels from 0 to 255, a PIL image, or a file.

    Raises:
      ValueError: for an array that is no such image, or a file that cannot be read.
    """
    pixels = rgb_pixels(image)
    config = encoder.config
    frame, _ = prepare(pixels, config.image_size, config.preprocessing)
    original_size = pixels.shape[0], pixels.shape[1]
    input_size = size_in_frame(original_size, config.prompt_frame, config.preprocessing)
    return EncodedImage(_encode(encoder, variables, frame), input_size, original_size)


@functools.partial(jax.jit, static_argnames="encoder")
def _encode(encoder: Encoder, variables: Variables, frame: Float[AnyArray, "fh fw 3"]) -> Features:
    features: Any = encoder.apply(variables, frame)
    return features


def encoded_shapes(encoder: Encoder, variables: Variables) -> dict[str, tuple[int, int, int]]:
    """Return the shapes of the maps that `encode_image` makes of an image, by name."""
    frame = jax.ShapeDtypeStruct((*encoder.config.image_size, 3), jnp.float32)
    made = jax.eval_shape(functools.partial(_encode, encoder), variables, frame)
    return {name: value.shape for name, value in maps_of(made).items()}


def predict_image(
    model: Sam,
    variables: Variables,
    image: EncodedImage,
    points: Ragged | None = None,
    labels: Ragged | None = None,
    boxes: Ragged | None = None,
    mask: Ragged | None = None,
    multimask: bool = True,
) -> Prediction:
    """Return masks, scores and low-res logits for one object of an image, or for several at once.

    Args:
      model: the decoder.
      variables: its variables.
      image: what `encode_image` returned; for many calls, its embedding may be replaced by what `prepare_image` made of
        it.
      points: as all that follow, what `Predictor.predict` takes.
      labels: likewise.
      boxes: likewise.
      mask: likewise.
      multimask: likewise.

    Raises:
      ValueError: for prompts that do not fit the image or each other.
    """
    given = {"points": points, "labels": labels, "boxes": boxes, "mask": mask}
    prompts, several = build_prompts(model.config, image, given)
    # Chosen from on the host: on the device, each slice would be a program to compile.
    out = jax.tree.map(np.asarray, predict_masks(model, variables, image.embedding, prompts))
    return _full_size(model.config, image, out if several else jax.tree.map(lambda x: x[0], out), multimask)


def predict_batch(
    model: Sam,
    variables: Variables,
    images: Sequence[EncodedImage],
    points: Sequence[Ragged | None] | None = None,
    labels: Sequence[Ragged | None] | None = None,
    boxes: Sequence[Ragged | None] | None = None,
    mask: Sequence[Ragged | None] | None = None,
    multimask: bool = True,
) -> list[Prediction]:
    """Return a prediction for each of several images of any sizes, all decoded in one call.

    Args:
      model: the decoder.
      variables: its variables.
      images: what `encode_image` returned for each.
      points: as all that follow, what `predict_image` takes for each image; None for an image without.
      labels: likewise.
      boxes: likewise.
      mask: likewise.
      multimask: as in `predict_image`, for all images.

    Raises:
      ValueError: for prompts that do not fit the images or each other.
    """
    given = {"points": points, "labels": labels, "boxes": boxes, "mask": mask}
    for name, entries in given.items():
        if entries is not None and len(entries) != len(images):
            raise ValueError(f"{name} must have one entry for each of {len(images)} images, got {len(entries)}.")
    rows = [
        {name: None if entries is None else entries[i] for name, entries in given.items()} for i in range(len(images))
    ]
    asked = [build_prompts(model.config, image, row) for image, row in zip(images, rows, strict=True)]
    embeddings = jax.tree.map(lambda *maps: jnp.stack(maps), *(image.embedding for image in images))
    prompts_of_all = _stack([prompts for prompts, _ in asked], model.config)
    together = jax.tree.map(np.asarray, predict_masks(model, variables, embeddings, prompts_of_all))
    predictions = []
    for i, (image, (prompts, several)) in enumerate(zip(images, asked, strict=True)):
        mine = (i, slice(len(prompts.valid))) if several else (i, 0)
        out = jax.tree.map(lambda x, mine=mine: x[mine], together)
        predictions.append(_full_size(model.config, image, out, multimask))
    return predictions


def _full_size(config: SamConfig, image: EncodedImage, out: MaskPrediction, multimask: bool) -> Prediction:
    logits, scores = select_masks(out, multimask)
    flat = np.asarray(logits, np.float32).reshape(-1, *logits.shape[-2:])
    masks = full_size_masks(config, image, flat).reshape(*logits.shape[:-2], *image.original_size)
    logits = np.asarray(handed_back(config, logits), np.float32)
    return Prediction(masks, np.asarray(scores, np.float32), logits)


def full_size_masks(
    config: SamConfig, image: EncodedImage, logits: Float[np.ndarray, "n my mx"]
) -> Bool[np.ndarray, "n height width"]:
    """Return masks at an image's size by the rules of the decoder's family. An image of a new size compiles nothing.

    Args:
      config: settings of the decoder.
      image: only its sizes are read.
      logits: low-res logits.
    """
    sizes = mask_sizes(config, image.input_size)
    return resize_by_tiles(logits, original_size=image.original_size, threshold=0.0, **sizes)


_RANKS = {"points": 2, "labels": 1, "boxes": 1, "mask": 2}
"""Axes of what is given for one object."""


def build_prompts(config: SamConfig, image: EncodedImage, asked: dict[str, Any]) -> tuple[Prompts, bool]:
    """Return the prompts for one image, in the input frame, and whether they had an axis of objects.

    Args:
      config: settings of the decoder.
      image: only its sizes are read.
      asked: what `predict_image` takes: `points`, `labels`, `boxes`, `mask`, in pixels of the image.

    Raises:
      ValueError: for prompts that do not fit the image or each other.
    """
    given = {name: value for name, value in asked.items() if value is not None}
    more = {name: depth_of(value) - _RANKS[name] for name, value in given.items()}
    if more.get("mask") == 1 and len(given["mask"]) == 1 and any(more[name] == 0 for name in more):
        given["mask"], more["mask"] = given["mask"][0], 0
    if len(set(more.values())) > 1 or not set(more.values()) <= {0, 1}:
        wanted = "points [click, 2], labels [click], boxes [4], mask [4h, 4w]"
        got = ", ".join(f"{name} with {_RANKS[name] + extra} axes" for name, extra in more.items())
        raise ValueError(f"One object has {wanted}, and several have one more axis in front of each; got {got}.")
    several = 1 in more.values()
    if not several:
        given = {name: [value] for name, value in given.items()}
    if "mask" in given:
        given["masks"] = [None if mask is None else _mask_logits(config, image, mask) for mask in given.pop("mask")]
    prompts = jax.tree.map(np.asarray, Prompts.build(**given, images=False))
    sizes = {"original_size": image.original_size, "input_size": image.input_size}
    coordinates = np.asarray(to_input_frame(prompts.coordinates, **sizes))
    prompts = dataclasses.replace(prompts, coordinates=coordinates)
    _check_inside(image, prompts)
    return prompts, several


def _mask_logits(config: SamConfig, image: EncodedImage, mask: Any) -> AnyArray:
    mask = np.asarray(mask)
    if mask.dtype != bool:
        return mask
    if mask.shape != image.original_size:
        raise ValueError(
            f"A mask of bools must have the image's height and width {image.original_size}, got {describe(mask)}."
        )
    sizes: Any = {"input_size": image.input_size, "mask_size": config.mask_size, "image_size": config.image_size}
    return np.asarray(mask_to_prompt(mask, **sizes))


def _check_inside(image: EncodedImage, prompts: Prompts) -> None:
    """Raise where a click or corner is more than a pixel of the input frame outside the image."""
    height, width = image.input_size
    coordinates = prompts.coordinates
    outside = ((coordinates < -1) | (coordinates > np.array([width, height]) + 1)).any(-1)
    outside &= prompts.token_mask & (prompts.labels != NOT_A_POINT)
    if outside.any():
        sizes = {"original_size": image.original_size, "input_size": image.input_size}
        x, y = np.asarray(to_original_image(coordinates[outside][0], **sizes)).tolist()
        height, width = image.original_size
        raise ValueError(f"({x:g}, {y:g}) is outside the image, which is {width} pixels wide and {height} high.")


def _stack(prompts: list[Prompts], config: SamConfig) -> Prompts:
    """The prompts of several images as one, with empty slots."""
    prompt_sets, tokens = np.max([one.labels.shape for one in prompts], axis=0).tolist()
    if any(one.masks is not None for one in prompts):
        prompts = [one if one.masks is not None else _without_masks(one, config) for one in prompts]
    return jax.tree.map(lambda *x: np.stack(x), *(one.pad(tokens, prompt_sets) for one in prompts))


def _without_masks(prompts: Prompts, config: SamConfig) -> Prompts:
    """The same prompts with room for masks that do not count."""
    number = len(prompts.valid)
    return dataclasses.replace(
        prompts, masks=np.zeros((number, *config.mask_size), np.float32), has_mask=np.zeros(number, bool)
    )


def check_fit(config: SamConfig, encoder: Encoder) -> None:
    """Raise a ValueError where an encoder's embeddings, or its prompts' frame, are not what the decoder takes."""
    made = encoder.config
    got = made.prompt_frame, (*made.grid_size, made.out_width)
    wanted = config.image_size, (*config.grid_size, config.width)
    if got != wanted:
        raise ValueError(
            f"The decoder takes embeddings {list(wanted[1])} of frames {list(wanted[0])}, but the encoder makes "
            f"{list(got[1])} of {list(got[0])}."
        )
    takes = set(map_shapes(config)) - {"embedding"}
    if made.other_maps != takes:
        raise ValueError(
            f"Beside embeddings, the decoder takes {_in_a_row(takes)} of an image, and the encoder makes "
            f"{_in_a_row(made.other_maps)}."
        )


def _in_a_row(names: Collection[str]) -> str:
    """Return the names of maps in a sentence."""
    return " and ".join(sorted(names)) or "nothing"
