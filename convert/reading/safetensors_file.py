"""Opens `.safetensors` files. The safetensors library judges the file; the numbers are then read in place."""

import json
import math
from typing import Any

import safetensors

from sam_jax.convert.reading.mapped_file import MappedFile, Region
from sam_jax.convert.reading.stored_tensor import DTYPES, Checkpoint, StoredTensor, collect
from sam_jax.errors import CheckpointError, describe

_MAX_HEADER = 1 << 25
_DTYPE_NAMES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2": "float8_e5m2",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
    "C64": "complex64",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
}


def is_safetensors(head: bytes, size: int) -> bool:
    """Whether a file of `size` bytes that begins so has the form of a `.safetensors` file."""
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= size - 8


def open_safetensors(file: MappedFile, own: str) -> Checkpoint:
    """Open a `.safetensors` file.

    Args:
      file: the file.
      own: key of the metadata under which the settings of a file of ours stand, as JSON.

    Raises:
      CheckpointError: the file is damaged, repeats a key, or holds a dtype or shape that numpy cannot.
    """
    size = int.from_bytes(file.take(0, 8), "little")
    if size > _MAX_HEADER:
        raise CheckpointError(f"The safetensors header of {size} bytes is longer than {_MAX_HEADER}, or not one.")
    text = file.take(8, size)
    if not text.startswith(b"{"):
        raise CheckpointError("The safetensors header does not begin with a brace, as it must.")
    _judge(file)
    header = parse_json(text, "safetensors header")
    tensors = (_tensor(file, 8 + size, name, entry) for name, entry in header.items() if name != "__metadata__")
    found = collect(tensors, file.size)
    if not found:
        raise CheckpointError("The file holds no tensors.")
    return Checkpoint(found, "safetensors", settings=_settings(header.get("__metadata__", {}), own))


def _settings(metadata: dict[str, str], own: str) -> dict[str, Any] | None:
    """Return the settings that we wrote into a file's metadata; None for another program's file."""
    if own not in metadata:
        return None
    return {own: parse_json(metadata[own].encode(errors="surrogatepass"), f"entry {own} of the safetensors metadata")}


def _judge(file: MappedFile) -> None:
    try:
        with safetensors.safe_open(file.path, framework="numpy"):
            pass
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"This is no sound safetensors file: {describe(str(error))}.") from error


def _tensor(file: MappedFile, data_start: int, name: str, entry: dict[str, Any]) -> StoredTensor:
    """Return the tensor that a header entry describes."""
    if entry["dtype"] not in _DTYPE_NAMES:
        raise CheckpointError(f"Tensor {describe(name)} has the dtype {entry['dtype']}, which is not supported.")
    dtype = DTYPES[_DTYPE_NAMES[entry["dtype"]]]
    shape = tuple(entry["shape"])
    start, stop = entry["data_offsets"]
    region = Region(file, name, data_start + start, stop - start)
    strides = tuple(math.prod(shape[axis + 1 :]) * dtype.itemsize for axis in range(len(shape)))
    return StoredTensor(name, shape, dtype, region, 0, strides)


def parse_json(text: bytes, what: str) -> dict[str, Any]:
    """Parse a JSON object in which no key is repeated.

    Raises:
      CheckpointError: it is none.
    """
    try:
        value = json.loads(text.decode(), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"The {what} is no sound JSON: {error}.") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"The {what} is a JSON {type(value).__name__}, and an object is wanted.")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key is repeated")
    return found
