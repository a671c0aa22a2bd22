"""Writing so that an interruption leaves either what was there before or the whole of the new."""

import contextlib
import ctypes
import os
import shutil
import sys
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of Linux's renameat2(2)


@contextlib.contextmanager
def written_whole(path: Path, *, overwrite: bool) -> Iterator[Path]:
    """Give a path to write a file or a folder to, and move the result to `path` when the block ends.

    What is being written lies in a temporary folder beside `path`, which goes away with any exception. A killed process
    leaves that folder, never a part of `path`.

    Raises:
      FileExistsError: if `path` exists and `overwrite` is false, or if it holds a folder and the result is a file or
        the other way round.
    """
    path = Path(path).expanduser().resolve()
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists already and is not overwritten unless asked to.")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp") as workspace:
        new = Path(workspace, path.name)
        yield new
        _flush(new)
        if path.exists() and path.is_dir() != new.is_dir():
            raise FileExistsError(f"{path} is a {_kind(path)} and is not replaced by a {_kind(new)}.")
        if path.is_dir():
            _replace_folder(new, path)
        else:
            os.replace(new, path)


def remove_leftovers(folder: Path, names: Collection[str]) -> None:
    """Remove what killed processes were writing, by `written_whole`, for these names in a folder.

    No other process may be writing them. What is for other names stays: that may be another process's.
    """
    for workspace in folder.glob(".*.tmp"):
        if workspace.name[1:].rsplit(".", 2)[0] in names:
            shutil.rmtree(workspace)


def _kind(path: Path) -> str:
    return "folder" if path.is_dir() else "file"


def _flush(path: Path) -> None:
    """Have the bytes on the disk before the name is, so that a power cut cannot leave the name alone."""
    for file in [path] if path.is_file() else filter(Path.is_file, path.rglob("*")):
        with file.open("r+b") as stream:
            os.fsync(stream.fileno())


def _replace_folder(new: Path, path: Path) -> None:
    """Put `new` in the place of the folder `path`: in one step where the system can, else with a way back."""
    if _exchange(new, path):
        return
    old = new.parent.with_suffix(".old")  # outside of the temporary folder: a kill between the renames must not lose it
    os.rename(path, old)
    try:
        os.rename(new, path)
    except BaseException:
        os.rename(old, path)
        raise
    shutil.rmtree(old)


def _exchange(first: Path, second: Path) -> bool:
    """Swap two names atomically; false where the system or the file system has no such call."""
    if sys.platform != "linux":
        return False
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)
    names = os.fsencode(first), os.fsencode(second)
    return renameat2 is not None and renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0
