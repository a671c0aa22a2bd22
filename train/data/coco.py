"""COCO JSON: images with polygons and run-length encoded masks. Crowds are ignored."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from sam_jax.errors import describe, in_words
from sam_jax.images.preprocess import read_image
from sam_jax.images.resize import Size
from sam_jax.train.data.examples import Example, file_size


class CocoImages:
    """The images and annotations of a COCO JSON file: polygons and RLE; crowds are ignored.

    Images without annotations are left out.

    Args:
      annotations: the JSON file.
      images: the folder that its file names are in.

    Raises:
      ValueError: for a file that is no such JSON, a missing or misshapen image, a bad annotation (its id is named), or
        no object at all.
    """

    def __init__(self, annotations: Path, images: Path) -> None:
        content = _read_json(annotations)
        self.file, self.folder = annotations, images
        self.segmentations: dict[Any, list[Any]] = defaultdict(list)
        known = {image["id"]: image for image in content["images"]}
        for annotation in content["annotations"]:
            if annotation.get("iscrowd"):
                continue
            where = f"{annotations}: annotation {annotation.get('id')}"
            image = known.get(annotation.get("image_id"))
            if image is None:
                raise ValueError(f"{where} is of image {annotation.get('image_id')}, which is not in the file.")
            _check_segmentation(annotation.get("segmentation"), (image["height"], image["width"]), where)
            self.segmentations[image["id"]].append(annotation["segmentation"])
        self.images = [image for image in content["images"] if image["id"] in self.segmentations]
        if not self.images:
            raise ValueError(f"{annotations} has no objects: no annotation that is not a crowd.")
        for image in self.images:
            self._check_image(image)

    def _check_image(self, image: dict[str, Any]) -> None:
        path = self._path(image)
        if not path.resolve().is_relative_to(self.folder.resolve()) or not path.is_file():
            raise ValueError(f"{self.file}: image {image['id']} must be a file in {self.folder}, got {path}.")
        size, wanted = file_size(path), (image["height"], image["width"])
        if size != wanted:
            raise ValueError(f"{path} is {in_words(size)}, but {self.file} says {in_words(wanted)}.")

    def _path(self, image: dict[str, Any]) -> Path:
        return self.folder / image["file_name"]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Example:
        image = self.images[index]
        size = image["height"], image["width"]
        masks = np.stack([decode_segmentation(entry, size) for entry in self.segmentations[image["id"]]])
        return Example(read_image(self._path(image)), masks[masks.any((1, 2))], image["file_name"].replace("/", "__"))


def decode_segmentation(segmentation: Any, size: Size) -> Bool[np.ndarray, "height width"]:
    """Return the mask of a COCO segmentation: polygons, or RLE compressed or not.

    Args:
      segmentation: as in the JSON file.
      size: height and width of the image.
    """
    from pycocotools import mask as coco

    encoded: Any = segmentation
    if isinstance(segmentation, list):
        encoded = coco.merge(coco.frPyObjects(segmentation, *size))
    elif isinstance(segmentation["counts"], list):
        encoded = coco.frPyObjects(encoded, *size)
    return coco.decode(encoded).astype(bool)


def _read_json(path: Path) -> dict[str, Any]:
    """A COCO file's content, with what is needed of it there."""
    try:
        content = json.loads(Path(path).read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(content, dict) or not {"images", "annotations"} <= content.keys():
        raise ValueError(f"{path} is not COCO JSON: it must be an object with images and annotations.")
    for image in content["images"]:
        missing = {"id", "file_name", "height", "width"} - image.keys()
        if missing:
            raise ValueError(f"{path}: image {image.get('id')} has no {', '.join(sorted(missing))}.")
    return content


def _check_segmentation(segmentation: Any, size: Size, where: str) -> None:
    if isinstance(segmentation, dict):
        counts = segmentation.get("counts")
        if list(segmentation.get("size", ())) != list(size):
            raise ValueError(f"{where} has RLE of size {segmentation.get('size')}, but its image is {list(size)}.")
        if not isinstance(counts, str) and (not isinstance(counts, list) or sum(counts) != size[0] * size[1]):
            raise ValueError(f"{where} has RLE whose counts do not add up to its size {list(size)}.")
    elif isinstance(segmentation, list) and segmentation:
        for polygon in segmentation:
            if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
                raise ValueError(
                    f"{where} must have polygons [x0, y0, x1, y1, ...] of 3 or more points, got {describe(polygon)}."
                )
    else:
        raise ValueError(f"{where} must have a segmentation, polygons or RLE, got {describe(segmentation)}.")
