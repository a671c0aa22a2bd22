"""Every object of an image at its own size, as the official generator's records."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

from sam_jax.automatic.candidates import (
    Candidates,
    Place,
    decode_again,
    filtered_masks,
    prepared,
    thresholds_of,
)
from sam_jax.automatic.config import AutomaticConfig, check_decoder
from sam_jax.automatic.grid import Crop, check_region, in_region, make_crops, point_grids
from sam_jax.automatic.nms import box_nms
from sam_jax.automatic.regions import without_small_regions
from sam_jax.batch.select import masks_selected
from sam_jax.decoder.model import Sam, Variables
from sam_jax.fast.low_rank import ImageState
from sam_jax.images.full_size import binary_masks
from sam_jax.images.pixels import EncodedImage
from sam_jax.images.resize import mask_sizes
from sam_jax.images.run_lengths import coco_run_lengths, run_lengths
from sam_jax.images.size import Size
from sam_jax.prompts import Ragged

Progress = Callable[[float], None]
"""Is told again and again which share of the work is done, from 0 to 1; what it raises ends the work."""

Record = dict[str, Any]
"""What the official generator returns for a mask: `segmentation`, `area`, `bbox` (x, y, width, height),
`predicted_iou`, `point_coords`, `stability_score`, `crop_box` (x, y, width, height)."""

SEARCHING = 0.8
"""The share of the work, about, that is done when the masks are known that stay."""

FULL_SIZE = 4
"""Masks that exist as pixels beside the result."""


_prepare = jax.jit(prepared, static_argnames="model")
_filter = jax.jit(filtered_masks, static_argnames=("model", "use_m2m"))
_decode_again = jax.jit(decode_again, static_argnames=("model", "use_m2m"))


class _Part(NamedTuple):
    """A part of the work, which tells its own share as one of the whole."""

    progress: Progress
    start: float
    end: float

    def __call__(self, share: float) -> None:
        self.progress(self.start + share * (self.end - self.start))


class _Found(NamedTuple):
    """What stays of a crop's masks, in falling order of their scores."""

    crop: Crop
    encoded: EncodedImage
    points: Float[np.ndarray, "n 2"]  # in the crop
    masks: Int[np.ndarray, " n"]  # of those of each point
    candidates: Candidates


class _Mask(NamedTuple):
    """A mask that passed, and where it is from."""

    found: _Found
    place: int  # in its arrays

    @property
    def box(self) -> Float[np.ndarray, "4"]:
        boxes: Any = self.found.candidates.boxes
        return boxes[self.place]


def generate_records(
    model: Sam,
    variables: Variables,
    size: Size,
    encode: Callable[[Crop], EncodedImage],
    settings: AutomaticConfig,
    region: object = None,
    progress: Progress = lambda share: None,
) -> list[Record]:
    """Return a record of every object of an image, as `Predictor.generate` does.

    Args:
      model: the decoder.
      variables: its variables.
      size: height and width of the image.
      encode: what returns a crop of it, encoded; the first is the whole image.
      settings: how masks are found and filtered.
      region: where the points must lie.
      progress: is told how far it is.
    """
    check_decoder(model.config, settings)
    region, grids = check_region(region, size), point_grids(settings)
    crops = make_crops(size, settings.crop_n_layers, settings.crop_overlap_ratio, settings.tile)
    found = []
    for i, crop in enumerate(crops):
        part = _Part(progress, SEARCHING * i / len(crops), SEARCHING * (i + 1) / len(crops))
        found.append(_search(model, variables, crop, encode(crop), size, grids[crop.layer], settings, region, part))
    masks = [_Mask(one, index) for one in found for index in range(len(one.points))]
    if len(crops) > 1:
        smallness = [1 / math.prod(mask.found.crop.size) for mask in masks]
        masks = [masks[i] for i in _kept([mask.box for mask in masks], smallness, settings.crop_nms_thresh)]
    if not settings.min_mask_region_area:
        masks = masks[: settings.max_masks]
    records = []
    for mask, pixels in _pixels(model, variables, masks, size, settings):
        records.append(_record(mask, pixels, settings))
        progress(SEARCHING + (1 - SEARCHING) * len(records) / len(masks))
    if settings.min_mask_region_area:
        boxes = [_corners(record["bbox"]) for record, _ in records]
        unchanged = [float(not changed) for _, changed in records]
        threshold = max(settings.box_nms_thresh, settings.crop_nms_thresh)
        records = [records[i] for i in _kept(boxes, unchanged, threshold)]
    return [record for record, _ in records[: settings.max_masks]]


def _search(
    model: Sam,
    variables: Variables,
    crop: Crop,
    encoded: EncodedImage,
    size: Size,
    grid: Float[np.ndarray, "n 2"],
    settings: AutomaticConfig,
    region: Any,
    progress: Progress,
) -> _Found:
    """Find the masks of a crop that stay."""
    height, width = crop.size
    points = grid * np.array([width, height])
    points = points[in_region(points + np.array([crop.x0, crop.y0]), region)]
    rows, columns = encoded.input_size
    number, batch = len(points), min(settings.points_per_batch, len(grid))
    groups = max(1, -(-number // batch))
    asked = np.zeros((groups * batch, 2), np.float32)
    asked[:number] = points * np.array([columns / width, rows / height])
    place = Place(*(np.array(x, np.int32) for x in (encoded.input_size, crop[:4], size)))
    state = _prepare(model, variables, encoded.embedding)
    arguments = state, place, thresholds_of(settings), settings.use_m2m
    groups_found = []
    for i, group in enumerate(np.split(asked, groups)):
        groups_found.append(jax.device_get(_filter(model, variables, *arguments, group)))
        progress((i + 1) / groups)
    k = masks_selected(model.config)
    candidates = jax.tree.map(lambda *x: _joined(x)[: number * k], *groups_found)
    passed = np.flatnonzero(candidates.valid)
    kept = passed[_kept(candidates.boxes[passed], candidates.iou[passed], settings.box_nms_thresh)]
    return _Found(crop, encoded, points[kept // k], kept % k, jax.tree.map(lambda x: x[kept], candidates))


def _joined(groups: Sequence[Any]) -> Any:
    """One array [mask, ...] of several [point, mask, ...]."""
    together = np.concatenate(groups)
    return together.reshape(-1, *together.shape[2:])


def _kept(boxes: Ragged, scores: Ragged, threshold: float) -> Int[np.ndarray, " n"]:
    """`box_nms` for any number of boxes, by programs of few sizes."""
    number = len(boxes)
    room = 1 << max(8, number.bit_length())
    padded, values = np.zeros((room, 4), np.float32), np.zeros(room, np.float32)
    padded[:number], values[:number] = np.reshape(boxes, (-1, 4)), scores
    kept, count = jax.device_get(box_nms(padded, values, np.arange(room) < number, np.float32(threshold)))
    return kept[:count]


def _pixels(
    model: Sam, variables: Variables, masks: Sequence[_Mask], size: Size, settings: AutomaticConfig
) -> Iterator[tuple[_Mask, Bool[np.ndarray, "height width"]]]:
    """Yield the pixels of each mask in the image; a few exist at a time, and low-res logits of one batch."""
    for _, of_crop in itertools.groupby(masks, key=lambda mask: mask.found.crop):
        several = list(of_crop)
        state = _prepare(model, variables, several[0].found.encoded.embedding)
        for start in range(0, len(several), settings.points_per_batch):
            group = several[start : start + settings.points_per_batch]
            yield from zip(group, _pixels_of(model, variables, state, group, size, settings), strict=True)


def _pixels_of(
    model: Sam, variables: Variables, state: ImageState, masks: Sequence[_Mask], size: Size, settings: AutomaticConfig
) -> Iterator[Bool[np.ndarray, "height width"]]:
    """Decode masks of one crop again, and yield their pixels in the image."""
    found = masks[0].found
    crop, encoded = found.crop, found.encoded
    rows, columns = encoded.input_size
    scale = np.array([columns / crop.size[1], rows / crop.size[0]])
    index = np.zeros(settings.points_per_batch, np.int32)
    index[: len(masks)] = [mask.place for mask in masks]
    points = (found.points[index] * scale).astype(np.float32)
    arguments = state, points, found.masks[index], np.int32(len(masks))
    logits = np.asarray(_decode_again(model, variables, *arguments, use_m2m=settings.use_m2m))[: len(masks)]
    sizes: Any = mask_sizes(model.config, encoded.input_size) | {"original_size": crop.size}
    for start in range(0, len(masks), FULL_SIZE):
        for mask in np.asarray(binary_masks(logits[start : start + FULL_SIZE], **sizes)):
            if crop.size == size:
                yield mask
            else:
                whole = np.zeros(size, bool)
                whole[crop.y0 : crop.y1, crop.x0 : crop.x1] = mask
                yield whole


def _record(mask: _Mask, pixels: Bool[np.ndarray, "height width"], settings: AutomaticConfig) -> tuple[Record, bool]:
    """The record of a mask, and whether small regions changed it."""
    changed = False
    if settings.min_mask_region_area:
        pixels, changed = without_small_regions(pixels, settings.min_mask_region_area)
    found, i = mask.found, mask.place
    x0, y0, x1, y1 = map(int, box_of(pixels) if changed else mask.box)
    left, top, right, bottom, _ = found.crop
    record = {
        "segmentation": SEGMENTATIONS[settings.output_mode](pixels),
        "area": int(np.count_nonzero(pixels)),
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "predicted_iou": float(np.asarray(found.candidates.iou)[i]),
        "point_coords": [(found.points[i] + np.array([left, top])).tolist()],
        "stability_score": float(np.asarray(found.candidates.stability)[i]),
        "crop_box": [left, top, right - left, bottom - top],
    }
    return record, changed


SEGMENTATIONS: dict[str, Callable[[Any], Any]] = {
    "binary_mask": np.array,
    "uncompressed_rle": run_lengths,
    "coco_rle": coco_run_lengths,
}


def box_of(mask: Bool[np.ndarray, "height width"]) -> tuple[int, int, int, int]:
    """Return the first and last pixels (x0, y0, x1, y1) of a mask; zeros for an empty one."""
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    return (int(columns[0]), int(rows[0]), int(columns[-1]), int(rows[-1])) if len(rows) else (0, 0, 0, 0)


def _corners(bbox: Sequence[int]) -> tuple[int, int, int, int]:
    x, y, width, height = bbox
    return x, y, x + width, y + height
