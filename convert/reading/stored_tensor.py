"""What a checkpoint holds: tensors that are known by name, shape and dtype, and read on demand."""

import dataclasses
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

import ml_dtypes
import numpy as np

from sam_jax.convert.reading.mapped_file import Region, checkpoint_errors
from sam_jax.errors import CheckpointError, describe

DTYPES: dict[str, np.dtype] = {
    name: np.dtype(kind)
    for name, kind in {
        "float64": np.float64,
        "float32": np.float32,
        "float16": np.float16,
        "bfloat16": ml_dtypes.bfloat16,
        "float8_e4m3fn": ml_dtypes.float8_e4m3fn,
        "float8_e4m3fnuz": ml_dtypes.float8_e4m3fnuz,
        "float8_e5m2": ml_dtypes.float8_e5m2,
        "float8_e5m2fnuz": ml_dtypes.float8_e5m2fnuz,
        "float8_e8m0fnu": ml_dtypes.float8_e8m0fnu,
        "complex128": np.complex128,
        "complex64": np.complex64,
        "int64": np.int64,
        "int32": np.int32,
        "int16": np.int16,
        "int8": np.int8,
        "uint64": np.uint64,
        "uint32": np.uint32,
        "uint16": np.uint16,
        "uint8": np.uint8,
        "bool": np.bool_,
    }.items()
}
"""The dtypes that can be read, by the name PyTorch and numpy share."""

_MAX_DIMENSIONS = 64  # numpy's limit
_MAX_NAME = 1024  # characters
_SPARE_BYTES = 1 << 26
_MAX_REPEATS = 4


@dataclasses.dataclass(frozen=True, eq=False)
class StoredTensor:
    """A tensor in a file: where its numbers are, and how to look at them.

    Making one checks that every element lies inside the region, so that `read` cannot look elsewhere.

    Attributes:
      name: its name in the checkpoint.
      shape: its shape.
      dtype: its dtype, in native byte order.
      region: the bytes that it looks into, which other tensors may share.
      offset: the first element's place in the region, in bytes.
      strides: the distance between neighbours along each axis, in bytes.
      big_endian: whether the bytes of each number must be swapped.

    Raises:
      CheckpointError: the shape is impossible, or the region is too small for it.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    region: Region
    offset: int
    strides: tuple[int, ...]
    big_endian: bool = False

    def __post_init__(self):
        check_name(self.name)
        if len(self.strides) != len(self.shape) or len(self.shape) > _MAX_DIMENSIONS:
            self._refuse(f"has {len(self.shape)} dimensions and {len(self.strides)} strides")
        if min(self.offset, *self.shape, *self.strides, 0) < 0:
            self._refuse(f"has a negative size, stride or offset: {self.shape}, {self.strides}, {self.offset}")
        if math.prod(filter(None, self.shape)) * self.dtype.itemsize >= 1 << 63:
            self._refuse(f"has the shape {self.shape}, which no array can have")
        if self._end > self.region.size:
            self._refuse(f"needs {self._end} bytes of record {describe(self.region.name)}, of {self.region.size}")

    @property
    def nbytes(self) -> int:
        """The bytes of a copy, which can be more than the file holds: strides may repeat elements."""
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self) -> np.ndarray:
        """Return the numbers, after the CRC-32 of their bytes has been checked.

        Returns:
          A read-only array: a view of the mapped file, which need not be contiguous or aligned; a copy only if the
          bytes are deflated or in another byte order.

        Raises:
          CheckpointError: the bytes are damaged, or the file has changed.
        """
        with checkpoint_errors(self.region.file.path):
            array = self._view()
            if self.dtype == np.bool_ and (array.view(np.uint8) > 1).any():
                self._refuse("is of dtype bool and holds bytes other than 0 and 1")
            if self.big_endian and self.dtype.itemsize > 1:
                array = array.byteswap()
            array.flags.writeable = False
            return array

    @property
    def _end(self) -> int:
        if 0 in self.shape:
            return 0
        reach = sum((size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True))
        return self.offset + reach + self.dtype.itemsize

    def _view(self) -> np.ndarray:
        if 0 in self.shape:  # its offset and strides point at nothing
            return np.empty(self.shape, self.dtype)
        strides = tuple(stride if size > 1 else 0 for size, stride in zip(self.shape, self.strides, strict=True))
        return np.ndarray(self.shape, self.dtype, self.region.content, self.offset, strides)

    def _refuse(self, what: str) -> NoReturn:
        raise CheckpointError(f"Tensor {describe(self.name)} {what}.")


@dataclasses.dataclass(frozen=True, eq=False)
class Checkpoint:
    """An opened checkpoint. No tensor's data has been read.

    Attributes:
      tensors: name -> tensor, in the file's order.
      container: what kind of file it is, in words.
      notes: what a reader may want to know: objects that were skipped, checks that the file does not allow.
      settings: the content of a Hugging Face folder's `config.json`, if there is one.
    """

    tensors: dict[str, StoredTensor]
    container: str
    notes: tuple[str, ...] = ()
    settings: dict[str, Any] | None = None

    @property
    def files(self) -> list[Path]:
        """The files that the tensors lie in, in order of their paths."""
        return sorted({tensor.region.file.path for tensor in self.tensors.values()})


def collect(tensors: Iterable[StoredTensor], stored_bytes: int) -> dict[str, StoredTensor]:
    """Return the tensors by name, while bounding what copies of all of them would take.

    Strides let a few stored bytes pose as terabytes, and the system may only notice when memory is touched.

    Args:
      tensors: what was found in one checkpoint.
      stored_bytes: how many bytes of tensor data the checkpoint really has.

    Raises:
      CheckpointError: two tensors have one name, or the tensors are far larger than what is stored.
    """
    found, left = {}, _MAX_REPEATS * stored_bytes + _SPARE_BYTES
    for tensor in tensors:
        if tensor.name in found:
            raise CheckpointError(f"Two tensors have the name {describe(tensor.name)}.")
        left -= tensor.nbytes
        if left < 0:
            raise CheckpointError(
                f"Tensor {describe(tensor.name)} of shape {tensor.shape} would take {tensor.nbytes} bytes, far more"
                f" than the {stored_bytes} bytes that the file stores."
            )
        found[tensor.name] = tensor
    return found


def check_name(name: str) -> None:
    """Refuse a tensor name that is too long to be one, or that could not be shown on a terminal as it is."""
    if len(name) > _MAX_NAME or not name.isprintable():
        raise CheckpointError(
            f"The tensor name {describe(name)} is not up to {_MAX_NAME} printable characters, as names should be."
        )
