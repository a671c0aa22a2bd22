"""Rounds of prompt and prediction, and the gradient of their losses, as one scan without a word to the host.

A mask that is given on is not differentiated, so the rounds' gradients are independent. Each is formed within its round
and added up: the memory is that of one round, however many there are, and nothing is computed twice.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from sam_jax.batch.select import take_masks
from sam_jax.config import SamConfig
from sam_jax.decoder.model import MaskPrediction
from sam_jax.prompts import AnyArray, Prompts
from sam_jax.train.config import LossConfig, Simulation
from sam_jax.train.data.batches import Batch
from sam_jax.train.learning.losses import class_losses, object_losses, total_loss
from sam_jax.train.user.simulate import next_prompts, start, whole_images, with_slots

Decode = Callable[[Any, Prompts], MaskPrediction]
"""From what is trained and prompts [image, object] to predictions."""

Metrics = dict[str, Array]


def interactive_gradients(
    decode: Decode,
    trained: Any,
    batch: Batch,
    keys: Key[Array, "b o"],
    config: SamConfig,
    *,
    simulation: Simulation = Simulation(),  # noqa: B008 - frozen
    loss: LossConfig = LossConfig(),  # noqa: B008 - frozen
    iou_weight: Float[Array, ""] | float = 1.0,
    count: Int[Array, ""] | None = None,
) -> tuple[Metrics, Any]:
    """Play all rounds and return their losses, and the gradient of the mean loss of a round.

    Args:
      decode: from `trained` and prompts to predictions; differentiable in its first argument.
      trained: a pytree, such as the parameters and the embeddings.
      batch: the objects.
      keys: one for each object, new in each step.
      config: settings of the decoder.
      simulation: how the user behaves.
      loss: weights of the terms.
      iou_weight: of the score's term at the present step.
      count: number of valid objects that the losses are divided by; by default those here.

    Returns:
      `loss` and its terms, means over rounds; `first_overlap` and `last_overlap`, the mean IoU of the mask of the
      highest score in those rounds; and the gradient, like `trained`.
    """
    targets, weight, valid = (jnp.asarray(x) for x in (batch.targets, batch.weight, batch.valid))
    inside, shown = targets >= 0.5, weight >= 0.5
    count = jnp.maximum(valid.sum() if count is None else count, 1).astype(jnp.float32)

    def round_loss(trained: Any, prompts: Prompts, first: bool) -> tuple[Array, tuple[Metrics, AnyArray]]:
        prediction = decode(trained, prompts)
        terms = object_losses(prediction, targets, weight[:, None], ambiguous=first, config=loss)
        total, means = total_loss(terms, valid, count, iou_weight, loss)
        return total, (means | {"loss": total}, jax.lax.stop_gradient(given_on(prediction, first)))

    gradient = jax.grad(round_loss, has_aux=True)
    prompts = start(keys, inside, valid, batch.input_size, config, simulation)
    total, (first, logits) = gradient(trained, prompts, True)
    later = simulation.rounds - 1
    if not later:
        return first | {"first_overlap": first["overlap"], "last_overlap": first["overlap"]}, total

    def play(carry: Any, index: Array) -> tuple[Any, Metrics]:
        total, prompts, logits = carry
        prompts = next_prompts(keys, index, prompts, logits, inside, shown, config, simulation)
        new, (means, logits) = gradient(trained, prompts, False)
        return (jax.tree.map(jnp.add, total, new), prompts, logits), means

    carry = total, with_slots(prompts, config, simulation), logits
    (total, _, _), others = jax.lax.scan(play, carry, jnp.arange(1, later + 1))
    means = {name: (first[name] + others[name].sum(0)) / simulation.rounds for name in first}
    means |= {"first_overlap": first["overlap"], "last_overlap": others["overlap"][-1]}
    return means, jax.tree.map(lambda x: x / simulation.rounds, total)


def class_gradients(
    decode: Decode,
    trained: Any,
    batch: Batch,
    *,
    loss: LossConfig = LossConfig(),  # noqa: B008 - frozen
    iou_weight: Float[Array, ""] | float = 1.0,
    count: Int[Array, ""] | None = None,
) -> tuple[Metrics, Any]:
    """Ask once for each whole image, and return the loss of its classes, and the gradient of that.

    Args:
      decode: as in `interactive_gradients`.
      trained: likewise.
      batch: its objects are the classes, in the order of masks 1, 2, ...
      loss: weights of the terms.
      iou_weight: of the score's term at the present step.
      count: number of valid classes of all images that the losses are divided by; by default those here.

    Returns:
      `loss` and its terms, with `overlap`, the mean IoU of the classes' masks; and the gradient, like `trained`.
    """
    targets, weight, valid = (jnp.asarray(x) for x in (batch.targets, batch.weight, batch.valid))
    count = jnp.maximum(valid.sum() if count is None else count, 1).astype(jnp.float32)
    prompts, loss = whole_images(batch.input_size), dataclasses.replace(loss, focal=loss.class_focal)

    def class_loss(trained: Any) -> tuple[Array, Metrics]:
        prediction = jax.tree.map(lambda x: x[:, 0], decode(trained, prompts))
        total, means = total_loss(class_losses(prediction, targets, weight), valid, count, iou_weight, loss)
        return total, means | {"loss": total}

    gradient, means = jax.grad(class_loss, has_aux=True)(trained)
    return means, gradient


def given_on(prediction: MaskPrediction, ambiguous: bool) -> Float[AnyArray, "b o my mx"]:
    """Return the next mask prompts: of an ambiguous prompt's masks that of the highest score, else mask 0.

    SAM-HQ's mask is added to it.
    """
    if ambiguous:
        logits, _ = take_masks(prediction, 1 + jnp.argmax(prediction.iou[..., 1:], -1))
    else:
        logits = prediction.logits[:, :, 0]
    return logits if prediction.hq is None else logits + prediction.hq
