"""The masks of a grid of points on one image that pass the filters, as numbers: no mask is kept.

Each point has the masks that its family's own generator takes, those of `select_masks`: three of SAM and SAM 2, and of
SAM-HQ the best of three with the HQ mask added, one mask
(`segment_anything_hq/automatic_mask_generator.py`, `sam2/automatic_mask_generator.py`).
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from sam_jax.automatic.config import AutomaticConfig
from sam_jax.automatic.nms import box_nms
from sam_jax.automatic.statistics import count_pixels
from sam_jax.batch.decode import CHUNK, CPU_CHUNK, Images, decode_batch
from sam_jax.batch.interactive import handed_back
from sam_jax.batch.select import select_masks
from sam_jax.decoder.model import Sam, Variables
from sam_jax.fast.low_rank import ImageState, prepare_image
from sam_jax.fast.platforms import on_cpu
from sam_jax.images.resize import mask_sizes
from sam_jax.prompts import AnyArray, Prompts

EDGE = 20
"""Pixels within which a box counts as at an edge."""

CPU_COUNTED, COUNTED = 16, 64
"""How many masks are counted at once: a CPU's caches hold few."""


@struct.dataclass
class Place:
    """Where a crop lies, in pixels; each may be traced, so that a new image is no new program.

    Attributes:
      input_size: height and width of the resized crop in the input frame, before padding.
      crop: its box (x0, y0, x1, y1) in the image, whose edges x1 and y1 are exclusive.
      image: height and width of the image.
    """

    input_size: Int[AnyArray, "2"]
    crop: Int[AnyArray, "4"]
    image: Int[AnyArray, "2"]

    @property
    def size(self) -> tuple[Array, Array]:
        """Height and width of the crop."""
        return self.crop[3] - self.crop[1], self.crop[2] - self.crop[0]


@struct.dataclass
class Thresholds:
    """The settings of the filters, as numbers that may be traced; those of `AutomaticConfig`."""

    pred_iou_thresh: float | Float[AnyArray, ""]
    stability_score_thresh: float | Float[AnyArray, ""]
    stability_score_offset: float | Float[AnyArray, ""]
    box_nms_thresh: float | Float[AnyArray, ""]


def thresholds_of(settings: AutomaticConfig) -> Thresholds:
    """Return the settings of the filters."""
    return Thresholds(
        float(settings.pred_iou_thresh),
        float(settings.stability_score_thresh),
        float(settings.stability_score_offset),
        float(settings.box_nms_thresh),
    )


@struct.dataclass
class Candidates:
    """Masks of points, in the order of the points: `*n` is [mask], or [point, mask].

    Attributes:
      boxes: first and last pixels (x0, y0, x1, y1), in pixels of the image.
      iou: predicted IoU.
      stability: stability score.
      area: pixels.
      valid: whether the mask passed all filters; elsewhere the other numbers say nothing.
    """

    boxes: Float[AnyArray, "*n 4"]
    iou: Float[AnyArray, "*n"]
    stability: Float[AnyArray, "*n"]
    area: Int[AnyArray, "*n"]
    valid: Bool[AnyArray, "*n"]


def find_masks(
    model: Sam,
    variables: Variables,
    state: ImageState,
    points: Float[AnyArray, "n 2"],
    number: int | Int[AnyArray, ""],
    place: Place,
    thresholds: Thresholds,
    batch: int,
    use_m2m: bool = False,
) -> tuple[Candidates, Int[Array, " m"], Int[Array, ""]]:
    """Decode the points, `batch` after another, and filter their masks.

    Args:
      model: the decoder.
      variables: its variables.
      state: what `prepare_image` made of the crop.
      points: (x, y) in the input frame.
      number: how many of the points count, the first ones.
      place: where the crop lies.
      thresholds: of the filters.
      batch: points whose low-res logits exist at once.
      use_m2m: as in `AutomaticConfig`.

    Returns:
      All masks, and what `box_nms` returns for those that passed the other filters.
    """
    function = functools.partial(filtered_masks, model, variables, state, place, thresholds, use_m2m)
    found = map_first(function, points, number, batch)
    found = dataclasses.replace(found, valid=found.valid & (jnp.arange(len(points)) < number)[:, None])
    found = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), found)
    return found, *box_nms(found.boxes, found.iou, found.valid, thresholds.box_nms_thresh)


def decode_again(
    model: Sam,
    variables: Variables,
    state: ImageState,
    points: Float[Array, "n 2"],
    masks: Int[Array, " n"],
    number: int | Int[Array, ""],
    use_m2m: bool = False,
) -> Float[Array, "n my mx"]:
    """Return the low-res logits of one mask of each point: the first `number` of them, and zeros.

    That the few masks of the end are decoded a second time is what makes memory independent of the grid.
    """

    def decode(inputs: tuple[Array, Array]) -> Array:
        points, masks = inputs
        logits, _ = _decode(model, variables, state, points, use_m2m)
        return jnp.take_along_axis(logits, masks[:, None, None, None], axis=1)[:, 0]

    run = functools.partial(map_first, decode)
    few, many = functools.partial(run, size=CPU_CHUNK), functools.partial(run, size=CHUNK)
    return on_cpu(few, many, (points, masks), number)


def prepared(model: Sam, variables: Variables, image: Images) -> ImageState:
    """Return the state of an image that may be one already."""
    return image if isinstance(image, ImageState) else prepare_image(model, variables, jax.tree.map(jnp.asarray, image))


def map_first(function: Callable[[Any], Any], inputs: Any, number: int | Int[AnyArray, ""], size: int) -> Any:
    """Map a function of a batch over groups of `size` entries of the leading axis, but only the first `number` entries.

    The results of other groups are zeros.
    """
    total = len(jax.tree.leaves(inputs)[0])
    size = min(size, total)
    groups = -(-total // size)
    inputs = jax.tree.map(lambda x: jnp.pad(x, [(0, groups * size - total)] + [(0, 0)] * (x.ndim - 1)), inputs)

    def run(i: Array, out: Any) -> Any:
        group = jax.tree.map(lambda x: lax.dynamic_slice_in_dim(x, i * size, size), inputs)
        return jax.tree.map(lambda x, new: lax.dynamic_update_slice_in_dim(x, new, i * size, 0), out, function(group))

    shapes = jax.eval_shape(function, jax.tree.map(lambda x: x[:size], inputs))
    zeros = jax.tree.map(lambda x: jnp.zeros((groups * size, *x.shape[1:]), x.dtype), shapes)
    out = lax.fori_loop(0, -(-jnp.minimum(number, total) // size), run, zeros)
    return jax.tree.map(lambda x: x[:total], out)


def _decode(
    model: Sam, variables: Variables, state: ImageState, points: Float[Array, "n 2"], use_m2m: bool
) -> tuple[Float[Array, "n k my mx"], Float[Array, "n k"]]:
    """The masks and scores of each point, which with `use_m2m` are each asked for again with the mask itself."""
    logits, iou = _ask(model, variables, state, points, None)
    if not use_m2m:
        return logits, iou
    n, k = iou.shape
    given = handed_back(model.config, logits.reshape(n * k, *logits.shape[2:]))
    refined, scores = _ask(model, variables, state, jnp.repeat(points, k, 0), given)
    return refined.reshape(logits.shape), scores.reshape(n, k)


def _ask(
    model: Sam,
    variables: Variables,
    state: ImageState,
    points: Float[Array, "n 2"],
    masks: Float[AnyArray, "n my mx"] | None,
) -> tuple[Float[Array, "n k my mx"], Float[Array, "n k"]]:
    """The masks of a click each; with mask prompts, the one mask for a clear prompt."""
    labels = jnp.ones((len(points), 1), jnp.int32)
    prompts = Prompts.build(points=points[:, None], labels=labels, masks=masks, images=False)
    out = decode_batch(model, variables, state, prompts)
    logits, iou = select_masks(out, multimask=masks is None)
    return jnp.asarray(logits), jnp.asarray(iou)


def filtered_masks(
    model: Sam,
    variables: Variables,
    state: ImageState,
    place: Place,
    thresholds: Thresholds,
    use_m2m: bool,
    points: Float[Array, "n 2"],
) -> Candidates:
    """Return the masks of each point as [point, mask, ...], with every filter but that of overlaps."""
    logits, iou = _decode(model, variables, state, points, use_m2m)
    shape = iou.shape
    logits, iou = logits.reshape(-1, *logits.shape[2:]), iou.reshape(-1).astype(jnp.float32)
    wanted = _passes(iou > thresholds.pred_iou_thresh, thresholds.pred_iou_thresh)
    order = _first(wanted)
    offset = thresholds.stability_score_offset

    def count(index: Int[Array, " k"]) -> Any:
        sizes: Any = mask_sizes(model.config, tuple(place.input_size)) | {"original_size": place.size}
        return count_pixels(jnp.take(logits, index, 0, mode="clip"), offset=offset, **sizes)

    run = functools.partial(map_first, count)
    few, many = functools.partial(run, size=CPU_COUNTED), functools.partial(run, size=COUNTED)
    counted = on_cpu(few, many, order, wanted.sum())
    counted = jax.tree.map(lambda x: jnp.zeros_like(x).at[order].set(x, mode="drop"), counted)
    # The official code divides by 0 for a mask that is empty at every threshold. 0 passes as few thresholds as NaN.
    stability = counted.inner.astype(jnp.float32) / jnp.maximum(counted.outer, 1).astype(jnp.float32)
    boxes = (counted.boxes + jnp.tile(place.crop[:2], 2)).astype(jnp.float32)
    valid = wanted & ~_is_cut(boxes, place)
    valid &= _passes(stability >= thresholds.stability_score_thresh, thresholds.stability_score_thresh)
    found = Candidates(boxes, iou, stability, counted.area, valid)
    return jax.tree.map(lambda x: x.reshape(*shape, *x.shape[1:]), found)


def _first(wanted: Bool[Array, " n"]) -> Int[Array, " n"]:
    """The indices of wanted entries, then n."""
    number = len(wanted)
    place = jnp.where(wanted, jnp.cumsum(wanted) - 1, number)
    return jnp.full(number, number).at[place].set(jnp.arange(number), mode="drop")


def _passes(passed: Bool[Array, " n"], threshold: float | Float[AnyArray, ""]) -> Bool[Array, " n"]:
    """A threshold of 0 or less turns its filter off."""
    return passed | (jnp.asarray(threshold) <= 0)


def _is_cut(boxes: Float[Array, "n 4"], place: Place) -> Bool[Array, " n"]:
    """Whether a box comes near an edge of the crop that is no edge of the image (`is_box_near_crop_edge`)."""
    height, width = place.image
    image = jnp.stack([jnp.zeros_like(width), jnp.zeros_like(height), width, height])
    near_crop, near_image = (jnp.abs(boxes - edges.astype(jnp.float32)) <= EDGE for edges in (place.crop, image))
    return (near_crop & ~near_image).any(-1)
