"""What every source of data gives: an image and the masks of its objects."""

import dataclasses
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

from sam_jax.images.pixels import EncodedImage
from sam_jax.images.resize import Size

_ORIENTATION = 0x0112  # EXIF tag; from 5 on, height and width change places


@dataclasses.dataclass(frozen=True)
class Example:
    """An image and its objects.

    Attributes:
      image: RGB, at the original size.
      masks: one for each object, at the original size.
      name: of the image among all: its file name.
      encoded: the image as the decoder needs it, where it has been encoded already.
    """

    image: UInt8[np.ndarray, "height width 3"]
    masks: Bool[np.ndarray, "n height width"]
    name: str
    encoded: EncodedImage | None = None

    @property
    def original_size(self) -> Size:
        """Height and width of the image."""
        height, width, _ = self.image.shape
        return height, width


@runtime_checkable
class Source(Protocol):
    """Examples by number, each the same every time."""

    def __len__(self) -> int:
        """Return how many examples there are."""
        ...

    def __getitem__(self, index: int) -> Example:
        """Return one of them."""
        ...


def file_size(path: Path) -> Size:
    """Return height and width of an image file as `read_image` turns it, from its header alone.

    Raises:
      ValueError: for a file that is no image.
    """
    try:
        with Image.open(path) as image:
            turned = image.getexif().get(_ORIENTATION, 1) >= 5
            return (image.width, image.height) if turned else (image.height, image.width)
    except OSError as error:
        raise ValueError(f"{path} cannot be read as an image: {error}") from None
