"""What every source of data gives: an image and the masks of its objects."""

import dataclasses
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, UInt8

from sam_jax.errors import in_words
from sam_jax.images.pixels import EncodedImage
from sam_jax.images.resize import Size

MOST_BYTES = 1 << 31
"""What the masks of an image's objects may take."""


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


class Problems:
    """What is wrong with a data set, collected so that one error tells all of it."""

    SHOWN = 10

    def __init__(self) -> None:
        self.found: list[str] = []

    def add(self, problem: str) -> None:
        """Remember a problem, a sentence."""
        self.found.append(problem)

    def raise_all(self) -> None:
        """Raise a ValueError with the first problems and the number of the others, if there are any."""
        if len(self.found) == 1:
            raise ValueError(self.found[0])
        if self.found:
            more = len(self.found) - self.SHOWN
            shown = [*self.found[: self.SHOWN], *([f"... and {more} more."] if more > 0 else [])]
            raise ValueError("\n  ".join([f"{len(self.found)} problems:", *shown]))


def check_room(objects: int, size: Size, where: str) -> None:
    """Raise a ValueError for more objects than their masks leave memory for. `where` names the label or annotation."""
    if objects * size[0] * size[1] > MOST_BYTES:
        raise ValueError(
            f"{where} has {objects} objects in an image of {in_words(size)}; their masks would take more than "
            f"{MOST_BYTES >> 30} GiB. Split the image, or see whether this is a label at all."
        )


def of_wide_images(names: Sequence[str], images: int) -> tuple[str, ...]:
    """Return a note on the images of more than 8 bits, if there are any: `read_image` stretches each."""
    if not names:
        return ()
    return (
        f"{len(names)} of {images} images have more than 8 bits, such as {names[0]}. "
        "Of each, the smallest value becomes 0 and the largest 255.",
    )
