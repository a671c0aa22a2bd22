"""Which masks to use: by rule, by score, by stability, without near-copies.

The official code is `segment_anything/utils/amg.py` and `utils/onnx.py`.
"""

import dataclasses
from types import ModuleType
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from sam_jax.config import SamConfig
from sam_jax.decoder.model import MaskPrediction
from sam_jax.errors import describe
from sam_jax.prompts import BACKGROUND, EMPTY, AnyArray, Prompts

Hq = Literal["add", "only", "none"]
"""What becomes of SAM-HQ's mask: it is added to a mask of the others, stands alone, or is left out."""


def select_masks(
    prediction: MaskPrediction, multimask: bool = True, *, hq: Hq = "add"
) -> tuple[Float[AnyArray, "*batch k my mx"], Float[AnyArray, "*batch k"]]:
    """Return logits and scores of the multimask outputs (masks 1, 2, 3), or of the mask for a clear prompt alone.

    The mask for a clear prompt is mask 0; in SAM 2 it is the best multimask output where mask 0 is not stable. SAM-HQ
    returns one mask in any case: its own, added to the best multimask output or to mask 0, with that one's score
    (`MaskDecoderHQ.forward` in `segment_anything_hq/modeling/mask_decoder_hq.py`).

    Args:
      prediction: what `predict_masks` returned.
      multimask: True for one ambiguous prompt such as a click, False for several prompts or a box.
      hq: what becomes of SAM-HQ's mask; of other models' predictions, nothing.

    Raises:
      ValueError: if `hq` is none of these.
    """
    if hq not in get_args(Hq):
        raise ValueError(f"hq must be one of {', '.join(get_args(Hq))}, got {describe(hq)}.")
    of_hq = None if hq == "none" else prediction.hq
    if multimask and of_hq is None:
        return prediction.logits[..., 1:, :, :], prediction.iou[..., 1:]
    if of_hq is None and prediction.single is None:
        return prediction.logits[..., :1, :, :], prediction.iou[..., :1]
    index = _best_of_several(prediction) if multimask else _single(prediction)
    logits, iou = take_masks(prediction, index)
    if of_hq is not None:
        logits = of_hq if hq == "only" else logits + of_hq
    return logits[..., None, :, :], iou[..., None]


def masks_selected(config: SamConfig, multimask: bool = True) -> int:
    """Return how many masks of a prompt set `select_masks` returns."""
    return config.multimask_outputs if multimask and not config.early_width else 1


def _best_of_several(prediction: MaskPrediction) -> Int[AnyArray, "*batch"]:
    """The index of the best-scored multimask output; of equal ones the first."""
    xp = _numpy_of(prediction)
    return xp.asarray(1 + prediction.iou[..., 1:].argmax(-1), np.int32)


def _single(prediction: MaskPrediction) -> Int[AnyArray, "*batch"]:
    """The index of the mask for a clear prompt."""
    if prediction.single is not None:
        return _numpy_of(prediction).asarray(prediction.single)
    return _numpy_of(prediction).zeros(prediction.iou.shape[:-1], np.int32)


def _numpy_of(prediction: MaskPrediction) -> ModuleType:
    """NumPy for a prediction on the host: on the device, each step would be a program to compile."""
    return np if isinstance(prediction.iou, np.ndarray) else jnp


def best_masks(
    prediction: MaskPrediction, prompts: Prompts
) -> tuple[Float[AnyArray, "*batch my mx"], Float[AnyArray, "*batch"]]:
    """Return one mask and its score for each prompt set: the best-scored multimask output, or where the prompt is clear
    the mask for that.

    SAM-HQ's mask is added to it. A prompt is clear from three clicks and box corners on (`SamOnnxModel.select_masks`).
    Empty slots and "not a point" tokens are not counted, so the choice does not depend on padding.

    Args:
      prediction: what `predict_masks` or a compiled decoder returned, padding included.
      prompts: the prompts that it was made from.

    Raises:
      ValueError: if the prediction is of other prompts.
    """
    labels = _padded_to(prompts.labels, prediction.iou.shape[:-1])
    clear = (labels >= BACKGROUND).sum(-1) >= 3
    logits, iou = take_masks(prediction, jnp.where(clear, _single(prediction), _best_of_several(prediction)))
    return logits if prediction.hq is None else logits + prediction.hq, iou


def best_alone(prediction: MaskPrediction, prompts: Prompts) -> MaskPrediction:
    """Return a prediction of one mask for each prompt set: that of `best_masks`."""
    logits, iou = best_masks(prediction, prompts)
    return dataclasses.replace(prediction, logits=logits[..., None, :, :], iou=iou[..., None], hq=None, single=None)


def _padded_to(labels: Int[AnyArray, "*b n"], batch: tuple[int, ...]) -> Int[AnyArray, "*batch n"]:
    """Labels for the prompt sets of a prediction, which may have padding behind those that were asked for."""
    asked = labels.shape[:-1]
    if len(asked) != len(batch) or any(few > many for few, many in zip(asked, batch, strict=True)):
        raise ValueError(
            f"The prediction must be of these prompts, with or without padding; got {list(batch)} prompt sets for "
            f"prompts of {list(asked)}."
        )
    if asked == batch:
        return labels
    xp = np if isinstance(labels, np.ndarray) else jnp
    more = [(0, many - few) for few, many in zip(asked, batch, strict=True)]
    return xp.pad(labels, [*more, (0, 0)], constant_values=EMPTY)


def take_masks(
    prediction: MaskPrediction, index: Int[AnyArray, "*batch"]
) -> tuple[Float[AnyArray, "*batch my mx"], Float[AnyArray, "*batch"]]:
    """Return the mask and the score with the given index (0 to m - 1) of each prompt set."""
    xp: Any = np if isinstance(index, np.ndarray) and isinstance(prediction.iou, np.ndarray) else jnp
    logits = xp.take_along_axis(prediction.logits, index[..., None, None, None], axis=-3)
    return logits[..., 0, :, :], xp.take_along_axis(prediction.iou, index[..., None], axis=-1)[..., 0]


def mask_boxes(masks: Bool[Array, "*batch height width"]) -> Float[Array, "*batch 4"]:
    """Return the boxes (x0, y0, x1, y1) of masks, from the first to the last pixel; zeros for an empty mask."""
    rows, columns = masks.any(-1), masks.any(-2)

    def ends(used: Bool[Array, "*batch length"]) -> tuple[Array, Array]:
        return jnp.argmax(used, -1), used.shape[-1] - 1 - jnp.argmax(used[..., ::-1], -1)

    (y0, y1), (x0, x1) = ends(rows), ends(columns)
    boxes = jnp.stack([x0, y0, x1, y1], -1).astype(jnp.float32)
    return jnp.where(rows.any(-1)[..., None], boxes, 0.0)


def mask_nms(
    masks: Bool[Array, "k height width"], scores: Float[Array, " k"], iou_threshold: float = 0.7
) -> Bool[Array, " k"]:
    """Return which masks to keep: each one unless it overlaps a better-scored kept one by more than `iou_threshold`.

    Overlap is the IoU of the masks themselves, not of their boxes. Masks whose score is minus infinity (padding) are
    not kept.

    Args:
      masks: binary masks; low-res ones are usually enough.
      scores: a score each; of equal ones the first wins.
      iou_threshold: largest IoU of two kept masks.
    """
    order = jnp.argsort(-scores, stable=True)
    flat = masks.reshape(masks.shape[0], -1)[order].astype(jnp.float32)
    # Counts up to 2^24 are exact in float32, the size of a 4096 x 4096 mask.
    shared = jnp.matmul(flat, flat.T, precision=jax.lax.Precision.HIGHEST)
    area = jnp.diagonal(shared)
    iou = shared / jnp.maximum(area[:, None] + area[None] - shared, 1)

    def visit(i: Array, keep: Bool[Array, " k"]) -> Bool[Array, " k"]:
        earlier = jnp.arange(keep.shape[0]) < i
        return keep.at[i].set(keep[i] & ~(keep & earlier & (iou[i] > iou_threshold)).any())

    kept = jax.lax.fori_loop(0, len(scores), visit, jnp.isfinite(scores[order]))
    return jnp.zeros_like(kept).at[order].set(kept)
