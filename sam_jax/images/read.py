"""From a file, or what another library holds, to RGB pixels from 0 to 255."""

import contextlib
import dataclasses
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import tifffile
from jaxtyping import Num, Shaped, UInt8
from PIL import Image, ImageOps

from sam_jax.errors import describe
from sam_jax.images.size import Size

TIFF = (".tif", ".tiff")
ORIENTATION = 0x0112
"""EXIF tag. From 5 on, height and width change places."""


Range = Literal["auto", "file", "image", "channel"]
"""Which values become 0 and 255: see `Reading.range`."""


@dataclasses.dataclass(frozen=True)
class Reading:
    """How image files become RGB from 0 to 255.

    Attributes:
      range: which values become 0 and 255. file: the smallest and the largest that the file's type can hold; of floats
        0 and 1. image: the smallest and the largest of the image. channel: those of each channel. auto: file for
        images of 8 bits, image for all others.
      channels: the one channel, shown as grey, or the three that become red, green and blue, counted from 1. By default
        the only one, or the first three of three or four. Of a TIFF file of several pages, these are pages.
      page: the page to take of a TIFF file of several pages, counted from 1.
    """

    range: Range = "auto"
    channels: tuple[int, ...] = ()
    page: int | None = None

    def __post_init__(self) -> None:
        if self.range not in ("auto", "file", "image", "channel"):
            raise ValueError(f"range must be auto, file, image or channel, got {self.range}.")
        if len(self.channels) not in (0, 1, 3) or any(channel < 1 for channel in self.channels):
            raise ValueError(f"channels must be one or three numbers from 1 on, got {list(self.channels)}.")
        if self.page is not None and self.page < 1:
            raise ValueError(f"page must be 1 or more, got {self.page}.")

    @property
    def told(self) -> dict[str, Any]:
        """What is other than by default, as JSON has it: empty, or all of it."""
        return {} if self == Reading() else dataclasses.asdict(self) | {"channels": list(self.channels)}


def read_image(
    path: str | Path,
    reading: Reading = Reading(),
    *,
    turned: bool = True,
) -> UInt8[np.ndarray, "height width 3"]:
    """Read an image file as RGB.

    Grey and palettes become RGB. Alpha is dropped, as OpenCV and PIL's `convert("RGB")` do: a transparent pixel keeps
    the colour that is stored. A TIFF file may have its channels first. Of an animation it is the first frame.

    Args:
      path: the file.
      reading: which values become 0 and 255, and which channels and page are taken. By default the smallest value of
        more than 8 bits becomes 0, the largest 255.
      turned: turn the image as its EXIF orientation says.

    Raises:
      ValueError: naming the file, if it is missing, damaged, too large for PIL, a TIFF file of several pages of which
        none is chosen, or has not the channels or the page that are asked for.
    """
    with _named(path):
        return to_8_bits(_read(path, reading, turned), reading.range)


def read_values(path: str | Path, reading: Reading = Reading()) -> Shaped[np.ndarray, "height width 3"]:
    """Read an image file as `read_image` does, without stretching it.

    Raises:
      ValueError: as `read_image`.
    """
    with _named(path):
        return _read(path, reading, turned=True)


def rgb_pixels(image: Any) -> np.ndarray:
    """Return the pixels of a file, of a PIL image, or of whatever `np.asarray` makes an array of.

    A PIL image becomes RGB as a file does, but is not turned: its pixels are those that PIL shows.

    Raises:
      ValueError: for a file that cannot be read, or something that is no array.
    """
    if isinstance(image, (str, os.PathLike)):
        return read_image(Path(image))
    if isinstance(image, Image.Image):
        return to_8_bits(_rgb(image, _is_wide(image)))
    try:
        return np.asarray(image)
    except Exception as error:  # whatever another library's array raises
        raise ValueError(
            f"The image must be an array, a PIL image or a file, got {describe(image)}: {error}"
        ) from error


class Header(NamedTuple):
    """What an image file says of itself before its pixels.

    Attributes:
      size: height and width as they are stored.
      swaps: whether the EXIF orientation makes the one the other.
      wide: whether pixels have more than 8 bits, so that `read_image` stretches them.
    """

    size: Size
    swaps: bool
    wide: bool

    @property
    def turned_size(self) -> Size:
        """Height and width of the image as `read_image` turns it."""
        height, width = self.size
        return (width, height) if self.swaps else (height, width)


def read_header(path: Path) -> Header:
    """Read an image file's header alone.

    Raises:
      ValueError: naming the file, if it is no image.
    """
    with _named(path):
        if path.suffix.lower() in TIFF:
            with tifffile.TiffFile(path) as file:
                if not _is_plain(file):
                    page = file.pages.first
                    wide = page.dtype not in (np.uint8, np.bool_)
                    return Header((page.imagelength, page.imagewidth), swaps=False, wide=wide)
        with Image.open(path) as image:
            swaps = image.getexif().get(ORIENTATION, 1) >= 5
            return Header((image.height, image.width), swaps, _is_wide(image))


def to_8_bits(values: Num[np.ndarray, "*shape"], range: Range = "auto") -> UInt8[np.ndarray, "*shape"]:
    """Return numbers of any range from 0 to 255; zeros where all are the same.

    Args:
      values: an image; channels are last.
      range: which values become 0 and 255, as in `Reading`.

    Raises:
      ValueError: for NaN or infinity, or floats that are not from 0 to 1 where the range is the file's.
    """
    if range in ("auto", "file") and values.dtype == np.uint8:
        return values
    low, high = _ends(values, range)
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise ValueError("some of its pixels are NaN or infinite.")
    low, high = low.astype(np.float64), high.astype(np.float64)
    scale = np.divide(255.0, high - low, out=np.zeros_like(low), where=high > low)
    exact = np.float32 if values.dtype.itemsize <= 2 else np.float64
    return ((values.astype(exact) - low.astype(exact)) * scale.astype(exact) + exact(0.5)).astype(np.uint8)


def _ends(values: np.ndarray, range: Range) -> tuple[np.ndarray, np.ndarray]:
    """What becomes 0 and 255."""
    if range == "file":
        if values.dtype.kind != "f":
            limits = np.iinfo(values.dtype)
            return np.array(limits.min), np.array(limits.max)
        if values.min() < 0 or values.max() > 1:
            raise ValueError(f"its floats are from {values.min():.4g} to {values.max():.4g}, not from 0 to 1.")
        return np.array(0.0), np.array(1.0)
    axes = (0, 1) if range == "channel" else None
    return np.asarray(values.min(axes)), np.asarray(values.max(axes))


@contextlib.contextmanager
def _named(path: str | Path) -> Iterator[None]:
    """Name the file in whatever error a decoder ends in: for a damaged file it can be any kind."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"{path} cannot be read as an image: {error}") from error


def _read(path: str | Path, reading: Reading, turned: bool) -> Shaped[np.ndarray, "height width 3"]:
    if Path(path).suffix.lower() in TIFF:
        with tifffile.TiffFile(path) as file:
            if not _is_plain(file):
                return _three_of(_of_tiff(file, reading), reading)
    with Image.open(path) as image:
        wide = _is_wide(image)
        return _three_of(_rgb(ImageOps.exif_transpose(image) if turned else image, wide), reading)


def _is_plain(file: tifffile.TiffFile) -> bool:
    """Whether a TIFF file is for PIL, which knows palettes, more compressions, and EXIF: one page of 8 bits."""
    first = file.series[0]
    samples = dict(zip(first.axes, first.shape, strict=True))
    only = len(file.pages) == 1 and samples.keys() <= set("YXS") and samples.get("S", 3) in (3, 4)
    return only and first.dtype in (np.uint8, np.bool_)


def _of_tiff(file: tifffile.TiffFile, reading: Reading) -> Shaped[np.ndarray, "height width channel"]:
    """The page that is asked for, or the only one. Channels are no pages, even where each is stored as one."""
    where = "memmap" if len(file.pages) > 1 else None  # one page of a large stack is read alone
    pages = [page for series in file.series for page in _channels_last(series.asarray(out=where), series.axes)]
    if len(pages) > 1 and reading.channels and reading.page is None and len({page.shape for page in pages}) == 1:
        return np.concatenate(pages, -1)
    return _page(pages, reading)


def _channels_last(values: np.ndarray, axes: str) -> Shaped[np.ndarray, "page height width channel"]:
    order = [axes.index(axis) for axis in "YX"]
    channels = [i for i, axis in enumerate(axes) if axis in "CS"]
    pages = [i for i in range(len(axes)) if i not in order and i not in channels]
    shape = math.prod(values.shape[i] for i in pages), *(values.shape[i] for i in order), -1
    return values.transpose(*pages, *order, *channels).reshape(shape)


def _page(pages: Sequence[np.ndarray], reading: Reading) -> np.ndarray:
    """Of pages, the one that is asked for; the only one needs no asking."""
    if len(pages) == 1:
        return pages[0]
    if reading.page is None:
        raise ValueError(f"it has {len(pages)} pages. Choose one (page) or some as channels (channels).")
    if reading.page > len(pages):
        raise ValueError(f"it has {len(pages)} pages, and no page {reading.page}.")
    return pages[reading.page - 1]


def _three_of(
    values: Shaped[np.ndarray, "height width channel"], reading: Reading
) -> Shaped[np.ndarray, "height width 3"]:
    """The channels that are asked for; by default grey or the first three of three or four."""
    number = values.shape[-1]
    if max(reading.channels, default=0) > number:
        raise ValueError(f"it has {number} channels, and no channel {max(reading.channels)}.")
    if not reading.channels and number not in (1, 3, 4):
        raise ValueError(f"it has {number} channels. Choose one or three of them (channels).")
    chosen = reading.channels or ((1,) if number == 1 else (1, 2, 3))
    return values[..., [channel - 1 for channel in chosen * (3 // len(chosen))]]


def _rgb(image: Image.Image, wide: bool) -> Shaped[np.ndarray, "height width 3"]:
    if image.mode not in ("RGB", "RGBA") and wide:
        return np.repeat(np.asarray(image)[..., None], 3, -1)
    # PIL warns where a palette with alpha becomes RGB in one step.
    rgb = image.convert("RGBA").convert("RGB") if image.has_transparency_data else image.convert("RGB")
    return np.array(rgb, np.uint16 if wide else np.uint8)


def _is_wide(image: Image.Image) -> bool:
    """Whether a pixel has more than 8 bits. Of 16-bit colours PIL keeps the upper byte; its decoder's name tells."""
    return image.mode.startswith(("I", "F")) or any(";16" in str(tile[-1]) for tile in getattr(image, "tile", ()))
