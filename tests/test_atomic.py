"""Writing in whole: what is at a path before, between and after, whatever goes wrong."""

import os
from pathlib import Path

import pytest

from sam_jax import atomic
from sam_jax.atomic import written_whole


def write_folder(path: Path, content: str, *, overwrite: bool = True) -> None:
    with written_whole(path, overwrite=overwrite) as new:
        (new / "part").mkdir(parents=True)
        (new / "part" / "file").write_text(content)


def write_file(path: Path, content: str, *, overwrite: bool = True) -> None:
    with written_whole(path, overwrite=overwrite) as new:
        new.write_text(content)


def read(path: Path) -> str:
    return (path / "part" / "file").read_text() if path.is_dir() else path.read_text()


@pytest.fixture(params=[write_folder, write_file])
def write(request):
    return request.param


@pytest.fixture(params=[True, False], ids=["exchange", "two renames"])
def exchange(request, monkeypatch):
    if not request.param:
        monkeypatch.setattr(atomic, "_exchange", lambda *_: False)


def test_replaces_what_was_there_and_leaves_nothing_else(write, exchange, tmp_path):
    for content in ("old", "new"):
        write(tmp_path / "deep" / "out", content)
        assert read(tmp_path / "deep" / "out") == content
        assert os.listdir(tmp_path / "deep") == ["out"]


def test_refuses_an_existing_path(write, tmp_path):
    write(tmp_path / "out", "old")
    with pytest.raises(FileExistsError, match=r"out exists already"):
        write(tmp_path / "out", "new", overwrite=False)
    assert read(tmp_path / "out") == "old"


def test_a_file_and_a_folder_do_not_replace_each_other(tmp_path):
    write_file(tmp_path / "file", "old")
    write_folder(tmp_path / "folder", "old")
    with pytest.raises(FileExistsError, match="is a file and is not replaced by a folder"):
        write_folder(tmp_path / "file", "new")
    with pytest.raises(FileExistsError, match="is a folder and is not replaced by a file"):
        write_file(tmp_path / "folder", "new")
    assert read(tmp_path / "file") == read(tmp_path / "folder") == "old"


@pytest.mark.parametrize("interruption", [OSError, KeyboardInterrupt])
def test_an_interruption_while_writing_changes_nothing(interruption, tmp_path):
    write_folder(tmp_path / "out", "old")

    def write_half():
        with written_whole(tmp_path / "out", overwrite=True) as new:
            new.mkdir()
            raise interruption

    with pytest.raises(interruption):
        write_half()
    assert read(tmp_path / "out") == "old"
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("step", [1, 2])
def test_an_interruption_between_two_renames_brings_the_old_back(step, tmp_path, monkeypatch):
    write_folder(tmp_path / "out", "old")
    rename, calls = os.rename, []

    def interrupted(*names):
        calls.append(names)
        if len(calls) == step:
            raise KeyboardInterrupt
        rename(*names)

    monkeypatch.setattr(atomic, "_exchange", lambda *_: False)
    monkeypatch.setattr(os, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_folder(tmp_path / "out", "new")
    assert read(tmp_path / "out") == "old"
    assert os.listdir(tmp_path) == ["out"]


def test_a_link_stays_and_its_target_is_replaced(tmp_path):
    write_folder(tmp_path / "target", "old")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    write_folder(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert read(tmp_path / "target") == "new"
