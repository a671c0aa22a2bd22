"""From an image file or array to the encoder's input frame: read, resize the longest side, normalise, pad.

The official code is `ResizeLongestSide.apply_image` in `segment_anything/utils/transforms.py` and `Sam.preprocess` in
`segment_anything/modeling/sam.py`.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8
from PIL import Image, ImageOps

from sam_jax.errors import describe
from sam_jax.resize import Size, input_size_for

Color = tuple[float, float, float]
"""Red, green and blue, in 0 to 255."""

MEAN: Color = (123.675, 116.28, 103.53)
"""What SAM subtracts from a pixel."""
STD: Color = (58.395, 57.12, 57.375)
"""What SAM divides by then."""


def read_image(path: str | Path) -> UInt8[np.ndarray, "height width 3"]:
    """Read an image file as RGB, turned as its EXIF orientation says.

    Grey and palettes become RGB; 16-bit grey is scaled by 255 / 65535, so that nothing is clipped; alpha is dropped, as
    OpenCV and PIL's `convert("RGB")` do: a transparent pixel keeps the colour that is stored. Of a file with several
    frames it is the first.

    Raises:
      ValueError: naming the file, if it is missing, damaged, too large for PIL, or of a kind whose range is not known,
        such as floats.
    """
    try:
        with Image.open(path) as image:
            return np.array(_to_rgb(ImageOps.exif_transpose(image)))
    except Exception as error:  # PIL's decoders end in any kind of error for a damaged file
        raise ValueError(f"{path} cannot be read as an image: {error}") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image, np.float32) * (255 / 65535) + 0.5).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"its pixels are 32-bit numbers (mode {image.mode}) of no known range; make them 8-bit first.")
    # PIL warns where a palette with alpha becomes RGB in one step.
    return image.convert("RGBA").convert("RGB") if image.has_transparency_data else image.convert("RGB")


def prepare(
    image: UInt8[np.ndarray, "height width 3"], image_size: Size, *, mean: Color = MEAN, std: Color = STD
) -> tuple[Float[np.ndarray, "{image_size[0]} {image_size[1]} 3"], Size]:
    """Return the encoder's input frame of an image, and the size of the image in it: bit for bit the official one.

    PIL's antialiased bilinear resize of 8-bit pixels to `input_size_for`, then normalised, then zeros at the bottom and
    the right. MobileSAM, SAM-HQ and most others do the same. MedSAM and LiteMedSAM scale each image to 0 to 1 instead:
    `mean` its minimum and `std` its maximum less that, three times each. SAMed has `mean` 0 and `std` 1. MedSAM and
    SAM-Med2D also stretch the image to a square, which is for the caller to do before.

    Args:
      image: RGB.
      image_size: height and width of the padded input frame, `encoder.config.image_size`.
      mean: subtracted from each pixel.
      std: what the difference is divided by.

    Raises:
      ValueError: if the image is not uint8 [height, width, 3].
    """
    _check(image, np.uint8)
    height, width = input_size_for((image.shape[0], image.shape[1]), image_size)
    resized = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
    frame = np.zeros((*image_size, 3), np.float32)
    frame[:height, :width] = (np.asarray(resized, np.float32) - np.array(mean, np.float32)) / np.array(std, np.float32)
    return frame, (height, width)


def prepare_on_device(
    image: UInt8[Array, "height width 3"] | Float[Array, "height width 3"],
    image_size: Size,
    *,
    mean: Color = MEAN,
    std: Color = STD,
) -> Float[Array, "{image_size[0]} {image_size[1]} 3"]:
    """Return the frame of `prepare`, for an image on a device; can be jitted, with a compilation per image size.

    The same filter in floats, rounded to whole numbers after each axis as PIL does, along the width first. In
    photographs of 333 to 4,000 pixels at most 2 % of the values differ, mostly far fewer: by one level of 255, which is
    0.018 after normalising, and 1 in 100,000 by two. PIL takes the height first in some small images; then a quarter of
    the values differ by one level.

    Args:
      image: RGB from 0 to 255, as uint8 or floats. In the frame it has the size `input_size_for` its own.
      image_size: height and width of the padded input frame.
      mean: subtracted from each pixel.
      std: what the difference is divided by.

    Raises:
      ValueError: if the image is not [height, width, 3].
    """
    _check(image, np.uint8, np.floating)
    height, width = input_size_for((image.shape[0], image.shape[1]), image_size)
    pixels = image.astype(jnp.float32)
    for shape in ((image.shape[0], width, 3), (height, width, 3)):
        if shape != pixels.shape:
            pixels = jax.image.resize(pixels, shape, "linear", antialias=True, precision=jax.lax.Precision.HIGHEST)
            pixels = jnp.floor(pixels + 0.5)
    normalised = (pixels - jnp.array(mean, jnp.float32)) / jnp.array(std, jnp.float32)
    return jnp.pad(normalised, ((0, image_size[0] - height), (0, image_size[1] - width), (0, 0)))


def _check(image: np.ndarray | Array, *dtypes: type) -> None:
    fits = image.ndim == 3 and image.shape[-1] == 3 and 0 not in image.shape
    if not fits or not any(jnp.issubdtype(image.dtype, dtype) for dtype in dtypes):
        kinds = " or ".join({np.uint8: "uint8", np.floating: "float"}[dtype] for dtype in dtypes)
        raise ValueError(f"The image must be RGB, {kinds} [height, width, 3], got {describe(image)}.")
