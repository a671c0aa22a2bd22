"""The reader on files that PyTorch wrote: the same numbers as in PyTorch, or a refusal that says what to do."""

import argparse
import collections
import pathlib
import struct
import zipfile

import ml_dtypes
import numpy as np
import pytest
import torch

from sam_jax.convert.reader import open_checkpoint, read_tensors
from sam_jax.errors import CheckpointError

CONTAINERS = {"PyTorch zip archive": True, "PyTorch file of the format before zip": False}
FLOATS = ["float64", "float32", "float16", "bfloat16"]
FLOATS += ["float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"]
OTHERS = ["int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8", "bool", "complex64", "complex128"]


@pytest.fixture(params=CONTAINERS, ids=["zip", "legacy"])
def container(request):
    return request.param


@pytest.fixture
def saved(tmp_path, container):
    """Save an object and return the path."""

    def save(value, **options):
        path = tmp_path / "saved.pth"
        torch.save(value, path, _use_new_zipfile_serialization=CONTAINERS[container], **options)
        return path

    return save


def as_array(tensor) -> np.ndarray:
    """Return a tensor's numbers without a detour through another dtype."""
    name = str(tensor.dtype).removeprefix("torch.")
    dtype = np.dtype(getattr(ml_dtypes, name, None) or name)
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().view(dtype).reshape(tensor.shape)


def assert_same(arrays: dict, tensors: dict) -> None:
    assert list(arrays) == list(tensors)
    for name, tensor in tensors.items():
        expected = as_array(tensor)
        assert (arrays[name].dtype, arrays[name].shape) == (expected.dtype, expected.shape)
        assert arrays[name].tobytes() == expected.tobytes()


class Net(torch.nn.Module):
    """A module with parameters, a buffer and a shared weight."""

    def __init__(self):
        super().__init__()
        self.first = torch.nn.Linear(3, 4)
        self.norm = torch.nn.BatchNorm1d(4)
        self.second = torch.nn.Linear(4, 3)
        self.tied = self.second


@pytest.mark.parametrize("dtype", FLOATS + OTHERS)
def test_every_dtype(saved, dtype):
    numbers = torch.tensor([[0, 1, 2], [4, 8, 16]]).to(getattr(torch, dtype))
    tensors = {"all": numbers, "one": numbers[1, 1].clone(), "none": numbers[:0].clone(), "row": numbers[1]}
    assert_same(read_tensors(saved(tensors)), tensors)


def test_views(saved):
    base = torch.arange(24.0).reshape(2, 3, 4)
    tensors = {
        "base": base,
        "transposed": base.transpose(0, 2),
        "slice": base[:, 1::2, ::3],
        "expanded": base[0, :1].expand(5, 4),
        "overlapping": base.as_strided((4, 3), (1, 1)),
        "parameter": torch.nn.Parameter(base[1]),
    }
    arrays = read_tensors(saved(tensors))
    assert_same(arrays, tensors)
    assert np.shares_memory(arrays["base"], arrays["transposed"])


@pytest.mark.parametrize("protocol", range(1, 6))  # PyTorch cannot write protocol 0
def test_every_protocol(saved, container, protocol):
    net = Net()
    path = saved({"model": net.state_dict(), "epoch": 3, "best": 0.5}, pickle_protocol=protocol)
    assert_same(read_tensors(path), {f"model.{name}": tensor for name, tensor in net.state_dict().items()})
    assert open_checkpoint(path).container == container


def test_a_state_dict_keeps_its_order_and_its_metadata_is_no_tensor(saved):
    state_dict = Net().state_dict()
    assert isinstance(state_dict, collections.OrderedDict)
    assert state_dict._metadata
    assert_same(read_tensors(saved(state_dict)), state_dict)


def test_a_training_checkpoint_with_live_objects(saved):
    net = Net()
    optimizer = torch.optim.AdamW(net.parameters())
    net.second(net.norm(net.first(torch.ones(2, 3)))).sum().backward()
    optimizer.step()
    value = {
        "model": net.state_dict(),
        "optimizer": optimizer,
        "scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 1).state_dict(),
        "state": optimizer.state_dict(),
        "args": argparse.Namespace(lr=0.1, path=pathlib.PurePosixPath("/x")),
        "array": np.ones(3),
        "random": torch.get_rng_state(),
    }
    checkpoint = open_checkpoint(saved(value))
    names = {f"model.{name}" for name in net.state_dict()} | {"random"}
    assert {name for name in checkpoint.tensors if not name.startswith("state.")} == names
    assert "state.state.0.exp_avg" in checkpoint.tensors
    assert "'torch.optim.adamw.AdamW' (1), 'argparse.Namespace' (1), 'numpy" in checkpoint.notes[-1]


@pytest.mark.filterwarnings("ignore:.*[qQ]uantiz")
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Net(), "outside of pickled objects, such as whole modules"),
        (lambda: {"model": Net()}, "outside of pickled objects, such as whole modules"),
        (lambda: torch.ones(3), "one bare tensor, without a name"),
        (lambda: {"bad": torch.ones(3).to_sparse()}, "Tensor 'bad' is made by 'torch._utils._rebuild_sparse_tensor'"),
        (lambda: {"bad": torch.ones(3, 3).to_sparse_csr()}, "a sparse tensor: call `.to_dense()`"),
        (lambda: {"bad": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)}, "`.dequantize()`"),
        (lambda: {"bad": torch.ones(3, device="meta")}, "the meta device, which has no data"),
        (lambda: {"bad": torch.ones(3, dtype=torch.complex64).conj()}, "a conjugated or negated view"),
        (lambda: {"bad": torch.ones(3, dtype=torch.complex64).conj().imag}, "a conjugated or negated view"),
        (lambda: {"bad": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])}, "a nested tensor"),
    ],
)
@pytest.mark.filterwarnings("ignore:Sparse CSR", "ignore:The PyTorch API of nested tensors", "ignore:Couldn't retrieve")
def test_what_is_not_a_plain_tensor_is_refused(saved, make, words):
    with pytest.raises(CheckpointError) as caught:
        read_tensors(saved(make()))
    assert words in str(caught.value)


def test_torchscript_is_refused(tmp_path):
    with pytest.warns(DeprecationWarning, match="torch.jit"):
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "script.pt")
    with pytest.raises(CheckpointError, match="a TorchScript program"):
        read_tensors(tmp_path / "script.pt")


def test_an_archive_without_checksums(tmp_path):
    tensors = {"a": torch.arange(6.0)}
    computed = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(tensors, tmp_path / "some.pth")
    finally:
        torch.serialization.set_crc32_options(computed)
    with pytest.raises(zipfile.BadZipFile):
        zipfile.ZipFile(tmp_path / "some.pth").read("some/data/0")
    assert_same(read_tensors(tmp_path / "some.pth"), tensors)
    assert "without a CRC-32" in open_checkpoint(tmp_path / "some.pth").notes[0]


def test_an_archive_that_was_packed_again(tmp_path):
    tensors = {"a": torch.arange(600.0), "b": torch.zeros(10_000)}
    torch.save(tensors, tmp_path / "some.pth")
    with (
        zipfile.ZipFile(tmp_path / "some.pth") as old,
        zipfile.ZipFile(tmp_path / "new.pth", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    assert_same(read_tensors(tmp_path / "new.pth"), tensors)


def test_a_flipped_bit_that_pytorch_loads_is_refused(tmp_path):
    torch.save({"a": torch.arange(600.0)}, tmp_path / "some.pth")
    content = bytearray((tmp_path / "some.pth").read_bytes())
    place = content.index(struct.pack("<2f", 300, 301))
    content[place] ^= 0x40
    (tmp_path / "some.pth").write_bytes(content)
    assert torch.load(tmp_path / "some.pth")["a"][300] != 300
    with pytest.raises(CheckpointError, match="Record 'some/data/0' is damaged"):
        read_tensors(tmp_path / "some.pth")
