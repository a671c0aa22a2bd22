"""A small decoder with random weights: norms and biases random too, so that nothing is tested with ones and zeros."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sam_jax import Sam
from sam_jax.config import TINY
from sam_jax.decoder.features import features_of, map_shapes

MODEL = Sam(TINY)

SAM2 = {
    "high_resolution": True,
    "object_score": True,
    "iou_sigmoid": True,
    "pad_boxes": True,
    "dynamic_multimask": True,
    "postprocessing": "sam2",
}
FAMILIES = {"sam": {}, "sam_hq": {"hq": True, "early_width": 24}, "sam2": SAM2, "hq_sam2": SAM2 | {"hq": True}}
FAMILIES |= {"efficient_sam": {"efficient_sam": True, "postprocessing": "efficient_sam"}}
"""Settings in which the decoders of the families differ."""

SEVERAL_MAPS = ("sam_hq", "sam2")
"""The families whose images have several maps, each with maps and outputs of its own."""

TRANSPOSED = ("upscaling", "of_embedding", "of_early")
"""In the paths of transposed convolutions, whose kernels have their inputs last."""


def family_model(family: str) -> Sam:
    """A small decoder of a family; with one block, it compiles faster."""
    return Sam(dataclasses.replace(TINY, depth=1, **FAMILIES[family]))


def random_variables(model: Sam = MODEL, seed: int = 0, dtype: Any = np.float32) -> dict[str, Any]:
    """Kernels with unit gain, norm scales around 1, everything else of deviation 0.3."""
    rng = np.random.default_rng(seed)

    def draw(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> jax.Array:
        name = path[-1].key
        values = rng.normal(size=leaf.shape)
        if name == "kernel":
            fan_in = (
                leaf.shape[-1]
                if any(part in str(path) for part in TRANSPOSED)
                else np.prod(leaf.shape[-3 if leaf.ndim == 4 else -2 : -1])
            )
            values /= np.sqrt(fan_in * (leaf.shape[0] * leaf.shape[1] if "downscaling" in str(path) else 1))
        elif name == "scale":
            values = 1 + 0.2 * values
        elif name in ("bias", "no_mask_embedding"):
            values *= 0.3
        return jnp.asarray(values.astype(dtype))

    shapes = jax.eval_shape(model.init, jax.random.key(0))
    return jax.tree_util.tree_map_with_path(draw, shapes)


def random_embedding(*images: int, model: Sam = MODEL, seed: int = 1) -> jax.Array:
    """Image embeddings of deviation 1."""
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.normal(size=(*images, *model.config.grid_size, model.config.width)).astype(np.float32))


def random_features(*images: int, model: Sam = MODEL, seed: int = 1) -> Any:
    """All maps that a model takes of images, of deviation 1."""
    rng = np.random.default_rng(seed)
    maps = {
        name: jnp.asarray(rng.normal(size=(*images, *shape)).astype(np.float32))
        for name, shape in map_shapes(model.config).items()
    }
    return features_of(maps)
