"""How many of the known objects automatic masks find: average recall, as for object proposals (SAM's paper, 7.3).

The matching is pycocotools': masks of any category, IoU thresholds from 0.5 to 0.95, a known object matched once.
"""

import contextlib
import dataclasses
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool
from PIL import Image

from sam_jax.automatic.config import AutomaticConfig
from sam_jax.automatic.records import Record, generate_records
from sam_jax.decoder.model import Sam, Variables
from sam_jax.images.draw import draw_everything, side_by_side, stacked
from sam_jax.images.run_lengths import coco_run_lengths, decoded
from sam_jax.train.data.examples import Example, encoded_image
from sam_jax.train.evaluation.metrics import COCO_LIMITS, SIZE_CLASSES
from sam_jax.train.evaluation.report import write_evaluation

MASKS = (10, 100, 1000)
"""Numbers of masks of an image that recall is reported for."""

PROPOSALS = AutomaticConfig(pred_iou_thresh=0.0, stability_score_thresh=0.0, box_nms_thresh=0.9, output_mode="coco_rle")
"""Keep nearly everything: the best come first, and recall counts how many of them it takes."""

SAMPLES = 4
"""Images that the report's picture shows."""


@dataclasses.dataclass(frozen=True)
class EverythingReport:
    """Average recall of automatic masks.

    Attributes:
      images: that were looked at.
      objects: known ones, of all sizes and of each.
      masks: that were found, on average of an image.
      recall: for each number of masks, the average recall of all objects and of each size; None where there is none.
      samples: pictures: the image, the known objects, and all masks.
    """

    images: int
    objects: dict[str, int]
    masks: float
    recall: dict[int, dict[str, float | None]]
    samples: tuple[Image.Image, ...] = ()

    def to_json(self) -> str:
        """Return the numbers as JSON."""
        numbers = {name: value for name, value in vars(self).items() if name != "samples"}
        return json.dumps(numbers, indent=2)

    def save(self, folder: Path, *, overwrite: bool = False) -> None:
        """Write a folder with `evaluation.json` and `evaluation.png`.

        Raises:
          FileExistsError: if it exists already, unless told to overwrite.
        """
        write_evaluation(folder, self.to_json(), stacked(self.samples), overwrite)


def evaluate_everything(
    model: Sam,
    variables: Variables,
    examples: Iterable[Example],
    *,
    settings: AutomaticConfig = PROPOSALS,
    size_limits: tuple[int, int] = COCO_LIMITS,
) -> EverythingReport:
    """Return how many of the known objects are among the first automatic masks of their images.

    Masks are ranked by the mean of predicted IoU and stability score, as the paper does.

    Args:
      model: the decoder.
      variables: its variables.
      examples: encoded images with their objects.
      settings: how masks are found.
      size_limits: the least area of a medium object, and of a large one, in pixels of the original image.

    Raises:
      ValueError: for an example that is not encoded, or none with an object.
    """
    known, found, sizes, samples = [], [], [], []
    for number, example in enumerate(examples, 1):
        encoded = encoded_image(example)
        records = generate_records(model, variables, encoded.original_size, lambda _, it=encoded: it, settings)
        records = sorted(records, key=_rank, reverse=True)[: MASKS[-1]]
        masks = example.masks[example.masks.any((1, 2))]
        sizes.append((number, example.original_size))
        known += [(number, coco_run_lengths(mask), int(mask.sum())) for mask in masks]
        found += [(number, record["segmentation"], record["area"], _rank(record)) for record in records]
        if len(samples) < SAMPLES:
            samples.append(_sample(example, masks, records))
    if not known:
        raise ValueError("The examples to evaluate on have no objects.")
    areas = np.array([area for *_, area in known])
    ranges: dict[str, tuple[int, int]] = dict(zip(("all", *SIZE_CLASSES), _ranges(size_limits), strict=True))
    return EverythingReport(
        images=len(sizes),
        objects={name: int(((areas >= low) & (areas <= high)).sum()) for name, (low, high) in ranges.items()},
        masks=len(found) / len(sizes),
        recall=_recall(sizes, known, found, ranges),
        samples=tuple(samples),
    )


def _rank(record: Record) -> float:
    return (record["predicted_iou"] + record["stability_score"]) / 2


def _ranges(limits: tuple[int, int]) -> list[tuple[int, int]]:
    """Least and largest areas of all objects, then of each size; pycocotools counts both ends in."""
    most = 1 << 40
    return [(0, most), (0, limits[0] - 1), (limits[0], limits[1] - 1), (limits[1], most)]


def _recall(
    sizes: Sequence[tuple[int, tuple[int, int]]],
    known: Sequence[tuple[int, Any, int]],
    found: Sequence[tuple[int, Any, int, float]],
    ranges: Mapping[str, tuple[int, int]],
) -> dict[int, dict[str, float | None]]:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    images = [{"id": image, "height": height, "width": width} for image, (height, width) in sizes]

    def dataset(annotations: Iterable[dict[str, Any]]) -> Any:
        content: Any = {"images": images, "categories": [{"id": 1, "name": "object"}]}
        content["annotations"] = [
            {"id": i, "category_id": 1, "iscrowd": 0, "ignore": 0} | fields for i, fields in enumerate(annotations, 1)
        ]
        coco = COCO()
        coco.dataset = content
        return coco

    truth = dataset({"image_id": image, "segmentation": mask, "area": area} for image, mask, area in known)
    results = dataset(
        {"image_id": image, "segmentation": mask, "area": area, "score": score} for image, mask, area, score in found
    )
    with contextlib.redirect_stdout(io.StringIO()):  # it prints
        truth.createIndex()
        results.createIndex()
        evaluation = COCOeval(truth, results, "segm")
        evaluation.params.useCats = 0
        evaluation.params.maxDets = list(MASKS)
        evaluation.params.areaRng = [list(limits) for limits in ranges.values()]
        evaluation.params.areaRngLbl = list(ranges)
        evaluation.evaluate()
        evaluation.accumulate()
    recall = evaluation.eval["recall"][:, 0]  # [IoU threshold, size, number of masks]; -1 where there are no objects
    means = {number: recall[:, :, i].mean(0).tolist() for i, number in enumerate(MASKS)}
    return {
        number: {name: None if mean < 0 else mean for name, mean in zip(ranges, row, strict=True)}
        for number, row in means.items()
    }


def _sample(example: Example, masks: Bool[np.ndarray, "n height width"], records: Sequence[Record]) -> Image.Image:
    """The image, its known objects, and the masks that were found, of which every object's best is what matters."""
    largest_first = sorted(records[: MASKS[1]], key=lambda record: -record["area"])
    by_size = sorted(masks, key=np.count_nonzero, reverse=True)
    pictures = (
        example.image,
        draw_everything(example.image, by_size),
        draw_everything(example.image, (decoded(record["segmentation"]) for record in largest_first)),
    )
    titles = (example.name, f"{len(masks)} known objects", f"the first {len(largest_first)} masks")
    return side_by_side([(title, Image.fromarray(picture)) for title, picture in zip(titles, pictures, strict=True)])
