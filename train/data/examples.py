"""What every source of data gives: an image and the masks of its objects."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, UInt8

from sam_jax.images.pixels import EncodedImage
from sam_jax.images.read import is_wide
from sam_jax.images.resize import Size


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


def of_wide_images(paths: Sequence[Path]) -> tuple[str, ...]:
    """Return a note on images of more than 8 bits, if there are any: `read_image` stretches each."""
    wide = [path for path in paths if is_wide(path)]
    if not wide:
        return ()
    return (
        f"{len(wide)} of {len(paths)} images have more than 8 bits, such as {wide[0].name}. "
        "Of each, the smallest value becomes 0 and the largest 255.",
    )
