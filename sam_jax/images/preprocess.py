"""From pixels to the encoder's input frame: resize the longest side, normalise, pad.

The official code is `ResizeLongestSide.apply_image` in `segment_anything/utils/transforms.py` and `Sam.preprocess` in
`segment_anything/modeling/sam.py`.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8
from PIL import Image

from sam_jax.encoders.config import Preprocessing
from sam_jax.errors import describe
from sam_jax.images.resize import coverage, input_size_for
from sam_jax.images.size import Size

_MEAN = np.array([123.675, 116.28, 103.53], np.float32)
"""What SAM subtracts from a pixel's red, green and blue."""
_STD = np.array([58.395, 57.12, 57.375], np.float32)
"""What SAM divides by then."""
_MEAN_OF_1 = np.array([0.485, 0.456, 0.406], np.float32)
_STD_OF_1 = np.array([0.229, 0.224, 0.225], np.float32)
"""The same for pixels from 0 to 1, as SAM 2 has it."""

_STRETCHED = ("medsam", "sam2", "medsam2", "efficient_sam")
"""Where the whole frame is filled, whatever the image's proportions."""


def prepare(
    image: UInt8[np.ndarray, "height width 3"], image_size: Size, preprocessing: Preprocessing = "sam"
) -> tuple[Float[np.ndarray, "{image_size[0]} {image_size[1]} 3"], Size]:
    """Return the encoder's frame of an image, and the size of the image in it.

    - `sam`: bit for bit what the official predictor makes of it. PIL's antialiased bilinear resize of 8-bit pixels to
      `input_size_for`, then normalised by SAM's mean and deviation, then zeros at the bottom and the right. MobileSAM,
      SAM-HQ and most others do the same.
    - `lite_medsam`: the mean over the area that each new pixel covers, to `input_size_for`; then scaled so that the
      image's darkest value is 0 and its brightest 1; then zeros. LiteMedSAM's own resize, OpenCV's, is the same but for
      rounding where images are made smaller (`CVPR24_LiteMedSAM_infer.py` in `bowang-lab/MedSAM`).
    - `medsam`: stretched to the whole frame by PIL's bicubic resize, then scaled in the same way. MedSAM's own resize
      is scikit-image's; the pixels of two photographs differ by 0.5 to 1.7 of 255 on average (`MedSAM_Inference.py`).
    - `sam2`: pixels from 0 to 1, as floats stretched to the whole frame by an antialiased bilinear resize, then
      normalised (`sam2/utils/transforms.py`). Hugging Face's processor resizes 8-bit pixels: up to one level of 255
      apart.
    - `medsam2`: stretched to the whole frame by PIL's bicubic resize of 8-bit pixels, then normalised as for `sam2`
      (`medsam2_infer_CT_lesion_npz_recist.py` in `bowang-lab/MedSAM2`).
    - `efficient_sam`: stretched to the whole frame in floats, bilinear without antialias, then normalised as SAM does
      (`EfficientSam.preprocess` in `efficient_sam/efficient_sam.py`, whose mean and deviation are of pixels up to 1).
    - `micro_sam`: each channel's smallest value becomes 0 and its largest 255, then as `sam` (`_to_image` in
      `micro_sam/util.py`).

    Args:
      image: RGB.
      image_size: height and width of the padded frame, `encoder.config.image_size`.
      preprocessing: which of these, `encoder.config.preprocessing`.

    Raises:
      ValueError: if the image is not uint8 [height, width, 3].
    """
    check_pixels(image, np.uint8)
    if preprocessing == "efficient_sam":
        return (_bilinear(image, image_size) - _MEAN) / _STD, image_size
    original_size = image.shape[0], image.shape[1]
    height, width = size_in_frame(original_size, image_size, preprocessing)
    frame = np.zeros((*image_size, 3), np.float32)
    if preprocessing == "micro_sam":
        image, preprocessing = _each_from_0_to_255(image), "sam"
    if preprocessing == "sam2":
        frame[:] = (_resized_floats(image, (height, width)) / 255 - _MEAN_OF_1) / _STD_OF_1
        return frame, (height, width)
    if preprocessing == "lite_medsam":
        resized = _mean_of_area(image, (height, width))
    else:
        kind = Image.Resampling.BILINEAR if preprocessing == "sam" else Image.Resampling.BICUBIC
        resized = np.asarray(Image.fromarray(image).resize((width, height), kind), np.float32)
    normalised = preprocessing in ("sam", "medsam2")
    frame[:height, :width] = (resized - _MEAN) / _STD if normalised else _from_0_to_1(resized)
    return frame, (height, width)


def size_in_frame(original_size: Size, frame: Size, preprocessing: Preprocessing = "sam") -> Size:
    """Return the size that an image has in a frame before padding: all of it where `prepare` stretches the image.

    Args:
      original_size: height and width of the image.
      frame: height and width of the encoder's frame or of that in which prompts live.
      preprocessing: as for `prepare`.
    """
    return frame if preprocessing in _STRETCHED else input_size_for(original_size, frame)


def _resized_floats(
    image: UInt8[np.ndarray, "height width 3"], size: Size
) -> Float[np.ndarray, "{size[0]} {size[1]} 3"]:
    """The image resized without rounding: PIL rounds pixels of 8 bits, and not floats, a channel at a time."""
    height, width = size
    channels = (Image.fromarray(channel) for channel in np.moveaxis(image.astype(np.float32), -1, 0))
    resized = [channel.resize((width, height), Image.Resampling.BILINEAR) for channel in channels]
    return np.stack([np.asarray(channel) for channel in resized], -1)


def _mean_of_area(image: UInt8[np.ndarray, "height width 3"], size: Size) -> Float[np.ndarray, "{size[0]} {size[1]} 3"]:
    """The mean over the area that each pixel of the new size covers, as a whole number."""
    rows, columns = (coverage(new, new, new, original) for new, original in zip(size, image.shape[:2], strict=True))
    return np.floor(np.einsum("ah,hwc,bw->abc", rows, image.astype(np.float32), columns, optimize=True) + 0.5)


def _bilinear(image: UInt8[np.ndarray, "height width 3"], size: Size) -> Float[np.ndarray, "{size[0]} {size[1]} 3"]:
    """The mean of the two nearest rows and columns, by distance from half-pixel centres, clamped at the edges."""
    pixels = image.astype(np.float32)
    for axis, new in enumerate(size):
        old = pixels.shape[axis]
        place = np.maximum((np.arange(new) + 0.5) * old / new - 0.5, 0)
        near = place.astype(int)
        share = np.expand_dims((place - near).astype(np.float32), tuple({0, 1, 2} - {axis}))
        far = np.minimum(near + 1, old - 1)
        pixels = pixels.take(near, axis) * (1 - share) + pixels.take(far, axis) * share
    return pixels


def _each_from_0_to_255(image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
    low, high = image.min((0, 1)), image.max((0, 1))
    return ((image - low) * (255 / np.maximum(high - low, 1, dtype=np.float64))).astype(np.uint8)


def _from_0_to_1(pixels: Float[np.ndarray, "h w 3"]) -> Float[np.ndarray, "h w 3"]:
    low, high = pixels.min(), pixels.max()
    return (pixels - low) / max(high - low, np.float32(1e-8))


def prepare_on_device(
    image: UInt8[Array, "height width 3"] | Float[Array, "height width 3"], image_size: Size
) -> Float[Array, "{image_size[0]} {image_size[1]} 3"]:
    """Return the frame of `prepare` as SAM has it, for an image on a device.

    It can be jitted, with a compilation per image size.

    The same filter in floats, rounded to whole numbers after each axis as PIL does, along the width first. In
    photographs of 333 to 4,000 pixels at most 2 % of the values differ, mostly far fewer: by one level of 255, which is
    0.018 after normalising, and 1 in 100,000 by two. PIL takes the height first in some small images; then a quarter of
    the values differ by one level.

    Args:
      image: RGB from 0 to 255, as uint8 or floats. In the frame it has the size `input_size_for` its own.
      image_size: height and width of the padded input frame.

    Raises:
      ValueError: if the image is not [height, width, 3].
    """
    check_pixels(image, np.uint8, np.floating)
    height, width = input_size_for((image.shape[0], image.shape[1]), image_size)
    pixels = image.astype(jnp.float32)
    for shape in ((image.shape[0], width, 3), (height, width, 3)):
        if shape != pixels.shape:
            pixels = jax.image.resize(pixels, shape, "linear", antialias=True, precision=jax.lax.Precision.HIGHEST)
            pixels = jnp.floor(pixels + 0.5)
    normalised = (pixels - _MEAN[None, None]) / _STD[None, None]
    return jnp.pad(normalised, ((0, image_size[0] - height), (0, image_size[1] - width), (0, 0)))


def check_pixels(image: np.ndarray | Array, *dtypes: type) -> None:
    """Raise a ValueError if an image is not [height, width, 3] with some pixels, of one of the types."""
    fits = image.ndim == 3 and image.shape[-1] == 3 and 0 not in image.shape
    if not fits or not any(jnp.issubdtype(image.dtype, dtype) for dtype in dtypes):
        kinds = " or ".join({np.uint8: "uint8", np.floating: "float"}[dtype] for dtype in dtypes)
        raise ValueError(f"The image must be RGB, {kinds} [height, width, 3], got {describe(image)}.")
