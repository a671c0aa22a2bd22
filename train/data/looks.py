"""What the images of a data set are like: their values, and the sizes of their objects."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int, UInt8

from sam_jax.config import SamConfig
from sam_jax.images.read import read_image, read_values, to_8_bits
from sam_jax.images.resize import input_size_for
from sam_jax.images.size import Size
from sam_jax.train.data.batches import make_targets
from sam_jax.train.data.examples import Files

EXTREMES = 0.1
"""Percent of an image's pixels at each end of its range that do not count as using it."""
LITTLE = 32
"""Of 256 values, so few are a small part."""
LOOKED_AT = 200
"""Images that are looked at before training, evenly over all."""

Range = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Look:
    """What one image is like.

    Attributes:
      name: of its file.
      size: height and width in pixels.
      kind: of the file's numbers, such as uint16.
      values: the smallest and the largest value in the file.
      used: the range of the 8-bit values of all pixels but the extremes.
      areas: of its objects, in pixels.
      lost: objects that fill no pixel of the low-res masks.
    """

    name: str
    size: Size
    kind: str
    values: Range
    used: Range
    areas: Int[np.ndarray, " n"]
    lost: int

    @property
    def is_flat(self) -> bool:
        """Whether the image uses a small part of its range, so that it is hardly seen."""
        return self.used[1] - self.used[0] < LITTLE


def look_at(source: Files, index: int, config: SamConfig) -> Look:
    """Read an example and its file, and return what it is like.

    Args:
      source: the examples.
      index: of the example.
      config: of the decoder, which says how large its masks are.
    """
    example, path = source[index], source.file(index)
    values = read_values(path, source.reading)  # of the file, also where the example is a tile of it
    masks = example.masks[example.masks.any((1, 2))]  # without the classes that it has not
    targets, _ = make_targets(masks, input_size_for(example.original_size, config.image_size), config)
    return Look(
        name=example.name,
        size=example.original_size,
        kind=str(values.dtype),
        values=(float(values.min()), float(values.max())),
        used=used_range(to_8_bits(values, source.reading.range)),
        areas=masks.sum((1, 2)),
        lost=int((targets < 0.5).all((1, 2)).sum()),
    )


def used_range(image: UInt8[np.ndarray, "height width 3"]) -> Range:
    """Return between which values all pixels but the extremes are."""
    low, high = np.percentile(image, (EXTREMES, 100 - EXTREMES))
    return float(low), float(high)


def flat_note(source: Files) -> tuple[str, ...]:
    """Return a note on the images that use a small part of their range, if there are any among `LOOKED_AT` of them."""
    files = list(dict.fromkeys(map(source.file, range(len(source)))))
    some = [files[i] for i in np.linspace(0, len(files) - 1, min(len(files), LOOKED_AT), dtype=int)]
    ranges = {file.name: used_range(read_image(file, source.reading)) for file in some}
    flat = [(name, used) for name, used in ranges.items() if used[1] - used[0] < LITTLE]
    return (flat_sentence(flat, len(ranges), source.reading.range),) if flat else ()


def flat_sentence(flat: Sequence[tuple[str, Range]], images: int, rule: str) -> str:
    """Return the warning on flat images: how many, one of them, and what helps.

    Args:
      flat: name and used range of each, at least one.
      images: how many were looked at.
      rule: `Reading.range`.
    """
    name, (low, high) = flat[0]
    helps = {
        "image": "A few extreme pixels take the rest of the range; clip them, or try --range channel.",
        "channel": "A few extreme pixels take the rest of the range; clip them in the files.",
    }
    return (
        f"Warning: {len(flat)} of {images} images use a small part of their range, such as {name}: nearly all of its "
        f"pixels are from {low:.0f} to {high:.0f} of 255, so that it looks black or flat. "
        + helps.get(rule, "--range image or --range channel stretches each.")
    )
