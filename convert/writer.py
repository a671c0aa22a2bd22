"""Writing tensors to the files that PyTorch programs read."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from sam_jax.atomic import written_whole

TORCH_SUFFIXES = (".pth", ".pt", ".bin")
SUFFIXES = (".safetensors", *TORCH_SUFFIXES)
"""What a file's name must end in; the rest of it is free."""


def write_tensors(
    path: str | Path,
    tensors: Mapping[str, np.ndarray],
    *,
    metadata: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> None:
    """Write tensors to a `.safetensors` file, or with PyTorch to a `.pth`; the inverse of `read_tensors`.

    The file appears whole or not at all.

    Args:
      path: the file to make.
      tensors: name -> array, as `to_torch` returns them.
      metadata: texts for the header of a `.safetensors` file; a `.pth` has no place for them.
      overwrite: replace a file that is at `path` already.

    Raises:
      ValueError: if `path` ends in none of `SUFFIXES`.
      FileExistsError: if `path` exists and `overwrite` is false, or is a folder.
      ModuleNotFoundError: if `path` is a `.pth` and PyTorch is not installed.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path} must end in one of {', '.join(SUFFIXES)}.")
    arrays = {name: np.asarray(array, order="C") for name, array in tensors.items()}  # safetensors ignores strides
    with written_whole(path, overwrite=overwrite) as file:
        if path.suffix == ".safetensors":
            # transformers reads no file that does not say "pt"; save_file would make one that nobody else may read
            file.write_bytes(save(arrays, {"format": "pt", **(metadata or {})}))
        else:
            _save_with_torch(arrays, file)


def _save_with_torch(arrays: dict[str, np.ndarray], file: Path) -> None:
    try:
        import torch
        from safetensors.torch import load
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            f"Writing a {file.suffix} needs PyTorch, which is not installed; writing a .safetensors does not."
        ) from None
    # through safetensors, because torch.from_numpy does not know bfloat16
    torch.save(load(save(arrays)), file)
