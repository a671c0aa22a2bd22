"""A strict reader of zip directories: one reading of the file, or none.

Two programs that parse a sloppy zip file differently see two different files; what one of them checked is then not what
the other one loads. So everything that a zip says twice must agree here (directory and local headers, 32- and 64-bit
fields), records may not overlap or repeat, and nothing may come before the first one.
"""

import dataclasses
import struct
from collections.abc import Iterator

from sam_jax.convert.reading.mapped_file import MappedFile, Region
from sam_jax.errors import CheckpointError, describe

SIGNATURE = b"PK\x03\x04"

_END = struct.Struct("<4s4H2LH")
_LOCATOR = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")

_MAX_COMMENT = 0xFFFF
_MAX_RECORDS = 100_000
_MAX_DIRECTORY = 1 << 26
# Trained weights hardly deflate at all, and zeros do a thousandfold.
_MAX_INFLATION = 8
_SPARE_BYTES = 1 << 26

_STORED, _DEFLATED = 0, 8
_METHODS = {9: "Deflate64", 12: "bzip2", 14: "LZMA", 93: "Zstandard", 95: "XZ", 99: "AES"}
_ENCRYPTED = 0x0001
_HARMLESS_FLAGS = 0x080E  # deflate's effort, sizes after the data, UTF-8 names
_SIZES_FOLLOW = 0x0008
_EXTRA_ZIP64, _EXTRA_OTHER_NAME = 0x0001, 0x7075


@dataclasses.dataclass(frozen=True)
class _Entry:
    """One record as the directory describes it."""

    name: bytes
    flags: int
    method: int
    crc: int
    packed_size: int
    size: int
    header: int


def read_zip(file: MappedFile) -> tuple[dict[str, Region], int]:
    """Read a zip archive's directory; no record is read.

    Returns:
      The records by name, in the directory's order (folders are left out), and the number of bytes after the archive.

    Raises:
      CheckpointError: the archive is truncated, inconsistent, encrypted, compressed in another way than deflate, or
        would unpack to far more than its own size.
    """
    start, stop, count, end = _find_directory(file)
    entries = list(_directory(file.take(start, stop - start)))
    if len(entries) != count:
        raise CheckpointError(f"The zip directory has {len(entries)} entries and should have {count}.")
    regions = _regions(file, sorted(entries, key=lambda entry: entry.header), start)
    inflated = sum(region.size for region in regions.values() if region.deflated_size is not None)
    if inflated > _MAX_INFLATION * file.size + _SPARE_BYTES:
        raise CheckpointError(f"The zip archive of {file.size} bytes would unpack to {inflated}: a decompression bomb.")
    names = (entry.name.decode() for entry in entries)
    return {name: regions[name] for name in names if not name.endswith("/")}, file.size - end


def _find_directory(file: MappedFile) -> tuple[int, int, int, int]:
    """Return the directory's start and stop, its number of entries, and where the archive ends."""
    tail_start = max(0, file.size - _END.size - _MAX_COMMENT)
    place = file.take(tail_start, file.size - tail_start).rfind(b"PK\x05\x06")
    if place < 0:
        raise CheckpointError("The zip archive is truncated: its end record is missing.")
    place += tail_start
    _, disk, first_disk, count_here, count, size, start, comment = _END.unpack(file.take(place, _END.size))
    end = place + _END.size + comment
    if end > file.size:
        raise CheckpointError("The zip archive is truncated: its end record is cut.")
    if disk or first_disk or count_here != count:
        raise CheckpointError("The zip archive is one part of several.")
    stop, count, size, start = _widen(file, place, count, size, start)
    if start + size != stop:
        raise CheckpointError(
            f"The zip archive is truncated or damaged: its directory of {size} bytes at {start} should end at {stop}."
        )
    if count > _MAX_RECORDS or size > _MAX_DIRECTORY:
        raise CheckpointError(f"The zip directory has {count} entries in {size} bytes, too many for a checkpoint.")
    return start, stop, count, end


def _widen(file: MappedFile, place: int, count: int, size: int, start: int) -> tuple[int, int, int, int]:
    """Return where the directory stops, and its count, size and start, from the 64-bit end record if there is one."""
    locator = place - _LOCATOR.size
    if locator < 0 or file.take(locator, 4) != b"PK\x06\x07":
        return place, count, size, start
    _, _, place64, disks = _LOCATOR.unpack(file.take(locator, _LOCATOR.size))
    signature, length, *_, disk, first_disk, count_here, count64, size64, start64 = _END64.unpack(
        file.take(place64, _END64.size)
    )
    if signature != b"PK\x06\x06" or place64 + 12 + length != locator:
        raise CheckpointError("The zip archive is truncated or damaged: its 64-bit end record is not in its place.")
    if disk or first_disk or disks > 1 or count_here != count64:
        raise CheckpointError("The zip archive is one part of several.")
    wide = (count64, size64, start64)
    narrow = ((count, 0xFFFF), (size, 0xFFFFFFFF), (start, 0xFFFFFFFF))
    if any(value not in (marker, true) for (value, marker), true in zip(narrow, wide, strict=True)):
        raise CheckpointError("The zip archive's 32-bit and 64-bit end records disagree.")
    return place64, *wide


def _directory(data: bytes) -> Iterator[_Entry]:
    place = 0
    while place < len(data):
        fields = _unpack(_CENTRAL, data, place, b"PK\x01\x02")
        flags, method, _, _, crc, packed_size, size, name_size, extra_size, comment_size = fields[3:13]
        header = fields[16]
        place += _CENTRAL.size
        name, extra = data[place : place + name_size], data[place + name_size : place + name_size + extra_size]
        place += name_size + extra_size + comment_size
        if place > len(data):
            raise CheckpointError("The zip directory is cut within an entry.")
        size, packed_size, header = _wide_fields(extra, size, packed_size, header)
        yield _Entry(name, flags, method, crc, packed_size, size, header)


def _wide_fields(extra: bytes, *fields: int) -> tuple[int, ...]:
    """Replace each field that says "see the 64-bit extra field" by what is found there."""
    wide: Iterator[int] = iter(())
    seen = set()
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<2H", extra)
        body, extra = extra[4 : 4 + length], extra[4 + length :]
        if len(body) < length or kind == _EXTRA_OTHER_NAME or (kind == _EXTRA_ZIP64 and kind in seen):
            raise CheckpointError("A zip entry's extra fields are damaged, repeated or give it another name.")
        seen.add(kind)
        if kind == _EXTRA_ZIP64:
            wide = (value for (value,) in struct.iter_unpack("<Q", body[: len(body) // 8 * 8]))
    try:
        return tuple([next(wide) if field == 0xFFFFFFFF else field for field in fields])
    except StopIteration:
        raise CheckpointError("A zip entry lacks the 64-bit fields that it announces.") from None


def _regions(file: MappedFile, entries: list[_Entry], limit: int) -> dict[str, Region]:
    """Return the regions of records that follow each other without overlap, from the file's first byte to `limit`."""
    regions: dict[str, Region] = {}
    if entries and entries[0].header != 0:
        raise CheckpointError("The zip archive has bytes before its first record.")
    limits = [entry.header for entry in entries[1:]] + [limit]
    for entry, following in zip(entries, limits, strict=True):
        name = _checked_name(entry.name)
        if name in regions:
            raise CheckpointError(f"The zip archive has two records named {describe(name)}.")
        start = _check_headers(file, entry, name)
        if start + entry.packed_size > following:
            raise CheckpointError(f"Zip record {describe(name)} overlaps what follows it.")
        deflated_size = entry.packed_size if entry.method == _DEFLATED else None
        regions[name] = Region(file, name, start, entry.size, deflated_size, entry.crc)
    return regions


def _checked_name(raw: bytes) -> str:
    """Return a record's name, which must be a plain relative path."""
    try:
        name = raw.decode()
    except UnicodeDecodeError:
        raise CheckpointError(f"A zip record's name is not UTF-8: {describe(raw)}.") from None
    parts = name.removesuffix("/").split("/")
    if not name.isprintable() or "\\" in name or any(part in ("", ".", "..") for part in parts):
        raise CheckpointError(f"A zip record is named {describe(name)}, which is no plain relative path.")
    return name


def _check_headers(file: MappedFile, entry: _Entry, name: str) -> int:
    """Compare an entry with the header before its data; return where the data starts."""
    header = file.take(entry.header, _LOCAL.size)
    _, _, flags, method, _, _, crc, packed_size, size, name_size, extra_size = _unpack(_LOCAL, header, 0, SIGNATURE)
    variable = file.take(entry.header + _LOCAL.size, name_size + extra_size)
    if (entry.flags | flags) & _ENCRYPTED:
        raise CheckpointError(f"Zip record {describe(name)} is encrypted.")
    if (entry.flags | flags) & ~_HARMLESS_FLAGS:
        raise CheckpointError(f"Zip record {describe(name)} has the unknown flags {entry.flags:#06x}, {flags:#06x}.")
    if entry.method not in (_STORED, _DEFLATED):
        known = _METHODS.get(entry.method, f"method {entry.method}")
        raise CheckpointError(f"Zip record {describe(name)} is compressed with {known}; store it or use deflate.")
    if (variable[:name_size], method) != (entry.name, entry.method):
        raise CheckpointError(f"Zip record {describe(name)} has another name or method in its own header.")
    local = (crc, *_wide_fields(variable[name_size:], size, packed_size))
    if not flags & _SIZES_FOLLOW and local != (entry.crc, entry.size, entry.packed_size):
        raise CheckpointError(f"Zip record {describe(name)} has another size or CRC-32 in its own header.")
    if entry.method == _STORED and entry.size != entry.packed_size:
        raise CheckpointError(f"Zip record {describe(name)} is stored, and yet has two sizes.")
    return entry.header + _LOCAL.size + name_size + extra_size


def _unpack(layout: struct.Struct, data: bytes, place: int, signature: bytes) -> tuple:
    if len(data) - place < layout.size or data[place : place + 4] != signature:
        raise CheckpointError(f"The zip archive is truncated or damaged: a header {describe(signature)} is missing.")
    return layout.unpack_from(data, place)
