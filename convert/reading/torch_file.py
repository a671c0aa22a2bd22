"""Opens what `torch.save` writes, without PyTorch and without running its pickle: zip archives, and the format before.

Both hold a pickle of the saved object and, beside it, the bytes of each storage that its tensors look into.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from sam_jax.convert.reading.mapped_file import MappedFile, Region
from sam_jax.convert.reading.pickle_machine import MAX_BYTES, Dictionary, read_pickle
from sam_jax.convert.reading.stored_tensor import Checkpoint, collect
from sam_jax.convert.reading.torch_storages import StorageId, StorageIds
from sam_jax.convert.reading.torch_tensors import TensorWalk
from sam_jax.convert.reading.zip_archive import read_zip
from sam_jax.errors import CheckpointError, describe

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # the number that marks the format before zip
_LEGACY_VERSION = 1001

_WEIGHT_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".safetensors")
_LISTED = 5


def open_torch_zip(file: MappedFile) -> Checkpoint:
    """Open a zip archive that `torch.save` wrote.

    Raises:
      CheckpointError: the archive or its pickle is damaged, hostile or of another kind.
    """
    records, bytes_after = read_zip(file)
    root = _root(records)
    pickled = records[f"{root}/data.pkl"]
    if pickled.size > MAX_BYTES:
        raise CheckpointError(f"The pickle of {pickled.size} bytes is longer than the {MAX_BYTES} that are allowed.")
    ids = StorageIds(length=5)
    value, _ = read_pickle(bytes(pickled.content), ids)
    regions = {key: _stored(records, root, storage) for key, storage in ids.found.items()}
    notes = _zip_notes([pickled, *regions.values()], bytes_after)
    return _checkpoint("PyTorch zip archive", value, regions, notes, _is_big_endian(records.get(f"{root}/byteorder")))


def _root(records: Mapping[str, Region]) -> str:
    """Return the one folder that holds everything in the archive."""
    pickles = [name for name in records if name.endswith("/data.pkl") and name.count("/") == 1]
    if not pickles:
        inner = next((name for name in records if name.endswith(_WEIGHT_SUFFIXES)), None)
        if inner is not None:
            raise CheckpointError(f"This is a zip archive that holds {describe(inner)}: unpack it, and open that.")
        names = _listed(map(describe, records))
        raise CheckpointError(f"This zip archive holds no data.pkl, as PyTorch's do, but {names}.")
    root = pickles[0].removesuffix("/data.pkl")
    stray = [describe(name) for name in records if not name.startswith(f"{root}/")]
    if stray:
        raise CheckpointError(f"The zip archive has records outside of its folder {describe(root)}: {_listed(stray)}.")
    if f"{root}/constants.pkl" in records:
        raise CheckpointError(
            "This is a TorchScript program, not a checkpoint: save `torch.jit.load(path).state_dict()` with torch.save."
        )
    return root


def _stored(records: Mapping[str, Region], root: str, storage: StorageId) -> Region:
    region = records.get(f"{root}/data/{storage.key}")
    if region is None:
        raise CheckpointError(f"The zip archive has no record for storage {describe(storage.key)}.")
    if region.size != storage.size:
        raise CheckpointError(
            f"Storage {describe(region.name)} has {region.size} bytes, and the pickle says {storage.size}:"
            f" {storage.count} elements of {storage.dtype}."
        )
    return region


def _is_big_endian(record: Region | None) -> bool:
    if record is None:  # older files do not say: they are little-endian
        return False
    order = bytes(record.content) if record.size <= len(b"little") else b"..."
    if order not in (b"little", b"big"):
        raise CheckpointError(f"The byte order {describe(order)} is neither little nor big.")
    return order == b"big"


def _zip_notes(regions: list[Region], bytes_after: int) -> list[str]:
    unchecked = sum(1 for region in regions if region.size and not region.crc)
    notes = []
    if unchecked:
        notes.append(f"{unchecked} records were saved without a CRC-32, so that damage would go unnoticed.")
    if bytes_after:
        notes.append(f"{bytes_after} bytes after the zip archive were ignored.")
    return notes


def is_torch_legacy(head: bytes) -> bool:
    """Whether a file that begins so is of PyTorch's format before zip."""
    try:
        return read_pickle(head, StorageIds(length=6))[0] == _LEGACY_MAGIC
    except CheckpointError:
        return False


def open_torch_legacy(file: MappedFile) -> Checkpoint:
    """Open a file of PyTorch's format before zip: a magic number and four more pickles, then the storages.

    Raises:
      CheckpointError: the file is damaged, hostile, or was written on a big-endian machine.
    """
    data = file.take(0, min(file.size, MAX_BYTES))
    ids = StorageIds(length=6)
    _, place = read_pickle(data, ids)
    version, place = read_pickle(data, ids, place)
    system, place = read_pickle(data, ids, place)
    if version != _LEGACY_VERSION or type(system) is not Dictionary or ("little_endian", True) not in system.pairs:
        raise CheckpointError(f"This file of PyTorch's older format is not little-endian version {_LEGACY_VERSION}.")
    value, place = read_pickle(data, ids, place)
    keys, place = read_pickle(data, ids, place)
    if type(keys) is not list or any(type(key) is not str for key in keys) or sorted(keys) != sorted(ids.found):
        raise CheckpointError("The file does not list the storages that its tensors look into.")
    regions = {}
    for key in keys:
        regions[key] = _counted(file, place, ids.found[key])
        place = regions[key].start + regions[key].size
    notes = ["This format has no checksums, so that damage to the numbers would go unnoticed."]
    if place < file.size:
        notes.append(f"{file.size - place} bytes after the last storage were ignored.")
    return _checkpoint("PyTorch file of the format before zip", value, regions, notes)


def _counted(file: MappedFile, place: int, storage: StorageId) -> Region:
    """Return a storage's bytes, which come after their count."""
    count = int.from_bytes(file.take(place, 8), "little", signed=True)
    if count != storage.count or count < 0:
        raise CheckpointError(
            f"Storage {describe(storage.key)} has {count} elements, and the pickle says {storage.count}."
        )
    if place + 8 + storage.size > file.size:
        raise CheckpointError(f"The file is truncated within storage {describe(storage.key)}.")
    return Region(file, f"storage {storage.key}", place + 8, storage.size)


def _checkpoint(
    container: str, value: Any, regions: Mapping[str, Region], notes: Iterable[str], big_endian: bool = False
) -> Checkpoint:
    """Collect the tensors of a pickled object, and note what else it holds."""
    walk = TensorWalk(regions, big_endian)
    tensors = collect(walk.tensors(value), sum(region.size for region in regions.values()))
    skipped = _listed(f"{describe(name)} ({count})" for name, count in walk.skipped.items())
    if not tensors and skipped:
        raise CheckpointError(
            f"The file holds no tensors outside of pickled objects, such as whole modules: {skipped}. Load it in"
            " PyTorch, where their classes are defined, and save the module's state_dict()."
        )
    if not tensors:
        raise CheckpointError("The file holds no tensors.")
    if skipped:
        notes = [*notes, f"Objects that are no plain data were skipped: {skipped}."]
    return Checkpoint(tensors, container, tuple(notes))


def _listed(names: Iterable[str]) -> str:
    """Show the first few names of many."""
    shown = list(names)
    more = len(shown) - _LISTED
    return ", ".join(shown[:_LISTED]) + (f" and {more} more" if more > 0 else "")
