"""Sizes of images. Importing this does not import JAX."""

Size = tuple[int, int]
"""(height, width) in pixels."""
