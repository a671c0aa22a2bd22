"""PyTorch checkpoints to Flax variables and back, without PyTorch and without JAX."""

from sam_jax.convert.encoders import encoder_from_torch, encoder_to_torch, identify_encoder
from sam_jax.convert.reader import open_checkpoint, read_tensors
from sam_jax.convert.state_dict import from_torch, identify, to_torch
from sam_jax.convert.tables.settings import own_metadata
from sam_jax.convert.writer import write_tensors

__all__ = [
    "encoder_from_torch",
    "encoder_to_torch",
    "from_torch",
    "identify",
    "identify_encoder",
    "open_checkpoint",
    "own_metadata",
    "read_tensors",
    "to_torch",
    "write_tensors",
]
