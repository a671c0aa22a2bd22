"""Images and pixels in, masks out: what `SamPredictor` of the official package does (`segment_anything/predictor.py`).

Nothing here computes: an image is prepared, encoded, decoded and resized by the package's functions, and `Predictor`
remembers no more than `EncodedImage`s.
"""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from sam_jax.automatic.config import AutomaticConfig
from sam_jax.automatic.grid import Crop
from sam_jax.automatic.records import Record, generate_records
from sam_jax.decoder.model import Sam, Variables
from sam_jax.encoders.encoder import Encoder
from sam_jax.files.checkpoints import load, load_encoder
from sam_jax.images.pixels import EncodedImage, Prediction, check_fit, encode_image, predict_batch, predict_image
from sam_jax.images.preprocess import check_pixels
from sam_jax.images.read import rgb_pixels
from sam_jax.prompts import AnyArray, Ragged

ImageLike = UInt8[AnyArray, "_height _width 3"] | Image.Image | str | os.PathLike[str] | EncodedImage
"""RGB pixels, a PIL image, a file, or an image that is encoded already."""


class Predictor:
    """Encode an image once, then ask for objects in its pixels.

    The methods are thin: `encode_image`, `predict_image` and `predict_batch` are the same as functions.

    Attributes:
      images: what `set_image` or `set_images` was given last, encoded.
    """

    def __init__(self, model: Sam, variables: Variables, encoder: Encoder, encoder_variables: Variables) -> None:
        """Put a decoder and an encoder together.

        Args:
          model: the decoder.
          variables: its variables.
          encoder: the image encoder.
          encoder_variables: its variables.

        Raises:
          ValueError: if the encoder's embeddings are not what the decoder takes.
        """
        check_fit(model.config, encoder)
        self.model, self.variables = model, variables
        self.encoder, self.encoder_variables = encoder, encoder_variables
        self.images: tuple[EncodedImage, ...] = ()

    @classmethod
    def load(
        cls, checkpoint: str | os.PathLike[str], *, family: str | None = None, prefix: str | None = None
    ) -> "Predictor":
        """Read both parts of a checkpoint of any kind; arguments and errors are those of `sam_jax.load`."""
        choice = {"family": family, "prefix": prefix}
        return cls(*load(checkpoint, **choice), *load_encoder(checkpoint, **choice))

    def set_image(self, image: ImageLike) -> EncodedImage:
        """Encode an image, make it the one that `predict` is about, and return it for later.

        Args:
          image: RGB pixels [height, width, 3] from 0 to 255, a PIL image, a file, or what an earlier call returned.

        Raises:
          ValueError: for an array that is no such image, or a file that cannot be read.
        """
        return self.set_images([image])[0]

    def set_images(self, images: Sequence[ImageLike]) -> tuple[EncodedImage, ...]:
        """Encode images of any sizes, one after the other, and make them those that `predict_batch` is about."""
        encoded = tuple(
            image if isinstance(image, EncodedImage) else encode_image(self.encoder, self.encoder_variables, image)
            for image in images
        )
        self.images = encoded
        return encoded

    def predict(
        self,
        points: Ragged | None = None,
        labels: Ragged | None = None,
        boxes: Ragged | None = None,
        mask: Ragged | None = None,
        multimask: bool = True,
    ) -> Prediction:
        """Return masks, scores and low-res logits for one object, or for several at once.

        All that is given for one object belongs together. For several objects, every argument has one more axis (or
        list) in front, with one entry per object, and so has every result: five boxes [5, 4] are five objects, each
        with its own masks. In lists, objects may have different numbers of clicks, and None where they have nothing.

        Args:
          points: clicks (x, y) in pixels of the image: [click, 2], or [object, click, 2].
          labels: 1 foreground, 0 background: [click], or [object, click].
          boxes: (x0, y0, x1, y1) in pixels of the image: [4], or [object, 4].
          mask: low-res logits [4h, 4w], such as one of an earlier result, or a mask of bools at the image's size;
            either may have the axis of objects. For one object, the official [1, 4h, 4w] is taken, too.
          multimask: return the three masks for an ambiguous prompt, or the one mask for a clear prompt.

        Raises:
          RuntimeError: if no image, or more than one, has been set.
          ValueError: for prompts that do not fit the image or each other.
        """
        if len(self.images) != 1:
            raise RuntimeError(
                f"predict is about one image, but {len(self.images)} are set: call set_image first, "
                "or predict_batch after set_images."
            )
        return predict_image(self.model, self.variables, self.images[0], points, labels, boxes, mask, multimask)

    def predict_batch(
        self,
        points: Sequence[Ragged | None] | None = None,
        labels: Sequence[Ragged | None] | None = None,
        boxes: Sequence[Ragged | None] | None = None,
        mask: Sequence[Ragged | None] | None = None,
        multimask: bool = True,
    ) -> list[Prediction]:
        """Return a prediction for each image that has been set, all decoded in one call.

        Args:
          points: for each image, what `predict` takes; None for an image without.
          labels: likewise.
          boxes: likewise.
          mask: likewise.
          multimask: as in `predict`.

        Raises:
          RuntimeError: if no image has been set.
          ValueError: for prompts that do not fit the images or each other.
        """
        if not self.images:
            raise RuntimeError("No image is set: call set_image or set_images before predicting.")
        return predict_batch(self.model, self.variables, self.images, points, labels, boxes, mask, multimask)

    def generate(self, image: ImageLike, *, region: Ragged | None = None, **settings: Any) -> list[Record]:
        """Return a record of every object of an image, without a prompt: what the official generator returns.

        A grid of points is asked, and of the masks only those stay that are sure, stable, not cut off by a crop, and
        no near-copies of better ones (`SamAutomaticMaskGenerator` in `segment_anything/automatic_mask_generator.py`).
        A point has three masks, with SAM-HQ one, as in that family's own generator.

        Args:
          image: as for `set_image`; without crops, an encoded image, too. `images` stays as it is.
          region: points are asked only in it: a mask of bools of the image's size, or a box (x0, y0, x1, y1).
          **settings: fields of `sam_jax.AutomaticConfig`, which have the official names and defaults.

        Returns:
          For each mask a dict: `segmentation` (bools of the image's size, or run lengths), `area` in pixels, `bbox`
          (x, y, width, height; the width is that of the official code, one less than the columns), `predicted_iou`,
          `point_coords` ([[x, y]], the point that was asked), `stability_score`, `crop_box` (x, y, width, height). The
          best come first; with crops, those of the smallest crops.

        Raises:
          ValueError: for settings that mean nothing, an array that is no such image, a file that cannot be read, or a
            region that does not fit the image.
        """
        config = AutomaticConfig(**settings)
        if isinstance(image, EncodedImage):
            if config.layers:
                crops = "crop_n_layers" if config.tile is None else "tile"
                raise ValueError(
                    f"Crops are encoded one by one, so {crops} needs the image's pixels, not an EncodedImage."
                )
            return generate_records(self.model, self.variables, image.original_size, lambda _: image, config, region)
        pixels = rgb_pixels(image)
        check_pixels(pixels, np.uint8)

        def encode(crop: Crop) -> EncodedImage:
            part = pixels[crop.y0 : crop.y1, crop.x0 : crop.x1]
            return encode_image(self.encoder, self.encoder_variables, part)

        height, width, _ = pixels.shape
        return generate_records(self.model, self.variables, (height, width), encode, config, region)
