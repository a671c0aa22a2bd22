"""The bytes of a pickle: how each opcode's value or memo index is read.

Every length that a pickle claims is compared with what is left of it before it is used.
"""

import contextlib
import pickle
import struct
from collections.abc import Callable
from typing import Any

from sam_jax.errors import CheckpointError, describe

_MAX_NUMBER_BYTES = 64
_MAX_DIGITS = 160


class Stream:
    """A pickle's bytes and the place that reading has reached."""

    def __init__(self, data: bytes, place: int):
        self._data = data
        self.place = place

    def take(self, count: int) -> bytes:
        """Return the next `count` bytes."""
        start, self.place = self.place, self.place + count
        if count < 0 or self.place > len(self._data):
            raise CheckpointError(f"The pickle is truncated or damaged at byte {start}.")
        return self._data[start : self.place]

    def unsigned(self, size: int) -> int:
        """Return a number of `size` bytes: a length, an index or a small number."""
        return int.from_bytes(self.take(size), "little")

    def signed(self, size: int) -> int:
        """Return a number of `size` bytes that may be negative."""
        if size > _MAX_NUMBER_BYTES:
            raise CheckpointError(f"The pickle holds a number of {size} bytes, too long for a checkpoint.")
        return int.from_bytes(self.take(size), "little", signed=True)

    def line(self) -> bytes:
        """Return what comes before the next line feed."""
        stop = self._data.find(b"\n", self.place)
        line = self.take(stop - self.place)
        self.place += 1
        return line

    def number_line(self, kind: type[int] | type[float]) -> int | float:
        """Return the number that the next line spells."""
        line = self.line().removesuffix(b"L")
        if kind is int and line in (b"00", b"01"):  # how the first protocols write a bool
            return line == b"01"
        with contextlib.suppress(ValueError):
            if len(line) <= _MAX_DIGITS:
                return kind(line)
        raise CheckpointError(f"The pickle holds {describe(line)} where a number should be.")


def decode(text: bytes, encoding: str = "utf-8", errors: str = "surrogatepass") -> str:
    """Return the text that some bytes spell."""
    try:
        return text.decode(encoding, errors)
    except UnicodeDecodeError:
        raise CheckpointError(f"The pickle holds text that is not {encoding}: {describe(text)}.") from None


VALUES: dict[bytes, Callable[[Stream], Any]] = {
    pickle.NONE: lambda stream: None,
    pickle.NEWTRUE: lambda stream: True,
    pickle.NEWFALSE: lambda stream: False,
    pickle.INT: lambda stream: stream.number_line(int),
    pickle.LONG: lambda stream: stream.number_line(int),
    pickle.FLOAT: lambda stream: stream.number_line(float),
    pickle.BININT: lambda stream: stream.signed(4),
    pickle.BININT1: lambda stream: stream.unsigned(1),
    pickle.BININT2: lambda stream: stream.unsigned(2),
    pickle.LONG1: lambda stream: stream.signed(stream.unsigned(1)),
    pickle.LONG4: lambda stream: stream.signed(stream.unsigned(4)),
    pickle.BINFLOAT: lambda stream: struct.unpack(">d", stream.take(8))[0],
    pickle.BINSTRING: lambda stream: stream.take(stream.unsigned(4)).decode("latin-1"),
    pickle.SHORT_BINSTRING: lambda stream: stream.take(stream.unsigned(1)).decode("latin-1"),
    pickle.UNICODE: lambda stream: decode(stream.line(), "raw-unicode-escape", "strict"),
    pickle.SHORT_BINUNICODE: lambda stream: decode(stream.take(stream.unsigned(1))),
    pickle.BINUNICODE: lambda stream: decode(stream.take(stream.unsigned(4))),
    pickle.BINUNICODE8: lambda stream: decode(stream.take(stream.unsigned(8))),
    pickle.SHORT_BINBYTES: lambda stream: stream.take(stream.unsigned(1)),
    pickle.BINBYTES: lambda stream: stream.take(stream.unsigned(4)),
    pickle.BINBYTES8: lambda stream: stream.take(stream.unsigned(8)),
    pickle.BYTEARRAY8: lambda stream: stream.take(stream.unsigned(8)),
    pickle.EMPTY_TUPLE: lambda stream: (),
    pickle.EMPTY_LIST: lambda stream: [],
}
"""Opcodes that push a value, and how it is read."""

GETS: dict[bytes, Callable[[Stream], Any]] = {
    pickle.GET: lambda stream: stream.number_line(int),
    pickle.BINGET: lambda stream: stream.unsigned(1),
    pickle.LONG_BINGET: lambda stream: stream.unsigned(4),
}
"""Opcodes that push what the memo holds, and how its index is read."""

PUTS: dict[bytes, Callable[[Stream], Any]] = {
    pickle.PUT: lambda stream: stream.number_line(int),
    pickle.BINPUT: lambda stream: stream.unsigned(1),
    pickle.LONG_BINPUT: lambda stream: stream.unsigned(4),
}
"""Opcodes that put the top of the stack into the memo, and how its index is read."""
