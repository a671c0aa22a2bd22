"""A simulated user: a first prompt, then clicks where the last mask is wrong, all on the device.

Each sampler is written for one object; `vmap` adds the axes [image, object]. Shapes are static: every round has its own
slot for a click, and slots that are not used stay empty. Pixels are those of the targets, points are (x, y) in the
input frame. Clicks are uniform over a region, as SAM's training has them (arXiv 2304.02643, appendix A), whereas the
protocols of evaluation click in the middle.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from sam_jax.batch.select import mask_boxes
from sam_jax.config import SamConfig
from sam_jax.images.resize import enlarge
from sam_jax.prompts import (
    BACKGROUND,
    BOX_BOTTOM_RIGHT,
    BOX_TOP_LEFT,
    EMPTY,
    FOREGROUND,
    NOT_A_POINT,
    AnyArray,
    Prompts,
)
from sam_jax.train.config import Simulation

FIRST_TOKENS = 2
"""Tokens of a first prompt: a click and "not a point", or two corners."""


def uniform_pixel(key: Key[Array, ""], region: Bool[Array, "ty tx"]) -> Int[Array, " 2"]:
    """Return a pixel (x, y) of a region, each with the same chance; (0, 0) of an empty region.

    One number is drawn and counted off: along the rows, then within the row.
    """
    rows = region.sum(1)
    number = jax.random.randint(key, (), 0, jnp.maximum(rows.sum(), 1))
    y = jnp.argmax(jnp.cumsum(rows) > number)
    number = number - jnp.cumsum(rows)[y] + rows[y]
    x = jnp.argmax(jnp.cumsum(region[y]) > number)
    return jnp.stack([x, y])


def point_in_pixel(key: Key[Array, ""], pixel: Int[Array, " 2"], stride: Float[Array, " 2"]) -> Float[Array, " 2"]:
    """Return a point of the input frame, uniform over what a pixel covers, which is `stride` wide and high."""
    # Pixels have their centres at whole coordinates: the first begins at -0.5.
    return (pixel.astype(jnp.float32) + jax.random.uniform(key, (2,), jnp.float32)) * stride - 0.5


def jittered_box(
    key: Key[Array, ""],
    target: Bool[Array, "ty tx"],
    input_size: Int[Array, " 2"],
    config: SamConfig,
    simulation: Simulation = Simulation(),  # noqa: B008 - frozen
) -> Float[Array, " 4"]:
    """Return the object's box in the input frame with noise on every edge, within the image.

    Args:
      key: of the noise.
      target: the object.
      input_size: height and width of the resized image, before padding.
      config: settings of the decoder.
      simulation: how much noise.
    """
    first, last = mask_boxes(target).reshape(2, 2)
    stride = _stride(target, config)
    corners = jnp.stack([first * stride, (last + 1) * stride - 1])
    limit = simulation.box_noise_limit * max(config.image_size)
    noise = jax.random.normal(key, (2, 2), jnp.float32) * simulation.box_noise * (corners[1:] - corners[:1] + 1)
    farthest = (input_size[None, ::-1] - 1).astype(jnp.float32)
    moved = jnp.clip(corners + jnp.clip(noise, -limit, limit), 0, farthest)
    return jnp.concatenate([moved.min(0), moved.max(0)])  # noise can turn a thin box around


def error_click(
    key: Key[Array, ""],
    target: Bool[Array, "ty tx"],
    mask: Bool[Array, "ty tx"],
    inside: Bool[Array, "ty tx"],
    config: SamConfig,
) -> tuple[Float[Array, " 2"], Int[Array, ""]]:
    """Return a click where the mask is wrong: foreground where the object is missed, background where it is exceeded.

    Where nothing is wrong, the click is one more in the object.

    Args:
      key: of the click.
      target: the object.
      mask: the last mask.
      inside: False on the image's padding, where nobody clicks.
      config: settings of the decoder.
    """
    of_pixel, within = jax.random.split(key)
    wrong = (target != mask) & inside
    x, y = pixel = uniform_pixel(of_pixel, jnp.where(wrong.any(), wrong, target))
    return point_in_pixel(within, pixel, _stride(target, config)), jnp.where(target[y, x], FOREGROUND, BACKGROUND)


def first_prompt(
    key: Key[Array, ""],
    target: Bool[Array, "ty tx"],
    input_size: Int[Array, " 2"],
    config: SamConfig,
    simulation: Simulation = Simulation(),  # noqa: B008 - frozen
) -> tuple[Float[Array, "2 2"], Int[Array, " 2"]]:
    """Return the tokens of a click in the object, or of its box; which of both is drawn.

    The arguments are those of `jittered_box`.
    """
    of_kind, of_box, of_click = jax.random.split(key, 3)
    box = jittered_box(of_box, target, input_size, config, simulation).reshape(2, 2)
    nothing = jnp.zeros_like(target)
    point, _ = error_click(of_click, target, nothing, target, config)
    click = jnp.stack([point, jnp.zeros_like(point)])
    is_box = jax.random.bernoulli(of_kind, simulation.boxes)
    labels = jnp.where(
        is_box, jnp.array([BOX_TOP_LEFT, BOX_BOTTOM_RIGHT], jnp.int32), jnp.array([FOREGROUND, NOT_A_POINT], jnp.int32)
    )
    return jnp.where(is_box, box, click), labels


def whole_images(input_size: Int[AnyArray, "b 2"]) -> Prompts:
    """Return one prompt set for each image: a box around all of it, the prompt that classes are asked for with.

    Args:
      input_size: height and width of each resized image.
    """
    last = (jnp.asarray(input_size)[:, None, ::-1] - 1).astype(jnp.float32)
    corners = jnp.stack([jnp.zeros_like(last), last], 2)
    labels = jnp.broadcast_to(jnp.array([BOX_TOP_LEFT, BOX_BOTTOM_RIGHT], jnp.int32), corners.shape[:-1])
    return Prompts(corners, labels, None, None, jnp.ones(labels.shape[:-1], bool))


def start(
    keys: Key[Array, "b o"],
    targets: Bool[Array, "b o ty tx"],
    valid: Bool[AnyArray, "b o"],
    input_size: Int[AnyArray, "b 2"],
    config: SamConfig,
    simulation: Simulation,
) -> Prompts:
    """Return the first prompts of all objects. They have no slots for clicks yet, and no masks.

    Args:
      keys: one for each object and step.
      targets: the objects.
      valid: False for objects that are padding.
      input_size: height and width of each resized image.
      config: settings of the decoder.
      simulation: how the user behaves.
    """

    def prompt(key: Array, target: Array, size: Array) -> tuple[Array, Array]:
        return first_prompt(jax.random.fold_in(key, 0), target, size, config, simulation)

    coordinates, labels = jax.vmap(jax.vmap(prompt, (0, 0, None)))(keys, targets, jnp.asarray(input_size))
    return Prompts(coordinates, labels, None, None, jnp.asarray(valid))


def with_slots(prompts: Prompts, config: SamConfig, simulation: Simulation) -> Prompts:
    """Return first prompts with an empty slot for each later round, and room for a mask if the decoder takes one."""
    batch, tokens = prompts.valid.shape, FIRST_TOKENS + simulation.rounds - 1
    padded = prompts.pad(tokens, batch[1], batch[0])
    if config.efficient_sam:
        return padded
    return dataclasses.replace(
        padded,
        masks=jnp.zeros((*batch, *config.mask_size), jnp.float32),
        has_mask=jnp.ones(batch, bool),
    )


def next_prompts(
    keys: Key[Array, "b o"],
    index: Int[Array, ""],
    prompts: Prompts,
    logits: Float[Array, "b o my mx"],
    targets: Bool[Array, "b o ty tx"],
    inside: Bool[Array, "b ty tx"],
    config: SamConfig,
    simulation: Simulation,
) -> Prompts:
    """Return the prompts of round `index`, 1 or more: the last logits as the mask, and a click where they are wrong.

    Args:
      keys: those that `start` had.
      index: number of the round.
      prompts: those of the round before, with slots.
      logits: the mask of the highest predicted IoU of the round before.
      targets: the objects.
      inside: False on the images' padding.
      config: settings of the decoder.
      simulation: how the user behaves.
    """

    def click(key: Array, target: Array, mask: Array, inside: Array) -> tuple[Array, Array]:
        point, label = error_click(jax.random.fold_in(key, index), target, mask, inside, config)
        return point, jnp.where(has_click(key, index, simulation), label, EMPTY)

    masks = enlarge(logits, targets.shape[-2:]) > 0
    points, labels = jax.vmap(jax.vmap(click, (0, 0, 0, None)))(keys, targets, masks, inside)
    slot = FIRST_TOKENS - 1 + index
    return dataclasses.replace(
        prompts,
        coordinates=jnp.asarray(prompts.coordinates).at[:, :, slot].set(points),
        labels=jnp.asarray(prompts.labels).at[:, :, slot].set(labels),
        masks=None if prompts.masks is None else logits.astype(jnp.float32),
    )


def has_click(key: Key[Array, ""], index: Int[Array, ""] | int, simulation: Simulation) -> Bool[Array, ""]:
    """Return whether an object gets a click in round `index`, rather than its last mask alone.

    With refinements, there is no click in the last round and in one more, drawn for each object, that another click
    follows.
    """
    if not simulation.refinements:
        return jnp.array(True)
    pause = jax.random.randint(jax.random.fold_in(key, simulation.rounds), (), 1, simulation.clicks + 1)
    return jnp.logical_and(index != pause, index != simulation.rounds - 1)


def _stride(target: Bool[Array, "ty tx"], config: SamConfig) -> Float[Array, " 2"]:
    """Width and height in the input frame of a target's pixel."""
    (height, width), (ty, tx) = config.image_size, target.shape
    return jnp.array([width / tx, height / ty], jnp.float32)
