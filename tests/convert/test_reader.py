"""Any path: files, folders, and what is neither."""

import concurrent.futures
import gc
import json
import os

import numpy as np
import pytest
from reading import refusal, refused, write
from safetensors.numpy import save_file
from torch_writer import write_torch_zip

from sam_jax.convert.reader import open_checkpoint, read_tensors
from sam_jax.convert.reading import mapped_file
from sam_jax.errors import CheckpointError

A, B = np.arange(6, dtype=np.float32), np.arange(4, dtype=np.int64)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "hub").mkdir()
    return tmp_path / "hub"


def shard(folder, index: dict | str, suffix: str = "safetensors") -> None:
    """Write two files of weights and an index of them."""
    for name, tensors in (("one", {"a": A}), ("two", {"b": B})):
        if suffix == "bin":
            write_torch_zip(folder / f"{name}.bin", tensors)
        else:
            save_file(tensors, folder / f"{name}.safetensors")
    stem = "pytorch_model.bin" if suffix == "bin" else "model.safetensors"
    text = index if isinstance(index, str) else json.dumps({"weight_map": index})
    (folder / f"{stem}.index.json").write_text(text)


def test_paths_that_are_no_checkpoint_are_refused(tmp_path, folder):
    assert "There is no such file or folder" in refusal(tmp_path / "missing.pth")
    assert "There is no such file or folder" in refusal(tmp_path / "not\0a path")
    assert "File name too long" in refusal(tmp_path / ("x" * 5000))
    assert "The folder has none of the files model.safetensors" in refusal(folder)
    os.mkfifo(tmp_path / "pipe")
    assert "not a regular file" in refusal(tmp_path / "pipe")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    assert "There is no such file or folder" in refusal(tmp_path / "dangling")


def test_errors_of_the_operating_system_are_refusals(tmp_path, monkeypatch):
    def denied(*_args, **_options):
        raise PermissionError(13, "Permission denied")

    path = write_torch_zip(tmp_path / "some.pth", {"a": A})
    monkeypatch.setattr(mapped_file.mmap, "mmap", denied)
    assert refusal(path) == "The file cannot be read: Permission denied."


def test_a_mistake_of_this_package_is_still_one_error_type(tmp_path, monkeypatch):
    path = write_torch_zip(tmp_path / "some.pth", {"a": A})
    monkeypatch.setattr(mapped_file.mmap, "mmap", lambda *_args, **_options: 1 / 0)
    with pytest.raises(CheckpointError, match="ZeroDivisionError"):
        open_checkpoint(path)


def test_an_opened_checkpoint_outlives_its_path(tmp_path):
    path = write_torch_zip(tmp_path / "some.pth", {"a": A})
    checkpoint = open_checkpoint(path)
    path.unlink()
    write_torch_zip(path, {"a": A + 1})
    np.testing.assert_array_equal(checkpoint.tensors["a"].read(), A)


def test_arrays_outlive_the_checkpoint(tmp_path):
    array = read_tensors(write_torch_zip(tmp_path / "some.pth", {"a": A}))["a"]
    gc.collect()
    np.testing.assert_array_equal(array, A)


def test_a_file_that_is_cut_after_opening_is_refused(tmp_path):
    path = write_torch_zip(tmp_path / "some.pth", {"a": A})
    tensor = open_checkpoint(path).tensors["a"]
    os.truncate(path, 10)
    with pytest.raises(CheckpointError, match="The file was cut short while it was being read"):
        tensor.read()


def test_text_paths_and_threads(tmp_path):
    path = write_torch_zip(tmp_path / "some.pth", {str(index): A + index for index in range(8)})
    checkpoint = open_checkpoint(str(path))
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        arrays = list(pool.map(lambda tensor: tensor.read(), checkpoint.tensors.values()))
    assert all((array == A + index).all() for index, array in enumerate(arrays))


def test_a_folder_of_safetensors(folder):
    save_file({"a": A}, folder / "model.safetensors")
    (folder / "config.json").write_text('{"model_type": "sam"}')
    (folder / "pytorch_model.bin").write_bytes(b"broken, and not needed")
    checkpoint = open_checkpoint(folder)
    np.testing.assert_array_equal(checkpoint.tensors["a"].read(), A)
    assert checkpoint.settings == {"model_type": "sam"}
    assert checkpoint.container == "Hugging Face folder (safetensors)"


def test_a_folder_without_settings_has_those_of_its_file(tmp_path):
    save_file({"a": np.zeros(3)}, tmp_path / "model.safetensors", {"sam_jax": '{"family": null}'})
    assert open_checkpoint(tmp_path).settings == {"sam_jax": {"family": None}}
    (tmp_path / "config.json").write_text('{"model_type": "sam"}')
    assert open_checkpoint(tmp_path).settings == {"model_type": "sam"}


def test_a_folder_of_pytorch_weights(folder):
    write_torch_zip(folder / "pytorch_model.bin", {"a": A})
    checkpoint = open_checkpoint(folder)
    np.testing.assert_array_equal(checkpoint.tensors["a"].read(), A)
    assert checkpoint.settings is None
    assert checkpoint.container == "Hugging Face folder (PyTorch zip archive)"


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_a_folder_of_several_files(folder, suffix):
    shard(folder, {"b": f"two.{suffix}", "a": f"one.{suffix}"}, suffix)
    tensors = read_tensors(folder)
    assert list(tensors) == ["b", "a"]
    np.testing.assert_array_equal(tensors["a"], A)
    np.testing.assert_array_equal(tensors["b"], B)


def test_safetensors_come_first_in_several_files_too(folder):
    shard(folder, {"b": "two.safetensors", "a": "one.safetensors"})
    (folder / "pytorch_model.bin").write_bytes(b"broken, and not needed")
    assert read_tensors(folder).keys() == {"a", "b"}


def test_notes_of_parts_name_the_part(folder):
    shard(folder, {"a": "one.bin", "b": "two.bin"}, "bin")
    with (folder / "two.bin").open("ab") as file:
        file.write(b"more")
    assert open_checkpoint(folder).notes == ("two.bin: 4 bytes after the zip archive were ignored.",)


def test_weights_that_are_links_into_a_cache(tmp_path, folder):
    save_file({"a": A}, tmp_path / "blob")
    (folder / "model.safetensors").symlink_to(tmp_path / "blob")
    np.testing.assert_array_equal(read_tensors(folder)["a"], A)


@pytest.mark.parametrize(
    ("index", "words"),
    [
        ({"a": "../one.safetensors"}, "names '../one.safetensors', which is no file of this folder"),
        ({"a": "/etc/passwd"}, "names '/etc/passwd', which is no file of this folder"),
        ({"a": "sub/one.safetensors"}, "which is no file of this folder"),
        ({"a": "..\\one.safetensors"}, "which is no file of this folder"),
        ({"a": ".."}, "which is no file of this folder"),
        ({"a": ""}, "which is no file of this folder"),
        ({"a": 1}, "names 1, which is no file of this folder"),
        ({"a": "three.safetensors"}, "three.safetensors: There is no such file"),
        ({"a": "two.safetensors", "b": "two.safetensors"}, "Tensor 'a' is not in 'two.safetensors'"),
        ({"a": "one.safetensors", "c": "two.safetensors"}, "Tensor 'c' is not in 'two.safetensors'"),
        ({"b": "two.safetensors", "c": "one.safetensors"}, "Tensor 'c' is not in 'one.safetensors'"),
        ({}, "has no weight_map"),
        ('{"weight_map": []}', "has no weight_map"),
        ("{", "is no sound JSON"),
        ("[" * 100_000, "is no sound JSON"),
        ("[]", "is a JSON list, and an object is wanted"),
        ('{"weight_map": {"a": "one.safetensors", "a": "two.safetensors"}}', "a key is repeated"),
        ('{"x": %s}' % ("9" * 5000), "is no sound JSON"),
    ],
)
def test_a_bad_index_is_refused(folder, index, words):
    shard(folder, index)
    assert words in refusal(folder)


def test_a_tensor_that_the_index_leaves_out_is_refused(folder):
    shard(folder, {"a": "one.safetensors"})
    save_file({"a": A, "extra": B}, folder / "one.safetensors")
    assert "Tensor 'extra' is unexpected in 'one.safetensors'" in refusal(folder)


@pytest.mark.parametrize("text", ["{", "[1]", '{"a": 1, "a": 2}', "\xff", "5"])
def test_bad_settings_are_refused(folder, text):
    save_file({"a": A}, folder / "model.safetensors")
    (folder / "config.json").write_text(text, encoding="latin-1")
    assert "config.json" in refusal(folder)


def test_huge_settings_are_refused(folder):
    save_file({"a": A}, folder / "model.safetensors")
    (folder / "config.json").touch()
    os.truncate(folder / "config.json", 1 << 30)
    assert "config.json has 1073741824 bytes" in refusal(folder)


def test_a_broken_file_in_a_folder_is_named(folder):
    write(folder, b"junk" * 10, "pytorch_model.bin")
    assert refusal(folder).startswith("pytorch_model.bin: This is no PyTorch checkpoint")


def test_a_file_of_one_byte(tmp_path):
    assert "This is no PyTorch checkpoint" in refused(tmp_path, b"P")
