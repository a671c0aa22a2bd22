"""Losses of masks and scores, as functions of logits: SAM's focal and dice at 20:1, and the regression of IoU.

Each loss of masks returns one number per mask, so that the best of an ambiguous prompt's masks can be found, objects
that are padding can be left out, and the terms be logged apart. Pixels of weight 0 (the image's padding) have no part
in any of them.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

from sam_jax.decoder.model import MaskPrediction
from sam_jax.images.resize import enlarge
from sam_jax.prompts import AnyArray
from sam_jax.train.config import LossConfig
from sam_jax.train.evaluation.metrics import mask_iou

ALPHA, GAMMA = 0.25, 2.0
"""The focal loss's share of the object's pixels, and how fast it forgets pixels that are right already."""

Terms = dict[str, Float[Array, "*batch"]]
"""The terms apart, one number per object: `focal`, `dice`, `iou` (squared error of the score), and `overlap`; of SAM-HQ
`hq` as well, the focal and dice losses of its own mask together."""


def focal_map(logits: Float[AnyArray, "*batch"], targets: Float[AnyArray, "*#batch"]) -> Float[Array, "*batch"]:
    """Return the focal loss of each pixel, `-a (1 - p)^2 log(p)` for the probability `p` of what is true.

    `a` is 1/4 in the object and 3/4 outside; a target between 0 and 1 is a mixture of both. Of Lin et al., "Focal loss
    for dense object detection" (2017), equation 5.
    """
    targets, probability = jnp.asarray(targets), jax.nn.sigmoid(logits)
    of_truth = probability * targets + (1 - probability) * (1 - targets)
    share = ALPHA * targets + (1 - ALPHA) * (1 - targets)
    return share * (1 - of_truth) ** GAMMA * optax.sigmoid_binary_cross_entropy(logits, targets)


def focal_loss(
    logits: Float[AnyArray, "*batch my mx"],
    targets: Float[AnyArray, "*#batch my mx"],
    weight: Float[AnyArray, "*#batch my mx"],
    *,
    size_aware: bool = False,
) -> Float[Array, "*batch"]:
    """Return the focal loss of each mask: the sum over its pixels, divided by how many there are.

    The mean over the image hides small objects: the errors of a trained model lie along the boundary, and that grows
    with the square root of the area. `size_aware` divides by `sqrt(pixels * area)` instead, so that an error of so many
    pixels' width along the boundary costs the same for every size. For an object that fills the image, both are equal.

    Args:
      logits: masks as logits.
      targets: 1 in the object, 0 outside.
      weight: of each pixel, 0 on padding.
      size_aware: divide by the geometric mean of the image's and the object's pixels.
    """
    pixels = jnp.maximum(_total(weight), 1)
    area = jnp.clip(_total(weight * targets), 1, pixels)
    return _total(weight * focal_map(logits, targets)) / (jnp.sqrt(pixels * area) if size_aware else pixels)


def dice_loss(
    logits: Float[AnyArray, "*batch my mx"],
    targets: Float[AnyArray, "*#batch my mx"],
    weight: Float[AnyArray, "*#batch my mx"],
) -> Float[Array, "*batch"]:
    """Return the dice loss of each mask, `1 - (2 sum(p t) + 1) / (sum(p) + sum(t) + 1)` with probabilities `p`.

    Of Milletari et al., "V-Net" (2016), with one pixel added so that nothing where nothing is wanted costs nothing.

    Args:
      logits: masks as logits.
      targets: 1 in the object, 0 outside.
      weight: of each pixel, 0 on padding.
    """
    probability = jax.nn.sigmoid(logits) * weight
    shared = _total(probability * targets)
    return 1 - (2 * shared + 1) / (_total(probability) + _total(weight * targets) + 1)


def object_losses(
    prediction: MaskPrediction,
    targets: Float[AnyArray, "*batch ty tx"],
    weight: Float[AnyArray, "*#batch ty tx"],
    *,
    ambiguous: bool,
    config: LossConfig = LossConfig(),  # noqa: B008 - frozen
) -> Terms:
    """Return the terms of each object.

    An ambiguous prompt has three masks: the one of the lowest loss alone is taught, so that the others may mean
    something else, while all three scores learn how good their masks are. With several prompts, mask 0 alone counts.
    SAM-HQ's mask learns the object by itself, as in its authors' training (`train/train.py` of SysCV/sam-hq), though it
    is added to another when it is used. An object score is not taught.

    Logits are brought to the targets' resolution. The dice loss makes them say yes or no to each pixel: where that is a
    low-res one, edges end up on the borders of those, and where it is one of the input frame, they are as fine.

    Args:
      prediction: what the decoder made of the objects' prompts.
      targets: the objects, at the logits' resolution or a finer one.
      weight: of each pixel.
      ambiguous: whether each object was asked for with a single prompt.
      config: weights of the terms.

    Returns:
      `focal`, `dice` and `iou`, without their weights, `overlap`: the IoU of the mask of the highest score, to which
      SAM-HQ's is added; and where there is that mask, `hq`.
    """
    chosen = slice(1, None) if ambiguous else slice(0, 1)
    logits, scores = enlarge(prediction.logits[..., chosen, :, :], targets.shape[-2:]), prediction.iou[..., chosen]
    scores = jnp.where(prediction.valid[..., None], scores, 0)  # minus infinity where the object is padding
    targets, weight = targets[..., None, :, :].astype(logits.dtype), weight[..., None, :, :].astype(logits.dtype)
    focal = focal_loss(logits, targets, weight, size_aware=config.size_aware)
    dice = dice_loss(logits, targets, weight)
    overlap = mask_iou(logits > 0, targets >= 0.5, weight >= 0.5).astype(logits.dtype)
    lowest = jnp.argmin(config.focal * focal + config.dice * dice, -1)
    terms = {"focal": _take(focal, lowest), "dice": _take(dice, lowest), "iou": jnp.square(scores - overlap).mean(-1)}
    if prediction.hq is not None:
        hq = enlarge(prediction.hq[..., None, :, :], targets.shape[-2:])
        of_hq = config.focal * focal_loss(hq, targets, weight, size_aware=config.size_aware)
        terms["hq"] = (of_hq + config.dice * dice_loss(hq, targets, weight))[..., 0]
        overlap = mask_iou(logits + hq > 0, targets >= 0.5, weight >= 0.5).astype(logits.dtype)
    return terms | {"overlap": _take(overlap, jnp.argmax(scores, -1))}


def class_losses(
    prediction: MaskPrediction,
    targets: Float[AnyArray, "*batch k ty tx"],
    weight: Float[AnyArray, "*batch ty tx"],
) -> dict[str, Float[Array, "*batch k"]]:
    """Return the terms of each class: of mask 1, 2, ... of an image's one prompt, and its score.

    A class that an image has not is a target of zeros, for whoever asks for the masks later does not know which classes
    there are. It weighs no more than another: its focal loss is the mean over the image, as for all classes, and its
    dice loss is at most 1. An empty mask costs nothing then.

    Args:
      prediction: what the decoder made of each image's prompt.
      targets: the classes, at the logits' resolution or a finer one.
      weight: of each pixel.
    """
    logits, scores = enlarge(prediction.logits[..., 1:, :, :], targets.shape[-2:]), prediction.iou[..., 1:]
    targets, weight = targets.astype(logits.dtype), weight[..., None, :, :].astype(logits.dtype)
    overlap = mask_iou(logits > 0, targets >= 0.5, weight >= 0.5).astype(logits.dtype)
    return {
        "focal": focal_loss(logits, targets, weight),
        "dice": dice_loss(logits, targets, weight),
        "iou": jnp.square(scores - overlap),
        "overlap": overlap,
    }


def total_loss(terms: Terms, valid: Bool[AnyArray, "*batch"], count: Any, iou_weight: Any, config: LossConfig) -> Any:
    """Return the weighted sum of the terms over the objects that count, divided by `count`, and each mean apart.

    Args:
      terms: what `object_losses` returned.
      valid: False for objects that are padding.
      count: number of valid objects, over all devices.
      iou_weight: of the score's term, at the present step (`iou_weight_at`).
      config: weights of the other terms.
    """
    means = {name: jnp.where(valid, term, 0).sum() / count for name, term in terms.items()}
    total = config.focal * means["focal"] + config.dice * means["dice"] + iou_weight * means["iou"]
    return total + config.hq * means.get("hq", 0.0), means


def iou_weight_at(step: Any, config: LossConfig) -> Float[Array, ""]:
    """Return the weight of the score's term: rising from 0 over `config.iou_warmup` steps."""
    return config.iou * jnp.minimum(1.0, (step + 1) / max(1, config.iou_warmup))


def _total(x: Float[AnyArray, "*batch my mx"]) -> Float[Array, "*batch"]:
    return jnp.sum(x, (-2, -1))


def _take(x: Float[Array, "*batch m"], index: Any) -> Float[Array, "*batch"]:
    return jnp.take_along_axis(x, index[..., None], -1)[..., 0]
