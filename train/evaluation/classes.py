"""How good masks of classes are: the IoU of each class over all pixels of all images, as for semantic segmentation."""

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool
from PIL import Image

from sam_jax.batch.predict import predict_masks
from sam_jax.decoder.model import Sam, Variables
from sam_jax.images.draw import draw_everything, side_by_side, stacked
from sam_jax.images.pixels import EncodedImage, full_size_masks
from sam_jax.train.data.examples import Example, encoded_image
from sam_jax.train.evaluation.report import write_evaluation
from sam_jax.train.user.simulate import whole_images

SAMPLES = 4
"""Images that the report's picture shows."""


@dataclasses.dataclass(frozen=True)
class ClassReport:
    """IoUs of classes.

    Attributes:
      images: how many there were.
      present: images that have each class.
      iou: of each class, over the pixels of all images together; None where no image and no mask has it.
      mean: of these IoUs.
      samples: pictures: the image, its classes, and the masks.
    """

    images: int
    present: tuple[int, ...]
    iou: tuple[float | None, ...]
    mean: float
    samples: tuple[Image.Image, ...] = dataclasses.field(default=(), repr=False, compare=False)

    def to_json(self) -> str:
        """Return the numbers as JSON."""
        return json.dumps({name: value for name, value in vars(self).items() if name != "samples"}, indent=2)

    def save(self, folder: Path, *, overwrite: bool = False) -> None:
        """Write a folder with `evaluation.json` and `evaluation.png`.

        Raises:
          FileExistsError: if it exists already, unless told to overwrite.
        """
        write_evaluation(folder, self.to_json(), self.picture(), overwrite)

    def picture(self) -> Image.Image:
        """Return the samples below each other."""
        return stacked(self.samples)


def evaluate_classes(model: Sam, variables: Variables, examples: Iterable[Example]) -> ClassReport:
    """Return how good masks 1, 2, ... are as classes, each image asked for once, with a box around all of it.

    Args:
      model: the decoder.
      variables: its variables.
      examples: encoded images, with a mask of each class.

    Raises:
      ValueError: for an example that is not encoded or has another number of classes, or none with a class.
    """
    number = model.config.multimask_outputs
    shared, either, present = (np.zeros(number, np.int64) for _ in range(3))
    images, samples = 0, []
    for example in examples:
        images += 1
        if len(example.masks) != number:
            raise ValueError(f"{example.name} has {len(example.masks)} classes, but the decoder has {number} masks.")
        masks = class_masks(model, variables, encoded_image(example))
        shared += (masks & example.masks).sum((1, 2))
        either += (masks | example.masks).sum((1, 2))
        present += example.masks.any((1, 2))
        if len(samples) < SAMPLES:
            samples.append(_sample(example, masks))
    if not present.any():
        raise ValueError("The examples to evaluate on have no class.")
    ious = [int(both) / int(all_) if all_ else None for both, all_ in zip(shared, either, strict=True)]
    mean = float(np.mean([iou for iou in ious if iou is not None]))
    return ClassReport(images, tuple(present.tolist()), tuple(ious), mean, tuple(samples))


def class_masks(model: Sam, variables: Variables, image: EncodedImage) -> Bool[np.ndarray, "k height width"]:
    """Return masks 1, 2, ... of a whole image, at its size."""
    embedding = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), image.embedding)
    prompts = jax.tree.map(lambda x: x[0], whole_images(np.array([image.input_size])))
    prediction = predict_masks(model, variables, embedding, prompts)
    return full_size_masks(model.config, image, np.asarray(prediction.logits[0, 1:], np.float32))


def _sample(example: Example, masks: Bool[np.ndarray, "k height width"]) -> Image.Image:
    pictures = example.image, draw_everything(example.image, example.masks), draw_everything(example.image, masks)
    titles = example.name, "its classes", "the masks"
    return side_by_side([(title, Image.fromarray(picture)) for title, picture in zip(titles, pictures, strict=True)])
