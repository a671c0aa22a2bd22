"""Opens any checkpoint file or Hugging Face folder as named tensors. Nothing in a file is run or believed unchecked."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np

from sam_jax.convert.reading.mapped_file import MappedFile, checkpoint_errors
from sam_jax.convert.reading.safetensors_file import is_safetensors, open_safetensors, parse_json
from sam_jax.convert.reading.stored_tensor import Checkpoint, StoredTensor
from sam_jax.convert.reading.torch_file import is_torch_legacy, open_torch_legacy, open_torch_zip
from sam_jax.convert.reading.zip_archive import SIGNATURE
from sam_jax.convert.tables.settings import OWN
from sam_jax.errors import CheckpointError, describe

_INDEX = ".index.json"
FOLDER_FILES = tuple(f"{name}{index}" for name in ("model.safetensors", "pytorch_model.bin") for index in ("", _INDEX))
"""What the weights of a Hugging Face folder are called, or the index of their parts; the first that is there counts."""

_MAX_JSON = 1 << 25

_HEAD = 512
_FOREIGN = {
    b"PK\x05\x06": "an empty zip archive",
    b"\x89HDF": "an HDF5 file",
    b"\x93NUMPY": "a numpy file",
    b"\x1f\x8b": "gzip: unpack it first",
    b"version https://git-lfs": "a Git LFS pointer, not the file that it points to: run `git lfs pull`",
    b"<": "a web page: the download has failed",
    b"\x80": "a plain pickle, not written by torch.save",
    b"\x08": "perhaps an ONNX model: find the PyTorch weights that it was made from",
}


def open_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Open a checkpoint without reading its numbers.

    Args:
      path: a `.pth`, `.pt`, `.bin` or `.safetensors` file, whatever its name, or a Hugging Face folder.

    Returns:
      Its tensors, to be read one by one, and what kind of file it is.

    Raises:
      CheckpointError: there is no such file, or it is damaged, hostile or of another kind. Nothing else is raised for
        any file.
    """
    path = Path(path)
    with checkpoint_errors(path):
        return _open_folder(path) if path.is_dir() else _open_file(path)


def read_tensors(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Read all tensors of a checkpoint, as they are stored.

    Args:
      path: as for `open_checkpoint`.

    Returns:
      Name -> read-only array, with the stored dtype (bfloat16 and float8 as in `ml_dtypes`). Arrays look into the
      mapped file, so they take no memory until they are used; the file must not change while they live.

    Raises:
      CheckpointError: as for `open_checkpoint`, or the bytes of a tensor are damaged.
    """
    return {name: tensor.read() for name, tensor in open_checkpoint(path).tensors.items()}


def _open_file(path: Path) -> Checkpoint:
    """Open a file by what is in it. A name can lie; only for a broken file does it help to say what it should be."""
    file = MappedFile(path)
    head = file.take(0, min(_HEAD, file.size))
    if head.startswith(SIGNATURE):
        return open_torch_zip(file)
    if is_torch_legacy(head):
        return open_torch_legacy(file)
    if is_safetensors(head, file.size) or path.suffix == ".safetensors":
        return open_safetensors(file, OWN)
    raise CheckpointError(f"This is no PyTorch checkpoint and no safetensors file, but {_foreign(head)}.")


def _foreign(head: bytes) -> str:
    """Name what a file is that begins so."""
    if head[257:262] == b"ustar":
        return "a tar archive; if PyTorch before 0.1.10 wrote it, load and save it again with PyTorch"
    kinds = (kind for start, kind in _FOREIGN.items() if head.startswith(start))
    return next(kinds, f"something else, which begins with {describe(head[:16])}")


def _open_folder(folder: Path) -> Checkpoint:
    """Open the weights of a Hugging Face folder, safetensors first, and its `config.json`."""
    names = [name for name in FOLDER_FILES if (folder / name).exists()]
    if not names:
        raise CheckpointError(f"The folder has none of the files {', '.join(FOLDER_FILES)}.")
    found = (_open_parts if names[0].endswith(_INDEX) else _open_part)(folder, names[0])
    settings = _read_json(folder / "config.json") if (folder / "config.json").exists() else found.settings
    return dataclasses.replace(found, container=f"Hugging Face folder ({found.container})", settings=settings)


def _open_part(folder: Path, name: str) -> Checkpoint:
    with checkpoint_errors(name):
        return _open_file(folder / name)


def _open_parts(folder: Path, index: str) -> Checkpoint:
    """Open weights that are spread over several files, by the index that says which tensor is where."""
    places = _read_json(folder / index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise CheckpointError(f"{index} has no weight_map.")
    for name in places.values():
        if not isinstance(name, str) or name != Path(name).name or "\\" in name or name in ("", ".", ".."):
            raise CheckpointError(f"{index} names {describe(name)}, which is no file of this folder.")
    parts = {name: _open_part(folder, name) for name in sorted(set(places.values()))}
    found = {(tensor, name) for name, part in parts.items() for tensor in part.tensors}
    _compare(set(places.items()), found, index)
    tensors: dict[str, StoredTensor] = {tensor: parts[name].tensors[tensor] for tensor, name in places.items()}
    kinds = {part.container for part in parts.values()}
    notes = tuple(f"{name}: {note}" for name, part in parts.items() for note in part.notes)
    return Checkpoint(tensors, f"{len(parts)} files, {', '.join(sorted(kinds))}", notes)


def _compare(wanted: set[tuple[str, str]], found: set[tuple[str, str]], index: str) -> None:
    for pairs, problem in ((wanted - found, "is not in"), (found - wanted, "is unexpected in")):
        if pairs:
            tensor, name = min(pairs)
            raise CheckpointError(f"Tensor {describe(tensor)} {problem} {describe(name)}, by {index}.")


def _read_json(path: Path) -> dict[str, Any]:
    file = MappedFile(path)
    if file.size > _MAX_JSON:
        raise CheckpointError(f"{path.name} has {file.size} bytes, too many for settings.")
    return parse_json(file.take(0, file.size), path.name)
