"""The small SAM that the package ships: its settings, its beginning, and its training on drawn scenes."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp

from sam_jax.checkpoints import save
from sam_jax.config import SamConfig
from sam_jax.encoder_config import ViTConfig
from sam_jax.image_encoder import ImageEncoder
from sam_jax.manifest import Provenance
from sam_jax.model import Sam

IMAGE_SIZE = (128, 128)

ENCODER = ViTConfig(
    width=128, depth=6, heads=4, patch_size=8, window_size=8, global_blocks=(2, 5), out_width=64, image_size=IMAGE_SIZE
)
"""The image encoder: a ViT whose windows are quarters of the image."""
DECODER = SamConfig(
    width=64, heads=4, mlp_width=256, iou_head_width=64, image_size=IMAGE_SIZE, grid_size=ENCODER.grid_size
)
"""The decoder, as deep as the full one and a quarter as wide."""


def start(folder: Path, seed: int = 0) -> None:
    """Write the untrained checkpoint of a seed, which `sam_jax.load` and `sam_jax.load_encoder` read.

    Args:
      folder: to make.
      seed: of the random numbers.
    """
    of_decoder, of_encoder, of_positions = jax.random.split(jax.random.key(seed), 3)
    model, encoder = Sam(DECODER), ImageEncoder(ENCODER)
    encoder_variables = jax.jit(encoder.init)(of_encoder, jnp.zeros((*IMAGE_SIZE, 3)))
    # Zero for a checkpoint to be loaded over; apart, the tokens of a plain image can be told.
    positions = encoder_variables["params"]["position_embedding"]
    encoder_variables["params"]["position_embedding"] = 0.02 * jax.random.normal(of_positions, positions.shape)
    provenance = Provenance(source=f"untrained, of seed {seed}")
    save(folder, model, model.init(of_decoder), encoder, encoder_variables, provenance=provenance)
