"""Click after click: each prediction's best logits are the next mask prompt.

The state is a `Prompts` with empty slots for the clicks to come, so everything stays one shape: one compilation, and a
whole session is a `lax.scan`. It is the same for one object, for many, and for many images.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Float, Int

from sam_jax.batch.decode import Images
from sam_jax.batch.predict import predict_masks
from sam_jax.batch.select import best_masks
from sam_jax.config import SamConfig
from sam_jax.decoder.model import MaskPrediction, Sam, Variables
from sam_jax.prompts import EMPTY, NOT_A_POINT, AnyArray, Prompts

LARGEST_LOGIT = 32
"""What SAM 2 clamps the logits to that it hands back."""


def start_clicks(
    config: SamConfig, batch: tuple[int, ...], clicks: int, boxes: Float[AnyArray, "*batch 4"] | None = None
) -> Prompts:
    """Return the state before the first click: room for `clicks` clicks for each prompt set, no mask yet.

    EfficientSAM's decoder takes no masks, so that its state has room for none.

    Args:
      config: settings of the decoder.
      batch: number of objects, `(prompt sets,)` or `(images, prompt sets)`.
      clicks: how many clicks each object may get.
      boxes: a box (x0, y0, x1, y1) to begin each object with.
    """
    if boxes is None:
        # What the official rule appends to clicks without a box.
        coordinates, labels = jnp.zeros((*batch, 1, 2), jnp.float32), jnp.full((*batch, 1), NOT_A_POINT, jnp.int32)
    else:
        given = Prompts.build(boxes=jnp.asarray(boxes), images=len(batch) == 2)
        coordinates, labels = given.coordinates, given.labels
    return Prompts(
        coordinates=jnp.concatenate([coordinates, jnp.zeros((*batch, clicks, 2), jnp.float32)], -2),
        labels=jnp.concatenate([labels, jnp.full((*batch, clicks), EMPTY, jnp.int32)], -1),
        masks=None if config.efficient_sam else jnp.zeros((*batch, *config.mask_size), jnp.float32),
        has_mask=None if config.efficient_sam else jnp.zeros(batch, bool),
        valid=jnp.ones(batch, bool),
    )


def click(
    model: Sam,
    variables: Variables,
    embeddings: Images,
    state: Prompts,
    points: Float[AnyArray, "*batch 2"],
    labels: Int[AnyArray, "*batch"],
) -> tuple[MaskPrediction, Prompts]:
    """Add one click to each object, predict, and return the prediction and the next state.

    The next state's mask prompt is each object's best mask (`best_masks`), where the decoder takes masks.

    Args:
      model: the decoder, static.
      variables: its variables.
      embeddings: as in `predict_masks`.
      state: what `start_clicks` or the last `click` returned.
      points: a click (x, y) for each object, in the input frame.
      labels: 1 foreground, 0 background, -2 for an object that gets no click this time.

    Raises:
      ValueError: where a click has no empty slot left (not seen inside `jit`).
    """
    points, labels = jnp.asarray(points, jnp.float32), jnp.asarray(labels, jnp.int32)
    empty = state.labels == EMPTY
    if not isinstance(empty, Tracer) and not (np.asarray(empty).any(-1) | np.asarray(labels == EMPTY)).all():
        raise ValueError(f"No empty slot is left for another click; start_clicks made {state.labels.shape[-1]} slots.")
    slot = jax.nn.one_hot(jnp.argmax(empty, -1), empty.shape[-1], dtype=bool)
    slot = slot & (labels != EMPTY)[..., None]
    state = dataclasses.replace(
        state,
        coordinates=jnp.where(slot[..., None], points[..., None, :], state.coordinates),
        labels=jnp.where(slot, labels[..., None], state.labels),
    )
    prediction = predict_masks(model, variables, embeddings, state)
    if state.masks is None:
        return prediction, state
    logits = handed_back(model.config, best_masks(prediction, state)[0])
    return prediction, dataclasses.replace(state, masks=logits.astype(jnp.float32), has_mask=jnp.ones_like(state.valid))


def handed_back(config: SamConfig, logits: Float[AnyArray, "*batch my mx"]) -> Float[AnyArray, "*batch my mx"]:
    """Return low-res logits as they may be a mask prompt: SAM 2 clamps them (`sam2/sam2_image_predictor.py`)."""
    return logits.clip(-LARGEST_LOGIT, LARGEST_LOGIT) if config.postprocessing == "sam2" else logits
