"""From a file, or what another library holds, to RGB pixels from 0 to 255."""

import contextlib
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tifffile
from jaxtyping import Num, Shaped, UInt8
from PIL import Image, ImageOps

from sam_jax.errors import describe
from sam_jax.images.resize import Size

TIFF = (".tif", ".tiff")
ORIENTATION = 0x0112
"""EXIF tag. From 5 on, height and width change places."""


def read_image(path: str | Path, *, turned: bool = True) -> UInt8[np.ndarray, "height width 3"]:
    """Read an image file as RGB.

    Grey and palettes become RGB. Alpha is dropped, as OpenCV and PIL's `convert("RGB")` do: a transparent pixel keeps
    the colour that is stored. Pixels of more than 8 bits are stretched: the image's smallest value becomes 0, its
    largest 255. A TIFF file may have its channels first. Of an animation it is the first frame.

    Args:
      path: the file.
      turned: turn the image as its EXIF orientation says.

    Raises:
      ValueError: naming the file, if it is missing, damaged, too large for PIL, or a TIFF file of several pages.
    """
    with _named(path):
        return to_8_bits(_read(path, turned))


def read_values(path: str | Path) -> Shaped[np.ndarray, "height width 3"]:
    """Read an image file as `read_image` does, without stretching it.

    Raises:
      ValueError: as `read_image`.
    """
    with _named(path):
        return _read(path, turned=True)


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
                page = file.pages.first
                if page.dtype not in (np.uint8, np.bool_):
                    return Header((page.imagelength, page.imagewidth), swaps=False, wide=True)
        with Image.open(path) as image:
            swaps = image.getexif().get(ORIENTATION, 1) >= 5
            return Header((image.height, image.width), swaps, _is_wide(image))


def to_8_bits(values: Num[np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape"]:
    """Return numbers of any range from 0 (the smallest) to 255 (the largest), zeros where all are the same.

    8-bit numbers stay as they are.

    Raises:
      ValueError: for NaN or infinity.
    """
    if values.dtype == np.uint8:
        return values
    low, high = values.min(), values.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError("some of its pixels are NaN or infinite.")
    scale = 255 / (float(high) - float(low)) if high > low else 0.0
    values = values.astype(np.float32 if values.dtype == np.uint16 else np.float64)
    return ((values - low) * scale + 0.5).astype(np.uint8)


@contextlib.contextmanager
def _named(path: str | Path) -> Iterator[None]:
    """Name the file in whatever error a decoder ends in: for a damaged file it can be any kind."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"{path} cannot be read as an image: {error}") from error


def _read(path: str | Path, turned: bool) -> Shaped[np.ndarray, "height width 3"]:
    if Path(path).suffix.lower() in TIFF:
        with tifffile.TiffFile(path) as file:
            _check_pages(file)
            if file.series[0].dtype not in (np.uint8, np.bool_):
                return _of_tiff(file.asarray())
    with Image.open(path) as image:
        wide = _is_wide(image)
        return _rgb(ImageOps.exif_transpose(image) if turned else image, wide)


def _check_pages(file: tifffile.TiffFile) -> None:
    """Refuse a stack. Channels are no pages, even where each is stored as one."""
    first = file.series[0]
    of_stack = [n for axis, n in zip(first.axes, first.shape, strict=True) if axis not in "YXSC"]
    pages = max(len(file.series), math.prod(of_stack))
    if pages > 1:
        raise ValueError(f"it has {pages} pages. Write each page to a file of its own.")


def _of_tiff(values: Shaped[np.ndarray, "..."]) -> Shaped[np.ndarray, "height width 3"]:
    """Grey or colours, with the channels first or last."""
    while values.ndim > 2 and 1 in (values.shape[0], values.shape[-1]):
        values = values[0] if values.shape[0] == 1 else values[..., 0]
    if values.ndim == 2:
        return np.repeat(values[..., None], 3, -1)
    if values.ndim == 3 and values.shape[0] in (3, 4) and values.shape[-1] not in (3, 4):
        values = np.moveaxis(values, 0, -1)
    if values.ndim != 3 or values.shape[-1] not in (3, 4):
        raise ValueError(f"it must have 1, 3 or 4 channels, got {describe(values)}.")
    return values[..., :3]


def _rgb(image: Image.Image, wide: bool) -> Shaped[np.ndarray, "height width 3"]:
    if image.mode not in ("RGB", "RGBA") and wide:
        return np.repeat(np.asarray(image)[..., None], 3, -1)
    # PIL warns where a palette with alpha becomes RGB in one step.
    rgb = image.convert("RGBA").convert("RGB") if image.has_transparency_data else image.convert("RGB")
    return np.array(rgb, np.uint16 if wide else np.uint8)


def _is_wide(image: Image.Image) -> bool:
    """Whether a pixel has more than 8 bits. Of 16-bit colours PIL keeps the upper byte; its decoder's name tells."""
    return image.mode.startswith(("I", "F")) or any(";16" in str(tile[-1]) for tile in getattr(image, "tile", ()))
