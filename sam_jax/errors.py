"""What errors say: how a value looks in a message."""

from typing import Any


class CheckpointError(ValueError):
    """A checkpoint that cannot be used: not one, damaged, hostile, or of another model."""


def describe(value: Any) -> str:
    """Return a short text for a value in an error message: shape and dtype of an array, else its repr."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"an array of shape {tuple(value.shape)} and dtype {value.dtype}"
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def in_words(size: tuple[int, int]) -> str:
    """Return the height and width of an image for an error message."""
    return f"{size[0]} pixels high and {size[1]} wide"
