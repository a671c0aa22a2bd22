"""What tests of the reader share: read some bytes, or get the words with which they are refused."""

from pathlib import Path

import numpy as np
import pytest

from sam_jax.convert.reader import open_checkpoint, read_tensors
from sam_jax.convert.reading.stored_tensor import Checkpoint
from sam_jax.errors import CheckpointError


def write(folder: Path, content: bytes, name: str = "some.pth") -> Path:
    """Write a file and return its path."""
    path = folder / name
    path.write_bytes(content)
    return path


def read(folder: Path, content: bytes) -> dict[str, np.ndarray]:
    """Read a file of this content."""
    return read_tensors(write(folder, content))


def opened(folder: Path, content: bytes) -> Checkpoint:
    """Open a file of this content."""
    return open_checkpoint(write(folder, content))


def refusal(path: Path) -> str:
    """Return the message with which a file is refused, which must name it and come from a check made for it."""
    with pytest.raises(CheckpointError) as caught:
        read_tensors(path)
    assert isinstance(caught.value.__cause__, CheckpointError | OSError)
    assert str(caught.value).removeprefix(str(path)).isprintable()
    assert str(caught.value).startswith(f"{path}: ")
    return str(caught.value).removeprefix(f"{path}: ")


def refused(folder: Path, content: bytes) -> str:
    """Return the message with which a file of this content is refused."""
    return refusal(write(folder, content))
