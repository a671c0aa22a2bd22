"""Files for PyTorch programs: what is written is what is read, and nothing is left half-written."""

import os
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors

from sam_jax.convert import read_tensors
from sam_jax.convert.writer import write_tensors

TENSORS = {
    "matrix": np.arange(6, dtype=np.float32).reshape(2, 3).T,
    "half": np.array([1, -0.0, np.nan], ml_dtypes.bfloat16),
    "single": np.array(2.5, np.float64),
}


def assert_holds_tensors(path):
    found = read_tensors(path)
    assert found.keys() == TENSORS.keys()
    for name, array in TENSORS.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        assert found[name].tobytes() == array.tobytes()


def test_safetensors_keep_every_bit_and_the_metadata(tmp_path):
    write_tensors(tmp_path / "x.safetensors", TENSORS, metadata={"family": "sam"})
    assert_holds_tensors(tmp_path / "x.safetensors")
    with safetensors.safe_open(tmp_path / "x.safetensors", "np") as file:
        assert file.metadata() == {"format": "pt", "family": "sam"}
    (tmp_path / "usual").touch()
    assert (tmp_path / "x.safetensors").stat().st_mode == (tmp_path / "usual").stat().st_mode


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin"])
def test_pytorch_reads_what_is_written(suffix, tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch is an optional dependency")
    path = tmp_path / f"x{suffix}"
    write_tensors(path, TENSORS)
    assert_holds_tensors(path)
    loaded = torch.load(path, weights_only=True)
    assert loaded["half"].dtype == torch.bfloat16
    assert loaded["matrix"].tolist() == TENSORS["matrix"].tolist()


def test_without_pytorch_a_pth_is_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ModuleNotFoundError, match=r"Writing a \.pth needs PyTorch"):
        write_tensors(tmp_path / "x.pth", TENSORS)
    assert os.listdir(tmp_path) == []


def test_other_suffixes_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"x\.onnx must end in one of \.safetensors, \.pth"):
        write_tensors(tmp_path / "x.onnx", TENSORS)


def test_an_existing_file_is_replaced_only_on_request_and_only_by_a_whole_one(tmp_path, monkeypatch):
    path = tmp_path / "x.safetensors"
    write_tensors(path, TENSORS)
    with pytest.raises(FileExistsError):
        write_tensors(path, {})

    def half(file, content):
        with file.open("wb") as stream:
            stream.write(content[: len(content) // 2])
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(KeyboardInterrupt):
        write_tensors(path, {}, overwrite=True)
    assert_holds_tensors(path)
    assert os.listdir(tmp_path) == [path.name]
