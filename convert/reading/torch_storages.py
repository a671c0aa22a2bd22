"""The storages that a PyTorch pickle refers to: runs of elements outside of the pickle."""

import dataclasses
from typing import Any

import numpy as np

from sam_jax.convert.reading.pickle_machine import Global
from sam_jax.convert.reading.stored_tensor import DTYPES
from sam_jax.errors import CheckpointError, describe

UNTYPED = np.dtype("V1")
"""The dtype of a storage that only says how many bytes it has."""

_CLASSES: dict[str, np.dtype] = {
    "torch.DoubleStorage": DTYPES["float64"],
    "torch.FloatStorage": DTYPES["float32"],
    "torch.HalfStorage": DTYPES["float16"],
    "torch.BFloat16Storage": DTYPES["bfloat16"],
    "torch.ComplexDoubleStorage": DTYPES["complex128"],
    "torch.ComplexFloatStorage": DTYPES["complex64"],
    "torch.LongStorage": DTYPES["int64"],
    "torch.IntStorage": DTYPES["int32"],
    "torch.ShortStorage": DTYPES["int16"],
    "torch.CharStorage": DTYPES["int8"],
    "torch.ByteStorage": DTYPES["uint8"],
    "torch.BoolStorage": DTYPES["bool"],
    "torch.UntypedStorage": UNTYPED,
    "torch.storage.UntypedStorage": UNTYPED,
    # Bytes that only a quantised tensor explains; that is refused, by name, when it is met.
    "torch.QInt8Storage": UNTYPED,
    "torch.QUInt8Storage": UNTYPED,
    "torch.QInt32Storage": np.dtype("V4"),
    "torch.QUInt4x2Storage": UNTYPED,
    "torch.QUInt2x4Storage": UNTYPED,
}


@dataclasses.dataclass(frozen=True)
class StorageId:
    """What the pickle says about a storage.

    Attributes:
      key: its name among the storages.
      dtype: what its elements are.
      count: how many there are.
    """

    key: str
    dtype: np.dtype
    count: int

    @property
    def size(self) -> int:
        """The number of bytes."""
        return self.count * self.dtype.itemsize


class StorageIds:
    """The storages that a pickle has referred to so far. Calling it turns a persistent id into a `StorageId`.

    Args:
      length: how many parts an id has: 5 in a zip archive, 6 in the older format, where the last one is None.

    Attributes:
      found: the storages by key.
    """

    def __init__(self, length: int):
        self.found: dict[str, StorageId] = {}
        self._length = length

    def __call__(self, persistent_id: Any) -> StorageId | Global:
        """Return the storage that an id stands for, or the class that an older file keeps the source code of.

        Raises:
          CheckpointError: the id is of another kind, or contradicts an earlier one.
        """
        parts: tuple[Any, ...] = persistent_id if type(persistent_id) is tuple else ()
        if len(parts) == 4 == self._length - 2 and parts[0] == "module" and type(parts[1]) is Global:
            return parts[1]
        if len(parts) != self._length or parts[0] != "storage" or any(part is not None for part in parts[5:]):
            raise CheckpointError("The pickle refers to something outside of it that is no plain storage.")
        _, kind, key, _, count = parts[:5]  # the fourth is the device that it was saved from
        if type(kind) is not Global or kind.path not in _CLASSES:
            name = describe(kind.path) if type(kind) is Global else "something that is no class"
            raise CheckpointError(f"The pickle refers to a storage of an unknown class: {name}.")
        if type(key) is not str or type(count) is not int:
            raise CheckpointError("The pickle refers to a storage whose key is no text, or whose size is no number.")
        storage = StorageId(key, _CLASSES[kind.path], count)
        if self.found.setdefault(key, storage) != storage:
            raise CheckpointError(f"The pickle gives storage {describe(key)} two dtypes or sizes.")
        return storage
