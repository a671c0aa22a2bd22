"""Beyond one machine: what Ray Data calls on every batch of images of a fleet. Nothing here needs Ray itself."""

import json
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Shaped

from sam_jax.automatic.config import AutomaticConfig
from sam_jax.predictor import Predictor

Batch = dict[str, Shaped[np.ndarray, " row ..."]]
"""Columns by their names, as Ray Data gives and takes them."""


class MaskActor:
    """Find the masks of everything in batches of images: the class that `ray.data.Dataset.map_batches` is given.

    Each actor loads the checkpoint once.
    """

    def __init__(
        self,
        checkpoint: str | os.PathLike[str],
        *,
        family: str | None = None,
        prefix: str | None = None,
        **settings: Any,
    ) -> None:
        """Load a checkpoint with its encoder.

        Args:
          checkpoint: what `Predictor.load` takes, found on every machine.
          family: as in `sam_jax.load`.
          prefix: likewise.
          **settings: fields of `sam_jax.AutomaticConfig`, but for `output_mode`.

        Raises:
          CheckpointError: for a checkpoint that cannot be used.
          ValueError: for settings that mean nothing.
        """
        self._settings = vars(AutomaticConfig(**settings, output_mode="coco_rle"))
        self._predictor = Predictor.load(checkpoint, family=family, prefix=prefix)

    def __call__(self, batch: Batch) -> Batch:
        """Return the batch with its masks instead of its pixels; an image that cannot be used ends nothing.

        Args:
          batch: the column `image`, RGB pixels from 0 to 255, as one array [row, height, width, 3] or as objects
            [height, width, 3] of any sizes. Without it the column `path`: files, which are read here.

        Returns:
          All columns but `image`, and two more. `masks`: JSON of a list with a record for each mask, as
          `Predictor.generate` returns them, with COCO's run lengths. `error`: why there are none, else empty.

        Raises:
          ValueError: for a batch with neither column.
        """
        images = batch.get("image", batch.get("path"))
        if images is None:
            raise ValueError(f"A batch must have a column image or path, got {', '.join(batch) or 'none'}.")
        masks, errors = zip(*map(self._find, images), strict=True)
        others = {name: column for name, column in batch.items() if name != "image"}
        return others | {"masks": _texts(masks), "error": _texts(errors)}

    def _find(self, image: Any) -> tuple[str, str]:
        """The masks of an image as JSON, and what is wrong with it."""
        try:
            return json.dumps(self._predictor.generate(image, **self._settings)), ""
        except ValueError as error:
            return "[]", str(error)


def _texts(texts: Sequence[str]) -> Shaped[np.ndarray, " row"]:
    """Texts as objects: NumPy's own would all be as long as the longest."""
    return np.array(texts, object)
