"""What each family's tensors are called, how they are laid out, and what their settings are. Nothing here reads a file.

The room may use the settings of decoder and encoders, and `sam_jax.errors`.
"""
