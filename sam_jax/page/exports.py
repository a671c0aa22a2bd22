"""What people take away: COCO's JSON, pictures of numbers, and pictures to look at. Each is made whole before it is
sent.
"""

import io
import json
import zipfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Bool
from PIL import Image

from sam_jax.automatic.labels import label_map
from sam_jax.automatic.records import box_of
from sam_jax.images.draw import distinct_colour, line_width, overlay
from sam_jax.images.run_lengths import from_text
from sam_jax.page.gallery import StoredImage
from sam_jax.page.messages import SavedObject

Kind = Literal["coco", "labels", "overlay"]
"""COCO's JSON with run lengths, a 16-bit PNG that numbers the objects, or a PNG of the image with the masks on it."""

COLOURS = 24
"""So many colours are told apart; then they come again."""


class Export(NamedTuple):
    """A file to send.

    Attributes:
      name: of the file.
      content: its bytes.
      media_type: what it is.
    """

    name: str
    content: bytes
    media_type: str


Annotated = tuple[StoredImage, list[SavedObject]]
"""An image and its objects."""


def export(kind: Kind, annotated: Sequence[Annotated]) -> Export:
    """Return the objects of images as one file: JSON for COCO, a PNG for one image, a ZIP of PNGs for several."""
    if kind == "coco":
        content = json.dumps(_coco(annotated)).encode()
        return Export(_name(annotated, ".json"), content, "application/json")
    draw = {"labels": _labels, "overlay": _overlay}[kind]
    if len(annotated) == 1:
        return Export(_name(annotated, f"_{kind}.png"), _png(draw(*annotated[0])), "image/png")
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as file:
        for stem, one in zip(_stems(annotated), annotated, strict=True):
            file.writestr(f"{stem}_{kind}.png", _png(draw(*one)))
    return Export(f"{kind}.zip", packed.getvalue(), "application/zip")


def colour_of(number: int) -> tuple[int, int, int]:
    """Return the RGB of an object's colour."""
    return distinct_colour(number % COLOURS)


def chosen_mask(one: SavedObject) -> Bool[np.ndarray, "height width"]:
    """Return the pixels of the mask that is meant."""
    mask = one.masks[one.chosen]
    height, width = mask.size
    return from_text(mask.counts, (height, width))


def _coco(annotated: Sequence[Annotated]) -> dict[str, Any]:
    """COCO's format for object detection; objects of one name are a category."""
    names = list(dict.fromkeys(one.name for _, objects in annotated for one in objects))
    images, annotations = [], []
    for image, objects in annotated:
        height, width = image.size()
        images.append({"id": len(images) + 1, "file_name": image.name, "height": height, "width": width})
        for one in objects:
            mask, chosen = chosen_mask(one), one.masks[one.chosen]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": len(images),
                    "category_id": names.index(one.name) + 1,
                    "segmentation": {"size": chosen.size, "counts": chosen.counts},
                    "area": int(np.count_nonzero(mask)),
                    "bbox": _pixel_box(mask),
                    "iscrowd": 0,
                    "score": chosen.score,
                }
            )
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(names)]
    return {"images": images, "annotations": annotations, "categories": categories}


def _pixel_box(mask: Bool[np.ndarray, "height width"]) -> list[int]:
    """COCO's box (x, y, width, height) counts pixels."""
    x0, y0, x1, y1 = box_of(mask)
    return [x0, y0, x1 - x0 + 1, y1 - y0 + 1] if mask.any() else [0, 0, 0, 0]


def _labels(image: StoredImage, objects: Sequence[SavedObject]) -> np.ndarray:
    """I + 1 where object i is, and of several the smallest."""
    masks = [chosen_mask(one) for one in objects]
    records = [{"segmentation": mask, "area": int(np.count_nonzero(mask))} for mask in masks]
    return label_map(records, image.size()).astype(np.uint16)


def _overlay(image: StoredImage, objects: Sequence[SavedObject]) -> np.ndarray:
    pixels = image.pixels()
    masks = [(chosen_mask(one), colour_of(one.colour)) for one in objects]
    for mask, colour in sorted(masks, key=lambda pair: -int(np.count_nonzero(pair[0]))):
        pixels = overlay(pixels, mask, colour, line_width(*pixels.shape[:2]))
    return pixels


def _png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def _name(annotated: Sequence[Annotated], ending: str) -> str:
    stem = Path(annotated[0][0].name).stem if len(annotated) == 1 else "objects"
    return f"{stem}{ending}"


def _stems(annotated: Sequence[Annotated]) -> list[str]:
    """A name for each image; where names are the same, with the id."""
    times = Counter(Path(image.name).stem for image, _ in annotated)
    stems = [(Path(image.name).stem, image.id) for image, _ in annotated]
    return [stem if times[stem] == 1 else f"{stem}_{image_id}" for stem, image_id in stems]
