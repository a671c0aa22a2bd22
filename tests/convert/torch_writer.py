"""Writes PyTorch's files without PyTorch, well or badly: pickles opcode by opcode, zip archives field by field."""

import dataclasses
import pickle
import struct
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

STORAGE_CLASSES = {
    np.dtype(np.float64): "DoubleStorage",
    np.dtype(np.float32): "FloatStorage",
    np.dtype(np.float16): "HalfStorage",
    np.dtype(ml_dtypes.bfloat16): "BFloat16Storage",
    np.dtype(np.complex128): "ComplexDoubleStorage",
    np.dtype(np.complex64): "ComplexFloatStorage",
    np.dtype(np.int64): "LongStorage",
    np.dtype(np.int32): "IntStorage",
    np.dtype(np.int16): "ShortStorage",
    np.dtype(np.int8): "CharStorage",
    np.dtype(np.uint8): "ByteStorage",
    np.dtype(np.bool_): "BoolStorage",
}
LEGACY_START = [0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True}]


@dataclasses.dataclass(frozen=True)
class Global:
    """Pickled as a name."""

    path: str


@dataclasses.dataclass(frozen=True)
class Call:
    """Pickled as a call of a global, then a state if there is one."""

    function: Any
    arguments: Any = ()
    state: Any = None
    items: tuple = ()


@dataclasses.dataclass(frozen=True)
class Persistent:
    """Pickled as a persistent id."""

    value: Any


@dataclasses.dataclass(frozen=True)
class Raw:
    """Opcodes, as they are."""

    opcodes: bytes


@dataclasses.dataclass(frozen=True)
class Pairs:
    """A dictionary that may repeat keys."""

    pairs: tuple[tuple[Any, Any], ...]


def dumps(value: Any) -> bytes:
    """Pickle a value with protocol 2."""
    return pickle.PROTO + b"\x02" + opcodes(value) + pickle.STOP


def opcodes(value: Any) -> bytes:
    """Return the opcodes that push a value."""
    match value:
        case Raw():
            return value.opcodes
        case None:
            return pickle.NONE
        case bool():
            return pickle.NEWTRUE if value else pickle.NEWFALSE
        case int():
            size = value.bit_length() // 8 + 1
            return pickle.LONG4 + struct.pack("<i", size) + value.to_bytes(size, "little", signed=True)
        case float():
            return pickle.BINFLOAT + struct.pack(">d", value)
        case str():
            text = value.encode("utf-8", "surrogatepass")
            return pickle.BINUNICODE + struct.pack("<I", len(text)) + text
        case tuple():
            return pickle.MARK + b"".join(map(opcodes, value)) + pickle.TUPLE
        case list():
            return pickle.EMPTY_LIST + pickle.MARK + b"".join(map(opcodes, value)) + pickle.APPENDS
        case dict():
            return opcodes(Pairs(tuple(value.items())))
        case Pairs():
            return pickle.EMPTY_DICT + _items(value.pairs)
        case Global():
            module, _, name = value.path.rpartition(".")
            return pickle.GLOBAL + f"{module}\n{name}\n".encode()
        case Call():
            state = b"" if value.state is None else opcodes(value.state) + pickle.BUILD
            items = _items(value.items) if value.items else b""
            return opcodes(value.function) + opcodes(value.arguments) + pickle.REDUCE + items + state
        case Persistent():
            return opcodes(value.value) + pickle.BINPERSID
    raise TypeError(f"cannot pickle {value!r}")


def _items(pairs: tuple[tuple[Any, Any], ...]) -> bytes:
    return pickle.MARK + b"".join(opcodes(key) + opcodes(value) for key, value in pairs) + pickle.SETITEMS


def ordered_dict(pairs: Mapping[str, Any], state: Any = None) -> Call:
    """Return an OrderedDict, which a state dict is."""
    return Call(Global("collections.OrderedDict"), (), state, tuple(pairs.items()))


def storage(key: Any = "0", kind: str = "torch.FloatStorage", count: Any = 6, location: str = "cpu") -> Persistent:
    """Return a storage, as zip archives refer to it."""
    return Persistent(("storage", Global(kind), key, location, count))


def tensor(of: Any, shape: Any, strides: Any, offset: Any = 0, metadata: tuple = ()) -> Call:
    """Return a tensor that looks into a typed storage."""
    hooks = ordered_dict({})
    return Call(Global("torch._utils._rebuild_tensor_v2"), (of, offset, shape, strides, False, hooks, *metadata))


def untyped_tensor(of: Any, shape: Any, strides: Any, dtype: str, offset: Any = 0) -> Call:
    """Return a tensor that looks into an untyped storage."""
    hooks = ordered_dict({})
    arguments = (of, offset, shape, strides, False, hooks, Global(f"torch.{dtype}"))
    return Call(Global("torch._utils._rebuild_tensor_v3"), arguments)


def array_tensor(array: np.ndarray, key: str) -> Call:
    """Return the tensor for an array whose bytes are stored, in C order, under `key`."""
    strides = tuple(stride // array.dtype.itemsize for stride in np.empty(array.shape, array.dtype).strides)
    if array.dtype in STORAGE_CLASSES:
        of = storage(key, f"torch.{STORAGE_CLASSES[array.dtype]}", array.size)
        return tensor(of, array.shape, strides)
    of = storage(key, "torch.storage.UntypedStorage", array.nbytes)
    return untyped_tensor(of, array.shape, strides, array.dtype.name)


@dataclasses.dataclass(frozen=True)
class Record:
    """A record of a zip archive: what it holds, and every lie that its headers may tell."""

    name: str
    data: bytes
    method: int = 0
    flags: int = 0x0808  # as PyTorch writes: sizes after the data, UTF-8
    local_name: str | None = None
    crc: int | None = None
    size: int | None = None
    local_size: int | None = None
    extra: bytes = b""
    wide: bool = False


def zip_bytes(records: list[Record], *, before: bytes = b"", after: bytes = b"", wide_end: bool = True) -> bytes:
    """Write a zip archive as PyTorch does, with data at multiples of 64 bytes and 64-bit end records."""
    body, directory = bytearray(before), bytearray()
    for record in records:
        header = len(body)
        _write_record(body, record)
        directory += _directory_entry(record, header)
    start = len(body)
    counts = (len(records), len(records), len(directory), start)
    body += directory
    if wide_end:
        end64 = len(body)
        body += struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 0, 45, 0, 0, *counts)
        body += struct.pack("<4sLQL", b"PK\x06\x07", 0, end64, 1)
    return bytes(body + struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, *counts, 0) + after)


def _packed(record: Record) -> bytes:
    if record.method != 8:
        return record.data
    deflater = zlib.compressobj(1, zlib.DEFLATED, -15)
    return deflater.compress(record.data) + deflater.flush()


def _fields(record: Record) -> tuple[int, int, int]:
    crc = zlib.crc32(record.data) if record.crc is None else record.crc
    size = len(record.data) if record.size is None else record.size
    return crc, size if record.size is not None and record.method == 0 else len(_packed(record)), size


def _write_record(body: bytearray, record: Record) -> None:
    name = (record.local_name or record.name).encode()
    crc, packed_size, size = (0, 0, 0) if record.flags & 8 else _fields(record)
    size = record.local_size if record.local_size is not None else size
    padding = -(len(body) + 30 + len(name) + 4) % 64
    extra = b"FB" + struct.pack("<H", padding) + b"Z" * padding
    body += struct.pack("<4s5H3L2H", b"PK\x03\x04", 0, record.flags, record.method, 0, 0, crc, packed_size, size,
                        len(name), len(extra))  # fmt: skip
    body += name + extra + _packed(record)
    if record.flags & 8:
        body += struct.pack("<4s3L", b"PK\x07\x08", *_fields(record))


def _directory_entry(record: Record, header: int) -> bytes:
    name = record.name.encode()
    crc, packed_size, size = _fields(record)
    extra = record.extra
    if record.wide:
        extra += struct.pack("<2H3Q", 1, 24, size, packed_size, header)
        packed_size = size = header = 0xFFFFFFFF
    return struct.pack("<4s6H3L5H2L", b"PK\x01\x02", 0, 0, record.flags, record.method, 0, 0, crc, packed_size, size,
                       len(name), len(extra), 0, 0, 0, 0, header) + name + extra  # fmt: skip


def torch_records(value: Any, storages: Mapping[str, bytes], *, root: str = "archive", **of_each: Any) -> list[Record]:
    """Return the records of a PyTorch archive. `value` is pickled, unless it is bytes already."""
    pickled = value if isinstance(value, bytes) else dumps(value)
    contents = {"data.pkl": pickled, "byteorder": b"little", "version": b"3\n"}
    contents |= {f"data/{key}": data for key, data in storages.items()}
    return [Record(f"{root}/{name}", data, **of_each) for name, data in contents.items()]


def torch_zip(value: Any, storages: Mapping[str, bytes], *, root: str = "archive", **of_each: Any) -> bytes:
    """Return a PyTorch archive."""
    return zip_bytes(torch_records(value, storages, root=root, **of_each))


def write_torch_zip(
    path: Path,
    tensors: Mapping[str, np.ndarray],
    *,
    root: str = "archive",
    wrap: Callable[[Any], Any] = lambda state_dict: state_dict,
) -> Path:
    """Write arrays as `torch.save` writes a state dict.

    Args:
      path: the file to write.
      tensors: name -> array.
      root: the archive's folder.
      wrap: what to pickle, given the state dict; for example `lambda state_dict: {"model": state_dict}`.

    Returns:
      The path.
    """
    keys = {name: str(index) for index, name in enumerate(tensors)}
    state_dict = ordered_dict({name: array_tensor(array, keys[name]) for name, array in tensors.items()})
    storages = {keys[name]: array.tobytes() for name, array in tensors.items()}
    path.write_bytes(torch_zip(wrap(state_dict), storages, root=root))
    return path


def legacy_bytes(value: Any, storages: Mapping[str, tuple[int, bytes]], start: list[Any] = LEGACY_START) -> bytes:
    """Return a file of the format before zip. `storages`: key -> number of elements and their bytes."""
    pickles = b"".join(dumps(part) for part in [*start, value, list(storages)])
    return pickles + b"".join(struct.pack("<q", count) + data for count, data in storages.values())


def legacy_storage(key: str = "0", count: int = 6, view: Any = None) -> Persistent:
    """Return a storage, as the format before zip refers to it."""
    return Persistent(("storage", Global("torch.FloatStorage"), key, "cpu", count, view))
