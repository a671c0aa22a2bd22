"""Checkpoint files to named tensors. Nothing here knows what SAM is, and nothing here runs a pickle.

The room may use `sam_jax.errors`.
"""
