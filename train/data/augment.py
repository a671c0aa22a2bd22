"""The same objects seen otherwise: flipped, turned, brighter or darker, with more or less contrast."""

import dataclasses

import numpy as np
from jaxtyping import UInt8

from sam_jax.train.config import Augmentation
from sam_jax.train.data.examples import Example


def augmented(example: Example, rng: np.random.Generator, augmentation: Augmentation) -> Example:
    """Return an example with its image, and its masks with it, changed at random.

    Args:
      example: not encoded.
      rng: random numbers.
      augmentation: what may change; what it leaves open does not.
    """
    image, masks = example.image, example.masks
    if augmentation.flips:
        down, across = rng.integers(2, size=2) * -2 + 1
        image, masks = image[::down, ::across], masks[:, ::down, ::across]
    if augmentation.turns:
        quarters = int(rng.integers(4))
        image, masks = np.rot90(image, quarters), np.rot90(masks, quarters, axes=(1, 2))
    image = _relit(image, rng, augmentation.brightness or 0.0, augmentation.contrast or 0.0)
    return dataclasses.replace(example, image=np.ascontiguousarray(image), masks=np.ascontiguousarray(masks))


def _relit(
    image: UInt8[np.ndarray, "height width 3"], rng: np.random.Generator, brightness: float, contrast: float
) -> UInt8[np.ndarray, "height width 3"]:
    """Scale an image's values around their mean, and shift them."""
    if not brightness and not contrast:
        return image
    shift, scale = 255 * rng.uniform(-brightness, brightness), 1 + rng.uniform(-contrast, contrast)
    levels = np.arange(256, dtype=np.float32)
    mean = image.mean()
    table = np.clip((levels - mean) * scale + mean + shift, 0, 255).round().astype(np.uint8)
    return table[image]
