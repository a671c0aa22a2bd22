"""Masks as files: a picture with the masks on it, a picture of each mask, or COCO's JSON for many images."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from sam_jax.atomic import written_whole
from sam_jax.images.draw import COLOURS, draw_score, draw_tokens, line_width, overlay, side_by_side
from sam_jax.images.pixels import EncodedImage, Prediction
from sam_jax.images.run_lengths import coco_run_lengths
from sam_jax.prompts import Prompts

Kind = Literal["overlay", "masks", "coco"]
"""What is written: the image with masks, prompts and scores; a black and white picture of each mask; COCO's JSON."""


class Result(NamedTuple):
    """What one image came to: the prediction has the axis of objects, the prompts are in the image's pixels."""

    file: Path
    pixels: UInt8[np.ndarray, "height width 3"]
    image: EncodedImage
    prompts: Prompts
    prediction: Prediction


def targets(kind: Kind, out: Path, files: Sequence[Path], objects: int, candidates: int) -> dict[Path, list[Path]]:
    """Return what will be written for each image file; of COCO's JSON there is one file for all.

    Args:
      kind: what is written.
      out: a `.png` file for the overlay of one image, a file for COCO, else a folder.
      files: the images.
      objects: how many objects each image has.
      candidates: how many masks each object has.

    Raises:
      ValueError: if two images would be written to the same file.
    """
    if kind == "coco":
        return {file: [out] for file in files}
    if kind == "overlay" and len(files) == 1 and out.suffix == ".png":
        return {files[0]: [out]}
    ends = [""]
    if kind == "masks":
        ends = [f"_{i}" if candidates == 1 else f"_{i}_{k}" for i in range(objects) for k in range(candidates)]
    found = {file: [out / f"{file.stem}{end}.png" for end in ends] for file in files}
    twice = [str(path) for path, times in Counter(chain.from_iterable(found.values())).items() if times > 1]
    if twice or len(found) < len(files):
        raise ValueError(f"Several of the images would be written to {', '.join(twice) or out}: give them other names.")
    return found


def check_free(paths: Iterable[Path]) -> None:
    """Raise a FileExistsError where one of the paths exists, before anything is computed for it."""
    for path in paths:
        if path.exists():
            raise FileExistsError(f"{path} exists already. To replace what is there, add --overwrite.")


def write_pictures(kind: Kind, paths: Sequence[Path], result: Result, overwrite: bool) -> None:
    """Write the overlay of an image to the one path, or its masks to the paths, objects first."""
    if kind == "overlay":
        pictures = [overlay_picture(result)]
    else:
        masks = result.prediction.masks
        pictures = [Image.fromarray(mask) for mask in masks.reshape(-1, *masks.shape[-2:])]
    for path, picture in zip(paths, pictures, strict=True):
        with written_whole(path, overwrite=overwrite) as file:
            picture.save(file, "PNG")


def overlay_picture(result: Result) -> Image.Image:
    """Return the image with masks, prompts and scores; where objects have several masks, one picture for each."""
    masks, scores, _ = result.prediction
    width = line_width(*result.image.original_size)
    panels = []
    for k in range(scores.shape[1]):
        pixels = result.pixels
        for i, mask in enumerate(masks[:, k]):
            pixels = overlay(pixels, mask, COLOURS[i % len(COLOURS)], width)
        picture = Image.fromarray(pixels)
        for coordinates, labels in zip(result.prompts.coordinates, result.prompts.labels, strict=True):
            draw_tokens(picture, np.asarray(coordinates), np.asarray(labels), radius=3 + 2 * width)
        for i, mask in enumerate(masks[:, k]):
            draw_score(picture, mask, float(scores[i, k]), COLOURS[i % len(COLOURS)])
        panels.append((f"mask {k + 1}", picture))
    return panels[0][1] if len(panels) == 1 else side_by_side(panels)


class CocoAnnotations:
    """The masks of many images in COCO's format for object detection, with a `score` for each."""

    def __init__(self) -> None:
        """Begin with no image."""
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []

    def add(self, result: Result) -> None:
        """Add the masks of one image; each object's masks have the same `object`."""
        from pycocotools import mask as coco

        height, width = result.image.original_size
        number = len(self.images) + 1
        self.images.append({"id": number, "file_name": result.file.name, "height": height, "width": width})
        for i, k in np.ndindex(result.prediction.scores.shape):
            encoded: Any = coco_run_lengths(result.prediction.masks[i, k])
            annotation = {
                "id": len(self.annotations) + 1,
                "image_id": number,
                "category_id": 1,
                "object": i,
                "segmentation": encoded,
                "area": int(coco.area(encoded)),
                "bbox": coco.toBbox(encoded).tolist(),
                "iscrowd": 0,
                "score": float(result.prediction.scores[i, k]),
            }
            self.annotations.append(annotation)

    def write(self, path: Path, overwrite: bool) -> None:
        """Write what has been added as one JSON file."""
        everything = {
            "images": self.images,
            "annotations": self.annotations,
            "categories": [{"id": 1, "name": "object"}],
        }
        with written_whole(path, overwrite=overwrite) as file:
            file.write_text(json.dumps(everything) + "\n", "utf-8")
