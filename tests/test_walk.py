"""The walk over files: shares that are apart, and files read ahead in their order."""

import itertools
import threading
from pathlib import Path

import jax
import pytest

from sam_jax.walk import AHEAD, read_ahead, share_of_process

FILES = [Path(f"{i}.png") for i in range(7)]


def test_every_file_is_in_one_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    shares = []
    for process in range(3):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        shares.append(share_of_process(FILES))
    assert sorted(itertools.chain.from_iterable(shares)) == FILES
    assert [len(share) for share in shares] == [3, 2, 2]


def test_a_bad_file_is_told_in_its_place_and_ends_nothing() -> None:
    def read(file: Path) -> str:
        if file.stem == "2":
            raise ValueError("2.png is no image")
        return file.stem

    found = list(read_ahead(FILES, read))
    assert [file for file, _ in found] == FILES
    assert isinstance(found[2][1], ValueError)
    assert [value for _, value in found if isinstance(value, str)] == list("013456")
    assert list(read_ahead([], read)) == []


def test_few_files_are_read_ahead_and_none_after_the_end() -> None:
    begun, go_on = [], threading.Semaphore(0)

    def read(file: Path) -> None:
        begun.append(file)
        go_on.acquire(timeout=10)

    walk = read_ahead(FILES, read)
    for _ in range(AHEAD + 1):
        go_on.release()
    next(walk)
    assert len(begun) <= 1 + AHEAD
    walk.close()
    assert len(begun) <= 1 + AHEAD


def test_any_other_error_ends_the_walk() -> None:
    def read(file: Path) -> None:
        raise MemoryError(file)

    with pytest.raises(MemoryError):
        list(read_ahead(FILES, read))
