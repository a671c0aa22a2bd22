"""How good masks and scores are."""

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from sam_jax.prompts import AnyArray

SIZE_CLASSES = ("small", "medium", "large")
COCO_LIMITS = (32**2, 96**2)
"""COCO's borders between small, medium and large objects, in pixels of the original image."""


def mask_iou(
    masks: Bool[AnyArray, "*batch height width"],
    targets: Bool[AnyArray, "*#batch height width"],
    inside: Bool[AnyArray, "*#batch height width"] | None = None,
) -> Float[Array, "*batch"]:
    """Return the intersection over the union of masks; 1 where both are empty.

    Args:
      masks: predicted.
      targets: true; batch axes broadcast.
      inside: False for pixels that do not count, such as the image's padding.
    """
    both, either = jnp.logical_and(masks, targets), jnp.logical_or(masks, targets)
    if inside is not None:
        both, either = both & inside, either & inside
    # int32 counts are exact for any image, float32 ones are not beyond 4096 x 4096.
    shared, union = both.sum((-2, -1)), either.sum((-2, -1))
    return jnp.where(union > 0, shared / jnp.maximum(union, 1), 1.0)


def size_classes(areas: Int[np.ndarray, " n"], limits: tuple[int, int] = COCO_LIMITS) -> Int[np.ndarray, " n"]:
    """Return the place in `SIZE_CLASSES` of objects of the given areas: below the first limit, up to the second.

    Args:
      areas: in pixels.
      limits: the least area of a medium object, and of a large one.
    """
    return np.digitize(areas, limits)


@dataclasses.dataclass(frozen=True)
class Calibration:
    """How well predicted IoUs tell the true ones.

    Attributes:
      error: mean absolute difference.
      edges: of the bins of the predicted IoU, ascending; the first and the last bin also take what is outside.
      counts: masks in each bin.
      predicted: mean predicted IoU in each bin; None for an empty one.
      true: mean true IoU in each bin; None for an empty one.
    """

    error: float
    edges: tuple[float, ...]
    counts: tuple[int, ...]
    predicted: tuple[float | None, ...]
    true: tuple[float | None, ...]


def calibration(predicted: Float[np.ndarray, " n"], true: Float[np.ndarray, " n"], bins: int = 10) -> Calibration:
    """Return how well predicted IoUs tell the true ones.

    Args:
      predicted: IoU scores; they can be outside of 0 to 1.
      true: the IoUs of the same masks.
      bins: of equal width, from 0 to 1.
    """
    if len(predicted) != len(true) or not len(true):
        raise ValueError(f"predicted and true need as many entries, at least one; got {len(predicted)}, {len(true)}.")
    edges = np.linspace(0, 1, bins + 1)
    members = [np.digitize(predicted, edges[1:-1]) == k for k in range(bins)]
    return Calibration(
        error=float(np.abs(predicted - true).mean()),
        edges=tuple(edges.tolist()),
        counts=tuple(int(member.sum()) for member in members),
        predicted=tuple(_mean(predicted[member]) for member in members),
        true=tuple(_mean(true[member]) for member in members),
    )


@dataclasses.dataclass(frozen=True)
class ClicksNeeded:
    """The number of clicks (NoC) to reach an IoU.

    Attributes:
      mean: over all objects; one that never gets there counts with as many clicks as it was given.
      failures: objects that never get there (NoF).
    """

    mean: float
    failures: int


def clicks_needed(ious: Sequence[Sequence[float]], threshold: float, cap: int) -> ClicksNeeded:
    """Return how many clicks it takes to reach an IoU of `threshold`.

    Args:
      ious: for each object, the IoU after 1, 2, ... clicks; it may end early.
      threshold: IoU to reach.
      cap: clicks that a failure counts with.
    """
    first = [next((k for k, iou in enumerate(row[:cap], 1) if iou >= threshold), None) for row in ious]
    return ClicksNeeded(float(np.mean([cap if k is None else k for k in first])), first.count(None))


def _mean(values: Float[np.ndarray, " n"]) -> float | None:
    return float(values.mean()) if len(values) else None
