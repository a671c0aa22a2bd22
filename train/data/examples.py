"""What every source of data gives: an image and the masks of its objects."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, UInt8

from sam_jax.errors import in_words
from sam_jax.images.pixels import EncodedImage
from sam_jax.images.read import Reading
from sam_jax.images.size import Size

RULES = {
    "file": "the smallest value that the file's type can hold becomes 0 and the largest 255",
    "image": "the smallest value becomes 0 and the largest 255",
    "channel": "the smallest value of each channel becomes 0 and the largest 255",
}
"""Rules for ranges (`Reading.range`) in words."""

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


def encoded_image(example: Example) -> EncodedImage:
    """Return what an example's image was encoded to.

    Raises:
      ValueError: if it was not encoded.
    """
    if example.encoded is None:
        raise ValueError(f"{example.name} is not encoded; sam_jax.train.data.sources.Encoded gives encoded examples.")
    return example.encoded


@runtime_checkable
class Source(Protocol):
    """Examples by number, each the same every time."""

    def __len__(self) -> int:
        """Return how many examples there are."""
        ...

    def __getitem__(self, index: int) -> Example:
        """Return one of them."""
        ...


@runtime_checkable
class Files(Source, Protocol):
    """A source whose images are files.

    Attributes:
      reading: how they are read.
      notes: what was left out, and what else is worth knowing: a sentence each.
    """

    reading: Reading
    notes: tuple[str, ...]

    def file(self, index: int) -> Path:
        """Return the file of an example's image."""
        ...


def number_of_files(source: Files) -> int:
    """Return how many images a source has, however many tiles are made of them."""
    return len({source.file(index) for index in range(len(source))})


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


def range_note(wide: Sequence[str], images: int, reading: Reading) -> tuple[str, ...]:
    """Return a note on the rule for ranges, if it changes any image.

    Args:
      wide: names of the images of more than 8 bits.
      images: how many images there are.
      reading: how they are read.
    """
    if reading.range != "auto":
        return (f"Range of all images: {RULES[reading.range]} (--range {reading.range}).",)
    if not wide:
        return ()
    return (
        f"{len(wide)} of {images} images have more than 8 bits, such as {wide[0]}. Of each, {RULES['image']} "
        "(--range image).",
    )
