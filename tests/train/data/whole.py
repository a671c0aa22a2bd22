"""What holds of any data set, however broken."""

from collections.abc import Callable
from pathlib import Path
from typing import Any


def assert_masks_or_one_error(open_it: Callable[[], Any], folder: Path, size: tuple[int, int]) -> None:
    """Every image has masks of this size with pixels, or opening ends in a ValueError that names a file."""
    try:
        source, problem = open_it(), ""
    except ValueError as error:
        source, problem = [], str(error)
    assert len(source) or str(folder) in problem
    for i in range(len(source)):
        masks = source[i].masks
        assert masks.shape[1:] == size
        assert masks.any((1, 2)).all()
