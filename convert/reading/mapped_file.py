"""A file as read-only memory, and named regions of it whose bytes are verified before use."""

import contextlib
import dataclasses
import functools
import mmap
import os
import threading
import weakref
import zlib
from collections.abc import Iterator
from pathlib import Path

from sam_jax.errors import CheckpointError, describe

_PIECE = 1 << 16  # bytes read at a time; deflate makes at most 1032 times as many of them


@contextlib.contextmanager
def checkpoint_errors(path: Path | str) -> Iterator[None]:
    """Turn every failure inside into a `CheckpointError` that names the file.

    Bad files are found by explicit checks, which raise `CheckpointError` themselves. This border adds the name, and
    keeps the promise of one error type when the operating system fails or a check has been forgotten.
    """
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except OSError as error:
        raise CheckpointError(f"{path}: The file cannot be read: {error.strerror or error}.") from error
    except Exception as error:
        raise CheckpointError(f"{path}: The file cannot be read: {describe(error)}.") from error


class MappedFile:
    """A file mapped into memory for reading. The map lives as long as any array that looks into it.

    Args:
      path: a regular file that is not empty.

    Raises:
      CheckpointError: there is no such file, it is empty, or it is not a regular file.
    """

    def __init__(self, path: Path):
        if not path.exists():
            raise CheckpointError("There is no such file or folder.")
        if not path.is_file():  # a named pipe would block, a device never ends
            raise CheckpointError("This is not a regular file.")
        self.path = path
        self._file = path.open("rb", buffering=0)
        self._lock = threading.Lock()
        weakref.finalize(self, self._file.close)
        self.size = os.fstat(self._file.fileno()).st_size
        if self.size == 0:
            raise CheckpointError("The file is empty.")
        self.memory = memoryview(mmap.mmap(self._file.fileno(), self.size, access=mmap.ACCESS_READ))

    def take(self, start: int, count: int) -> bytes:
        """Return a copy of `count` bytes, which must all be there."""
        if not 0 <= start <= start + count <= self.size:
            raise CheckpointError(
                f"The file is truncated or damaged: bytes {start} to {start + count} are wanted, of {self.size}."
            )
        return b"".join(self.pieces(start, count))

    def pieces(self, start: int, count: int) -> Iterator[bytes]:
        """Yield `count` bytes in small copies. They are read apart from the map, whose pages would stay resident."""
        stop = start + count
        while start < stop:
            with self._lock:
                self._file.seek(start)
                piece = self._file.read(min(stop - start, _PIECE))
            if not piece:
                raise CheckpointError("The file was cut short while it was being read.")
            start += len(piece)
            yield piece


@dataclasses.dataclass(frozen=True, eq=False)
class Region:
    """A named run of bytes in a file.

    Attributes:
      file: where it is.
      name: what messages call it.
      start: its first byte in the file.
      size: bytes of content.
      deflated_size: bytes in the file, if the content is deflated there.
      crc: the CRC-32 that the content must have; None or 0 where the writer computed none.
    """

    file: MappedFile
    name: str
    start: int
    size: int
    deflated_size: int | None = None
    crc: int | None = None

    @functools.cached_property
    def content(self) -> memoryview:
        """The bytes, verified once: a view of the mapped file, or memory of their own if they were deflated."""
        if self.deflated_size is None:
            content = self.file.memory[self.start : self.start + self.size]
            pieces = self.file.pieces(self.start, self.size)
        else:
            content = memoryview(self._inflate(self.deflated_size)).toreadonly()
            pieces = iter([content])
        if self.crc:
            self._verify(pieces)
        return content

    def _verify(self, pieces: Iterator[bytes] | Iterator[memoryview]) -> None:
        crc = functools.reduce(lambda so_far, piece: zlib.crc32(piece, so_far), pieces, 0)
        if crc != self.crc:
            raise CheckpointError(
                f"Record {describe(self.name)} is damaged: its CRC-32 is {crc:08x}, and {self.crc:08x} is wanted."
            )

    def _inflate(self, deflated_size: int) -> bytearray:
        inflater = zlib.decompressobj(wbits=-zlib.MAX_WBITS)
        content, filled = bytearray(self.size), 0
        try:
            for piece in self.file.pieces(self.start, deflated_size):
                run = inflater.decompress(piece, self.size - filled + 1)  # one byte too many shows a lie about the size
                content[filled : filled + len(run)] = run
                filled += len(run)
                if filled > self.size:
                    break
        except zlib.error as error:
            raise CheckpointError(f"Record {describe(self.name)} is damaged: {error}.") from error
        if filled != self.size or not inflater.eof:
            raise CheckpointError(f"Record {describe(self.name)} does not unpack to the {self.size} bytes it declares.")
        return content
