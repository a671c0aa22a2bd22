"""Every object of an image without a prompt, as one pure function."""

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from sam_jax.automatic.candidates import (
    Place,
    decode_again,
    find_masks,
    prepared,
    thresholds_of,
)
from sam_jax.automatic.config import AutomaticConfig, check_decoder
from sam_jax.automatic.grid import point_grids
from sam_jax.batch.decode import Images
from sam_jax.batch.select import masks_selected
from sam_jax.decoder.model import Sam, Variables
from sam_jax.images.resize import TracedSize
from sam_jax.prompts import AnyArray

MAX_MASKS = 256
"""How many masks `generate_masks` has room for by default."""


@struct.dataclass
class GeneratedMasks:
    """Masks of an image, in falling order of their scores: `n` is `max_masks`, and `*batch` is there under `vmap`.

    Attributes:
      logits: low-res logits.
      boxes: first and last pixels (x0, y0, x1, y1) at the original size.
      iou: predicted IoU.
      stability: stability score.
      area: pixels at the original size.
      points: (x, y) that each mask was asked with, in the input frame.
      valid: False behind the last mask.
      count: how many masks there were, also where they are more than `max_masks`.
    """

    logits: Float[Array, "*batch n my mx"]
    boxes: Float[Array, "*batch n 4"]
    iou: Float[Array, "*batch n"]
    stability: Float[Array, "*batch n"]
    area: Int[Array, "*batch n"]
    points: Float[Array, "*batch n 2"]
    valid: Bool[Array, "*batch n"]
    count: Int[Array, "*batch"]


def generate_masks(
    model: Sam,
    variables: Variables,
    image: Images,
    *,
    input_size: TracedSize,
    original_size: TracedSize,
    points: Float[AnyArray, "p 2"] | None = None,
    settings: AutomaticConfig | None = None,
) -> GeneratedMasks:
    """Return the masks of everything in one image: those that `Predictor.generate` returns for an image without crops.

    All of it runs on the device, in a program for each number of points, not for each size of image: sizes may be
    traced. Under `vmap`, it takes several images. Each point has three masks to choose from, and with SAM-HQ one, as in
    the families' own generators.

    Args:
      model: the decoder, static.
      variables: its variables.
      image: the image embedding [h, w, c], `ImageFeatures` where the decoder takes more maps, or what `prepare_image`
        made of either.
      input_size: height and width of the resized image in the input frame, before padding.
      original_size: height and width of the image.
      points: where to ask: (x, y) in the input frame; by default the grid of the settings.
      settings: `crop_n_layers`, `tile`, `min_mask_region_area` and `output_mode` are for `Predictor.generate` and not
        used here; `max_masks` is the size of the result, 256 by default.

    Returns:
      Masks, of which `valid` count. `resize_masks` or `binary_masks` bring them to the original size.

    Raises:
      ValueError: for `use_m2m` where the decoder takes no mask prompts.
    """
    settings = settings or AutomaticConfig()
    check_decoder(model.config, settings)
    height, width = (jnp.asarray(x, jnp.int32) for x in original_size)
    rows, columns = (jnp.asarray(x, jnp.int32) for x in input_size)
    if points is None:
        points = point_grids(settings)[0].astype("float32") * jnp.stack([columns, rows]).astype(jnp.float32)
    points = jnp.asarray(points, jnp.float32)
    zero = jnp.zeros((), jnp.int32)
    place = Place(jnp.stack([rows, columns]), jnp.stack([zero, zero, width, height]), jnp.stack([height, width]))
    state = prepared(model, variables, image)
    number, batch = len(points), settings.points_per_batch
    thresholds = thresholds_of(settings)
    found, kept, count = find_masks(model, variables, state, points, number, place, thresholds, batch, settings.use_m2m)
    room = settings.max_masks or MAX_MASKS
    kept = jnp.pad(kept, (0, max(0, room - len(kept))))[:room]
    valid = jnp.arange(room) < count
    boxes, iou, stability, area = (x[kept] for x in (found.boxes, found.iou, found.stability, found.area))
    k = masks_selected(model.config)
    asked = points[kept // k]
    logits = decode_again(model, variables, state, asked, kept % k, count, settings.use_m2m)
    filled = jax.tree.map(
        lambda x: jnp.where(valid.reshape(-1, *[1] * (x.ndim - 1)), x, 0), (logits, boxes, iou, stability, area, asked)
    )
    return GeneratedMasks(*filled, valid=valid, count=count)
