"""From a file, or what another library holds, to RGB pixels from 0 to 255."""

import math
import os
from pathlib import Path
from typing import Any

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
    try:
        pixels = _read(path, turned)
        return stretched(pixels) if pixels.dtype != np.uint8 else pixels
    except Exception as error:  # decoders end in any kind of error for a damaged file
        raise ValueError(f"{path} cannot be read as an image: {error}") from error


def read_values(path: str | Path) -> Shaped[np.ndarray, "height width 3"]:
    """Read an image file as `read_image` does, without stretching it.

    Raises:
      ValueError: as `read_image`.
    """
    try:
        return _read(path, turned=True)
    except Exception as error:
        raise ValueError(f"{path} cannot be read as an image: {error}") from error


def rgb_pixels(image: Any) -> np.ndarray:
    """Return the pixels of a file, of a PIL image, or of whatever `np.asarray` makes an array of.

    A PIL image becomes RGB as a file does, but is not turned: its pixels are those that PIL shows.

    Raises:
      ValueError: for a file that cannot be read, or something that is no array.
    """
    if isinstance(image, (str, os.PathLike)):
        return read_image(Path(image))
    if isinstance(image, Image.Image):
        pixels = _rgb(image, _is_wide(image))
        return stretched(pixels) if pixels.dtype != np.uint8 else pixels
    try:
        return np.asarray(image)
    except Exception as error:  # whatever another library's array raises
        raise ValueError(
            f"The image must be an array, a PIL image or a file, got {describe(image)}: {error}"
        ) from error


def stored_size(path: Path) -> tuple[Size, bool]:
    """Return height and width of an image file as it is stored, and whether its orientation swaps them.

    The header alone is read.

    Raises:
      ValueError: for a file that is no image.
    """
    try:
        if path.suffix.lower() in TIFF:
            with tifffile.TiffFile(path) as file:
                page = file.pages.first
                if page.dtype not in (np.uint8, np.bool_):
                    return (page.imagelength, page.imagewidth), False
        with Image.open(path) as image:
            return (image.height, image.width), image.getexif().get(ORIENTATION, 1) >= 5
    except Exception as error:  # decoders end in any kind of error for a damaged file
        raise ValueError(f"{path} cannot be read as an image: {error}") from None


def is_wide(path: Path) -> bool:
    """Return whether an image's pixels have more than 8 bits, so that `read_image` stretches them."""
    if path.suffix.lower() in TIFF:
        with tifffile.TiffFile(path) as file:
            return file.pages.first.dtype not in (np.uint8, np.bool_)
    with Image.open(path) as image:
        return _is_wide(image)


def stretched(values: Num[np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape"]:
    """Return numbers of any range from 0 (the smallest) to 255 (the largest); zeros where all are the same.

    Raises:
      ValueError: for NaN or infinity.
    """
    low, high = values.min(), values.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError("some of its pixels are NaN or infinite.")
    scale = 255 / (float(high) - float(low)) if high > low else 0.0
    values = values.astype(np.float32 if values.dtype == np.uint16 else np.float64)
    return ((values - low) * scale + 0.5).astype(np.uint8)


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
