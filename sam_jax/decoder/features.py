"""What the decoder takes of an image: one map, or several where the family has more."""

from typing import Any

import jax.numpy as jnp
from flax import struct
from jaxtyping import Float

from sam_jax.config import SamConfig
from sam_jax.errors import describe
from sam_jax.prompts import AnyArray


@struct.dataclass
class ImageFeatures:
    """The maps of an image whose decoder reads more than the embedding; `*image` is empty, or one axis of images.

    Attributes:
      embedding: the image embedding.
      early: what SAM-HQ's encoder has after its first global block.
      stride_8: SAM 2's map at twice the embedding's resolution, ready to be added.
      stride_4: its map at four times the resolution.
    """

    embedding: Float[AnyArray, "*image h w c"]
    early: Float[AnyArray, "*image h w e"] | None = None
    stride_8: Float[AnyArray, "*image 2*h 2*w c//4"] | None = None
    stride_4: Float[AnyArray, "*image 4*h 4*w c//8"] | None = None


Features = Float[AnyArray, "*image h w c"] | ImageFeatures
"""The maps of an image: an array for those families that have the embedding alone, such as SAM."""

MAPS = ("embedding", "early", "stride_8", "stride_4")
"""The names of all maps, the embedding first."""


def maps_of(features: Any) -> dict[str, Any]:
    """Return the maps by name, without those that are not there."""
    if not isinstance(features, ImageFeatures):
        return {"embedding": features}
    return {name: value for name in MAPS if (value := getattr(features, name)) is not None}


def features_of(maps: dict[str, Any]) -> Any:
    """Return the features of these maps: the inverse of `maps_of`."""
    return maps["embedding"] if len(maps) == 1 else ImageFeatures(**maps)


def map_shapes(config: SamConfig) -> dict[str, tuple[int, int, int]]:
    """Return the shapes of the maps that a decoder takes of an image."""
    (h, w), c = config.grid_size, config.width
    shapes = {"embedding": (h, w, c)}
    if config.early_width:
        shapes["early"] = (h, w, config.early_width)
    if config.high_resolution:
        shapes |= {"stride_8": (2 * h, 2 * w, c // 4), "stride_4": (4 * h, 4 * w, c // 8)}
    return shapes


def example_features(config: SamConfig) -> Any:
    """Return zeros of the shapes that a decoder takes of an image."""
    return features_of({name: jnp.zeros(shape, jnp.float32) for name, shape in map_shapes(config).items()})


def check_maps(maps: dict[str, Any], wanted: dict[str, tuple[int, int, int]]) -> None:
    """Raise a ValueError where maps are not those that are wanted, or not of one number of images."""
    if set(maps) != set(wanted):
        raise ValueError(
            f"The decoder takes the maps {', '.join(wanted)} of an image, got {', '.join(maps)}. "
            "sam_jax.ImageFeatures holds several maps."
        )
    images = getattr(maps["embedding"], "shape", ())[:-3]
    for name, value in maps.items():
        shape = getattr(value, "shape", ())
        if len(shape) in (3, 4) and shape == (*images, *wanted[name]):
            continue
        what, (h, w, c) = "embeddings" if name == "embedding" else name, wanted[name]
        first = shape[-3:] == (c, h, w)
        hint = f" It is channels first, as in PyTorch: jnp.moveaxis({what}, -3, -1) makes it fit." if first else ""
        raise ValueError(f"{what} must be {[h, w, c]} (h, w, c) or [image, h, w, c], got {describe(value)}.{hint}")
