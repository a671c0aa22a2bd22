"""Image files that are named on a command line."""

import glob
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool
from PIL import Image

from sam_jax.images.read import read_values


def image_files(paths: Sequence[Path]) -> list[Path]:
    """Return the given files, and in the place of a folder the images in it by name, without its subfolders'.

    A path with *, ? or [...] stands for the files that it matches, where a shell has not put them in its place.

    Raises:
      ValueError: for no path, one where nothing is, or a folder without an image.
    """
    suffixes = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    files: list[Path] = []
    if not paths:
        raise ValueError("No image is given: name image files, or folders of them.")
    for path in paths:
        named = [] if path.exists() else sorted(map(Path, glob.glob(str(path), recursive=True)))
        matched = [file for file in named if _is_image(file, suffixes)]
        if matched:
            files += matched
            continue
        if not path.exists():
            raise ValueError(f"There is no file or folder {path}.")
        found = sorted(file for file in path.iterdir() if _is_image(file, suffixes)) if path.is_dir() else [path]
        if not found:
            raise ValueError(f"There is no image in the folder {path}.")
        files += found
    return files


def _is_image(file: Path, suffixes: set[str]) -> bool:
    return file.suffix.lower() in suffixes and not file.name.startswith(".")


def read_mask(path: Path) -> Bool[np.ndarray, "height width"]:
    """Read a mask: True where a picture is not black.

    Raises:
      ValueError: naming the file, if it cannot be read.
    """
    return (read_values(path) != 0).any(-1)
