"""Masks as COCO run lengths: numbers of pixels, column by column, in turns outside and inside of the mask."""

from typing import Any

import numpy as np
from jaxtyping import Bool


def run_lengths(mask: Bool[np.ndarray, "height width"]) -> dict[str, Any]:
    """Return `{"size": [height, width], "counts": [outside, inside, outside, ...]}`, COCO's uncompressed form."""
    pixels = mask.reshape(-1, order="F")
    changes = np.flatnonzero(pixels[1:] != pixels[:-1]) + 1
    counts = np.diff(np.concatenate([[0], changes, [pixels.size]]))
    first = [0] if pixels.size and pixels[0] else []  # runs begin outside
    return {"size": list(mask.shape), "counts": [*first, *counts.tolist()]}


def coco_run_lengths(mask: Bool[np.ndarray, "height width"]) -> dict[str, Any]:
    """Return `{"size": [height, width], "counts": text}`, COCO's compressed form, ready for JSON."""
    from pycocotools import mask as coco

    encoded: Any = coco.encode(np.asfortranarray(mask, np.uint8))
    return {"size": list(encoded["size"]), "counts": encoded["counts"].decode("ascii")}


def decoded(segmentation: Any) -> Bool[np.ndarray, "height width"]:
    """Return the pixels of a record's `segmentation`, whichever of the three forms it has."""
    if isinstance(segmentation, np.ndarray):
        return segmentation
    from pycocotools import mask as coco

    height, width = segmentation["size"]
    compressed: Any = segmentation
    if not isinstance(segmentation["counts"], (str, bytes)):
        compressed = coco.frPyObjects(segmentation, height, width)
    return np.asarray(coco.decode(compressed), bool)
