"""PyTorch checkpoints to Flax variables and back, without PyTorch and without JAX."""

from sam_jax.convert.reader import open_checkpoint, read_tensors
from sam_jax.convert.state_dict import from_torch, identify, to_torch
from sam_jax.convert.writer import write_tensors

__all__ = ["from_torch", "identify", "open_checkpoint", "read_tensors", "to_torch", "write_tensors"]
