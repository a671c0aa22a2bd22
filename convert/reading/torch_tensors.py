"""Finds the tensors in what a PyTorch pickle describes, and names them by their path in it.

Containers are walked; a tensor at `{"model": {"a.b": tensor}}` is named `model.a.b`. Every other object, such as a live
optimizer, is skipped and counted. What looks like a tensor and cannot be read exactly is refused.
"""

import collections
import re
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

import numpy as np

from sam_jax.convert.reading.mapped_file import Region
from sam_jax.convert.reading.pickle_machine import Call, Dictionary, Global
from sam_jax.convert.reading.stored_tensor import DTYPES, StoredTensor
from sam_jax.convert.reading.torch_storages import StorageId
from sam_jax.errors import CheckpointError, describe

_ARGUMENTS = {
    "torch._utils._rebuild_tensor": 4,
    "torch._utils._rebuild_tensor_v2": 6,
    "torch._utils._rebuild_tensor_v3": 7,
}
"""Calls that make a tensor from a storage, and their number of arguments; metadata may follow."""
_PARAMETERS = ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state")
_MAKES_A_TENSOR = re.compile(r"torch\._(utils|tensor)\._rebuild_\w+|torch\.(\w+\.)*\w*(Tensor|Parameter)")
_REASONS = {
    "torch._utils._rebuild_sparse_tensor": "a sparse tensor: call `.to_dense()` before saving",
    "torch._utils._rebuild_qtensor": "a quantised tensor: call `.dequantize()` before saving",
    "torch._utils._rebuild_meta_tensor_no_storage": "a tensor on the meta device, which has no data",
    "torch._utils._rebuild_nested_tensor": "a nested tensor: save its parts",
    "torch._tensor._rebuild_from_type_v2": "a tensor subclass or a tensor with attributes: save `.detach().clone()`",
}

_MAX_DEPTH = 64
_MAX_NODES = 500_000


class TensorWalk:
    """A walk over one pickled object.

    Args:
      regions: the bytes of each storage, by its key.
      big_endian: the byte order of those bytes.

    Attributes:
      skipped: the objects that are no plain data, counted by the name of their class.
    """

    def __init__(self, regions: Mapping[str, Region], big_endian: bool = False):
        self._regions = regions
        self._big_endian = big_endian
        self.skipped: collections.Counter[str] = collections.Counter()
        self._nodes = 0
        self._above: set[int] = set()

    def tensors(self, value: Any, path: tuple[str | None, ...] = ()) -> Iterator[StoredTensor]:
        """Yield the tensors in a value, in order.

        Args:
          value: what `read_pickle` returned, with a `StorageId` for each storage.
          path: the keys that led to it; None for a key that no tensor's name can hold.

        Raises:
          CheckpointError: a tensor cannot be read or named; a key repeats; the value is nested deeper, or is larger
            when written out, than any checkpoint, or contains itself.
        """
        self._count(value, path)
        if type(value) is Call:
            yield from self._called(value, path)
        elif type(value) in (Global, StorageId):
            self.skipped[value.path if type(value) is Global else "torch storage"] += 1
        elif type(value) in (Dictionary, list, tuple):
            self._above.add(id(value))
            for key, child in _children(value, path):
                yield from self.tensors(child, (*path, key))
            self._above.remove(id(value))

    def _count(self, value: Any, path: tuple[str | None, ...]) -> None:
        self._nodes += 1
        if self._nodes > _MAX_NODES:
            raise CheckpointError(f"The checkpoint holds more than {_MAX_NODES} objects when it is written out.")
        if id(value) in self._above:
            raise CheckpointError(f"The object at {_shown(path)} contains itself.")
        if len(path) > _MAX_DEPTH:
            raise CheckpointError(f"The object at {_shown(path)} is nested more than {_MAX_DEPTH} deep.")

    def _called(self, call: Call, path: tuple[str | None, ...]) -> Iterator[StoredTensor]:
        if _is_tensor(call):
            yield self._tensor(call, _name(path))
        elif call.function.path == "builtins.bytearray" and int in map(type, call.arguments):
            raise CheckpointError(f"The object at {_shown(path)} would allocate memory at will, by bytearray(number).")
        else:
            self.skipped[call.function.path] += 1

    def _tensor(self, call: Call, name: str) -> StoredTensor:
        """Return the tensor that a call would make."""
        if call.function.path in _PARAMETERS and call.arguments and type(call.arguments[0]) is Call:
            if call.changed:
                _refuse(name, "is changed after it is made")
            call = call.arguments[0]
        maker = call.function.path
        if maker not in _ARGUMENTS:
            _refuse(name, f"is made by {describe(maker)}: {_REASONS.get(maker, 'no plain tensor')}")
        count = _ARGUMENTS[maker]
        if call.changed or len(call.arguments) not in (count, count + (count > 4)):
            _refuse(name, f"is made by {maker} in an unknown way")
        _check_metadata(call.arguments[count:], name)
        dtype = _named_dtype(call.arguments[6], name) if count == 7 else None
        storage, offset, shape, strides = call.arguments[:4]
        return self._view(name, storage, offset, shape, strides, dtype)

    def _view(
        self, name: str, storage: Any, offset: Any, shape: Any, strides: Any, dtype: np.dtype | None
    ) -> StoredTensor:
        """Return the tensor that looks at a storage, with an offset and strides in elements."""
        if type(storage) is not StorageId:
            _refuse(name, "has no storage")
        if (dtype is None) == (storage.dtype.type is np.void):
            _refuse(name, "needs either a typed storage, or an untyped one and a dtype")
        for what, numbers in (("an offset", (offset,)), ("a shape", shape), ("strides", strides)):
            if type(numbers) is not tuple or any(type(number) is not int for number in numbers):
                _refuse(name, f"has {what} that is not made of whole numbers")
        dtype = storage.dtype if dtype is None else dtype
        size = dtype.itemsize
        strides = tuple(stride * size for stride in strides)
        region = self._regions[storage.key]
        return StoredTensor(name, shape, dtype, region, offset * size, strides, self._big_endian)


def _children(value: Any, path: tuple[str | None, ...]) -> Iterator[tuple[str | None, Any]]:
    """Yield what a container holds, with the key's part in tensor names."""
    if type(value) is not Dictionary:
        yield from ((str(index), child) for index, child in enumerate(value))
        return
    seen = set()
    for key, child in value.pairs:
        if type(key) is str and key in seen:
            raise CheckpointError(f"The dictionary at {_shown(path)} has the key {describe(key)} twice.")
        if type(key) is str:
            seen.add(key)
        yield _part(key, child), child


def _part(key: Any, child: Any) -> str | None:
    """Return a key's part in a tensor's name. A number may lead to a container, and not name a tensor itself."""
    if type(key) is int and not (type(child) is Call and _is_tensor(child)):
        return str(key)
    return key if type(key) is str else None


def _name(path: tuple[str | None, ...]) -> str:
    if not path:
        raise CheckpointError("The file holds one bare tensor, without a name. Save a dictionary of tensors.")
    if None in path:
        raise CheckpointError(f"The tensor at {_shown(path)} has a key that is not text, and so has no name.")
    return ".".join(part for part in path if part is not None)


def _shown(path: tuple[str | None, ...]) -> str:
    return describe(".".join("?" if part is None else part for part in path)) if path else "the top"


def _is_tensor(call: Call) -> bool:
    return _MAKES_A_TENSOR.fullmatch(call.function.path) is not None


def _named_dtype(value: Any, name: str) -> np.dtype:
    path = value.path if type(value) is Global else ""
    dtype = DTYPES.get(path.removeprefix("torch.")) if path.startswith("torch.") else None
    if dtype is None:
        _refuse(name, f"has the dtype {describe(path)}, which is not supported")
    return dtype


def _check_metadata(metadata: tuple[Any, ...], name: str) -> None:
    """Refuse a conjugated or negated view: its bytes are not its values."""
    if metadata and metadata[0] is not None and (type(metadata[0]) is not Dictionary or metadata[0].pairs):
        _refuse(name, "is a conjugated or negated view: call `.resolve_conj().resolve_neg()` before saving")


def _refuse(name: str, what: str) -> NoReturn:
    raise CheckpointError(f"Tensor {describe(name)} {what}.")
