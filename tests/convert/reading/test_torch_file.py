"""Tensors in PyTorch's files: the right values, or a refusal that names them."""

import dataclasses
import struct
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from reading import opened, read, refused
from torch_writer import (
    LEGACY_START,
    STORAGE_CLASSES,
    Call,
    Global,
    Pairs,
    Persistent,
    Raw,
    array_tensor,
    dumps,
    legacy_bytes,
    legacy_storage,
    ordered_dict,
    storage,
    tensor,
    torch_records,
    torch_zip,
    untyped_tensor,
    write_torch_zip,
    zip_bytes,
)

from sam_jax.convert.reader import read_tensors
from sam_jax.convert.reading import torch_tensors

SIX = np.arange(6, dtype=np.float32)
STORAGES = {"0": SIX.tobytes()}
WHOLE = tensor(storage(), (2, 3), (3, 1))
UNTYPED_DTYPES = [np.uint16, np.uint32, np.uint64, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e4m3fnuz]
UNTYPED_DTYPES += [ml_dtypes.float8_e5m2, ml_dtypes.float8_e5m2fnuz, ml_dtypes.float8_e8m0fnu]
ALL_DTYPES = [*STORAGE_CLASSES, *map(np.dtype, UNTYPED_DTYPES)]


def some(dtype) -> np.ndarray:
    """Return an array of a dtype, with different elements."""
    return np.arange(6).reshape(2, 3).astype(dtype)


def same(actual: np.ndarray, expected: np.ndarray) -> bool:
    return (actual.dtype, actual.shape, actual.tobytes()) == (expected.dtype, expected.shape, expected.tobytes())


def swapped(records, names):
    """Return records of which some are written by a big-endian machine."""
    return [dataclasses.replace(r, data=names.get(r.name.removeprefix("archive/"), r.data)) for r in records]


@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=str)
def test_every_dtype_is_kept(tmp_path, dtype):
    arrays = {"2-d": some(dtype), "0-d": some(dtype)[1, 1], "empty": some(dtype)[:0]}
    arrays = {name: np.asarray(array) for name, array in arrays.items()}
    tensors = read_tensors(write_torch_zip(tmp_path / "some.pth", arrays))
    assert list(tensors) == list(arrays)
    assert all(same(tensors[name], arrays[name]) for name in arrays)


@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=str)
def test_big_endian_numbers_are_swapped(tmp_path, dtype):
    array = some(dtype)
    names = {"byteorder": b"big", "data/0": array.byteswap().tobytes()}
    content = zip_bytes(swapped(torch_records({"a": array_tensor(array, "0")}, {"0": array.tobytes()}), names))
    assert same(read(tmp_path, content)["a"], array)


def test_the_byte_order_must_be_known(tmp_path):
    records = torch_records({"a": WHOLE}, STORAGES)
    assert "byte order b'middle' is neither" in refused(tmp_path, zip_bytes(swapped(records, {"byteorder": b"middle"})))
    older = [record for record in records if not record.name.endswith(("byteorder", "version"))]
    assert same(read(tmp_path, zip_bytes(older))["a"], SIX.reshape(2, 3))


@pytest.mark.parametrize(
    ("shape", "strides", "offset", "expected"),
    [
        ((2, 3), (3, 1), 0, SIX.reshape(2, 3)),
        ((3, 2), (1, 3), 0, SIX.reshape(2, 3).T),
        ((4, 3), (1, 1), 0, np.lib.stride_tricks.sliding_window_view(SIX, 3)),
        ((2,), (2,), 1, SIX[1:4:2]),
        ((2, 4), (1, 0), 4, np.broadcast_to(SIX[4:, None], (2, 4))),
        ((), (), 5, SIX[5].reshape(())),
        ((1, 2), (1 << 62, 1), 4, SIX[4:].reshape(1, 2)),
        ((0, 7), (7, 1), 0, np.empty((0, 7), np.float32)),
        ((0,), (1,), 1 << 40, np.empty(0, np.float32)),
    ],
)
def test_strides_and_offsets(tmp_path, shape, strides, offset, expected):
    content = torch_zip({"a": tensor(storage(), shape, strides, offset)}, STORAGES)
    assert same(read(tmp_path, content)["a"], expected)


def test_a_shared_storage_is_one_piece_of_memory(tmp_path):
    tensors = read(tmp_path, torch_zip({"a": WHOLE, "b": tensor(storage(), (3,), (1,), 3)}, STORAGES))
    np.testing.assert_array_equal(tensors["b"], SIX[3:])
    assert np.shares_memory(tensors["a"], tensors["b"])


def test_a_deflated_storage_is_unpacked_once(tmp_path):
    content = torch_zip({"a": WHOLE, "b": WHOLE}, STORAGES, method=8)
    tensors = read(tmp_path, content)
    assert np.shares_memory(tensors["a"], tensors["b"])


@pytest.mark.parametrize("location", ["cuda:0", "meta", "evil:0", "../x"])
def test_the_device_is_ignored(tmp_path, location):
    content = torch_zip({"a": tensor(storage(location=location), (6,), (1,))}, STORAGES)
    assert same(read(tmp_path, content)["a"], SIX)


def test_parameters_and_older_tensors(tmp_path):
    hooks = ordered_dict({})
    value = {
        "parameter": Call(Global("torch._utils._rebuild_parameter"), (WHOLE, True, hooks)),
        "with state": Call(Global("torch._utils._rebuild_parameter_with_state"), (WHOLE, True, hooks, {"x": 1})),
        "old": Call(Global("torch._utils._rebuild_tensor"), (storage(), 0, (2, 3), (3, 1))),
        "metadata": tensor(storage(), (2, 3), (3, 1), metadata=({},)),
    }
    tensors = read(tmp_path, torch_zip(value, STORAGES))
    assert list(tensors) == list(value)
    assert all(same(array, SIX.reshape(2, 3)) for array in tensors.values())


def test_names_are_paths(tmp_path):
    value = {
        "model": ordered_dict({"a.b": WHOLE, "": {"c": WHOLE}}, state={"_metadata": ordered_dict({}), "update": 1}),
        "list": [WHOLE, 5, (None, WHOLE)],
        "optimizer": {"state": {0: {"step": WHOLE}}, 2.5: "x", ("a", 1): {"b": None}},
        "epoch": 3,
    }
    names = ["model.a.b", "model..c", "list.0", "list.2.1", "optimizer.state.0.step"]
    checkpoint = opened(tmp_path, torch_zip(value, STORAGES))
    assert list(checkpoint.tensors) == names
    assert checkpoint.container == "PyTorch zip archive"
    assert checkpoint.notes == ()


def test_objects_beside_the_tensors_are_skipped_and_noted(tmp_path):
    optimizer = Call(Global("torch.optim.adam.Adam"), (), {"state": {"hidden": WHOLE}})
    value = {
        "model_state": {"a": WHOLE},
        "optimizer": optimizer,
        "args": Call(Global("argparse.Namespace"), (), {"lr": 0.1}),
        "paths": [Call(Global("pathlib.PosixPath"), ("/", "x")), Call(Global("pathlib.PosixPath"), ("/", "y"))],
        "array": Call(Global("numpy.core.multiarray._reconstruct"), (Global("numpy.ndarray"), (0,), "b")),
        "class": Global("torch_em.loss.DiceLoss"),
        "storage": storage(),
    }
    checkpoint = opened(tmp_path, torch_zip(value, STORAGES))
    assert list(checkpoint.tensors) == ["model_state.a"]
    assert checkpoint.notes == (
        "Objects that are no plain data were skipped: 'torch.optim.adam.Adam' (1), 'argparse.Namespace' (1), "
        "'pathlib.PosixPath' (2), 'numpy.core.multiarray._reconstruct' (1), 'torch_em.loss.DiceLoss' (1) and 1 more.",
    )


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (Call(Global("mine.Net"), (), {"weight": WHOLE}), "pickled objects, such as whole modules: 'mine.Net' (1)"),
        ({"model": Call(Global("mine.Net"), ())}, "pickled objects, such as whole modules: 'mine.Net' (1)"),
        ({}, "holds no tensors"),
        ({"epoch": 1}, "holds no tensors"),
        (None, "holds no tensors"),
        (WHOLE, "one bare tensor, without a name"),
        ({0: WHOLE}, "The tensor at '?' has a key that is not text"),
        ({"a": {("b", 1): [WHOLE]}}, "The tensor at 'a.?.0' has a key that is not text"),
        ({"a": {"b": WHOLE}, "a.b": WHOLE}, "Two tensors have the name 'a.b'"),
        ({"m": Pairs((("a", WHOLE), ("a", WHOLE)))}, "The dictionary at 'm' has the key 'a' twice"),
        (Pairs((("a", WHOLE), ("n", 1), ("n", 2))), "The dictionary at the top has the key 'n' twice"),
        ({"a\n": WHOLE}, r"tensor name 'a\n' is not up to 1024 printable characters"),
        ({"\ud800": WHOLE}, r"tensor name '\ud800' is not up to 1024 printable"),
        ({"a" * 1025: WHOLE}, "is not up to 1024 printable characters"),
        ({"x": Call(Global("builtins.bytearray"), (1 << 36,))}, "The object at 'x' would allocate memory at will"),
        ({"x": Call(Global("torch.FloatTensor"), (1 << 34,))}, "Tensor 'x' is made by 'torch.FloatTensor'"),
    ],
)
def test_objects_that_are_no_checkpoint_are_refused(tmp_path, value, words):
    assert words in refused(tmp_path, torch_zip(value, STORAGES))


REBUILD = "torch._utils._rebuild_"


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (tensor(storage(), (7,), (1,)), "needs 28 bytes of record 'archive/data/0', of 24"),
        (tensor(storage(), (6,), (1,), 1), "needs 28 bytes of record 'archive/data/0', of 24"),
        (tensor(storage(), (2, 3), (4, 1)), "needs 28 bytes of record 'archive/data/0', of 24"),
        (tensor(storage(), (1,), (1,), 1 << 62), "bytes of record 'archive/data/0', of 24"),
        (tensor(storage(), (2,), (1 << 62,)), "bytes of record 'archive/data/0', of 24"),
        (tensor(storage(), (-1,), (1,)), "has a negative size, stride or offset"),
        (tensor(storage(), (2,), (-1,), 5), "has a negative size, stride or offset"),
        (tensor(storage(), (2,), (1,), -1), "has a negative size, stride or offset"),
        (tensor(storage(), (2, 3), (1,)), "has 2 dimensions and 1 strides"),
        (tensor(storage(), (1,) * 65, (1,) * 65), "has 65 dimensions and 65 strides"),
        (tensor(storage(), (2.0,), (1,)), "has a shape that is not made of whole numbers"),
        (tensor(storage(), [2], (1,)), "has a shape that is not made of whole numbers"),
        (tensor(storage(), (2,), ("1",)), "has strides that is not made of whole numbers"),
        (tensor(storage(), (True,), (1,)), "has a shape that is not made of whole numbers"),
        (tensor(storage(), (2,), (1,), None), "has an offset that is not made of whole numbers"),
        (tensor(storage(), (0, 1 << 62), (1, 1)), "which no array can have"),
        (tensor(storage(), (1 << 40, 1 << 40), (0, 0)), "which no array can have"),
        (tensor(storage(), (1 << 33,), (0,)), "of shape (8589934592,) would take 34359738368 bytes"),
        (tensor(None, (1,), (1,)), "has no storage"),
        (tensor("0", (1,), (1,)), "has no storage"),
        (tensor(storage(), (1,), (1,), metadata=({"conj": True},)), "is a conjugated or negated view"),
        (tensor(storage(), (1,), (1,), metadata=({}, {})), "in an unknown way"),
        (dataclasses.replace(WHOLE, state={"data": 1}), "in an unknown way"),
        (dataclasses.replace(WHOLE, arguments=WHOLE.arguments[:5]), "in an unknown way"),
        (Call(Global(REBUILD + "parameter"), (WHOLE, True), {"data": 1}), "is changed after it is made"),
        (Call(Global(REBUILD + "parameter"), (1, True)), "is made by 'torch._utils._rebuild_parameter'"),
        (Call(Global(REBUILD + "sparse_tensor"), (1,)), "a sparse tensor: call `.to_dense()`"),
        (Call(Global(REBUILD + "qtensor"), (1,)), "a quantised tensor: call `.dequantize()`"),
        (Call(Global(REBUILD + "meta_tensor_no_storage"), (1,)), "the meta device, which has no data"),
        (Call(Global(REBUILD + "anything"), (1,)), "'torch._utils._rebuild_anything': no plain tensor"),
        (Call(Global("torch._tensor._rebuild_from_type_v2"), (1,)), "a tensor subclass or a tensor with attributes"),
        (Call(Global("torch.nn.parameter.Parameter"), (1,)), "'torch.nn.parameter.Parameter': no plain tensor"),
        (untyped_tensor(storage(), (1,), (1,), "float32"), "needs either a typed storage, or an untyped one"),
        (tensor(storage(kind="torch.QInt8Storage", count=24), (1,), (1,)), "needs either a typed storage"),
    ],
)
def test_bad_tensors_are_refused_by_name(tmp_path, bad, words):
    value = {"good": tensor(storage("1"), (6,), (1,)), "bad": bad}
    message = refused(tmp_path, torch_zip(value, STORAGES | {"1": STORAGES["0"]}))
    assert message.startswith("Tensor 'bad' ")
    assert words in message


@pytest.mark.parametrize("dtype", ["complex32", "float4_e2m1fn_x2", "bits8", "nonsense"])
def test_unknown_dtypes_are_refused(tmp_path, dtype):
    value = {"bad": untyped_tensor(storage(kind="torch.storage.UntypedStorage", count=24), (1,), (1,), dtype)}
    assert f"Tensor 'bad' has the dtype 'torch.{dtype}'" in refused(tmp_path, torch_zip(value, STORAGES))


def test_bool_is_0_or_1(tmp_path):
    value = {"bad": tensor(storage(kind="torch.BoolStorage", count=2), (2,), (1,))}
    assert read(tmp_path, torch_zip(value, {"0": b"\0\1"}))["bad"].tolist() == [False, True]
    message = refused(tmp_path, torch_zip(value, {"0": b"\0\2"}))
    assert "Tensor 'bad' is of dtype bool and holds bytes other than 0 and 1" in message


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (storage("../../../etc/passwd"), "no record for storage '../../../etc/passwd'"),
        (storage("9"), "no record for storage '9'"),
        (storage(count=5), "'archive/data/0' has 24 bytes, and the pickle says 20"),
        (storage(count=7), "'archive/data/0' has 24 bytes, and the pickle says 28"),
        (storage(count=1 << 62), "'archive/data/0' has 24 bytes, and the pickle says"),
        (storage(count=-1), "'archive/data/0' has 24 bytes, and the pickle says -4"),
        (storage(count=6.0), "whose size is no number"),
        (storage(key=0), "whose key is no text"),
        (storage(kind="torch.StrangeStorage"), "storage of an unknown class: 'torch.StrangeStorage'"),
        (storage(kind="mine.FloatStorage"), "storage of an unknown class: 'mine.FloatStorage'"),
        (Persistent(("module", Global("mine.Net"), "net.py", "class Net")), "outside of it that is no plain storage"),
        (Persistent("storage"), "outside of it that is no plain storage"),
        (Persistent(("storage", Global("torch.FloatStorage"), "0", "cpu", 6, None)), "no plain storage"),
        ([storage(), storage(kind="torch.IntStorage")], "gives storage '0' two dtypes or sizes"),
        ([storage(), storage(count=5)], "gives storage '0' two dtypes or sizes"),
    ],
)
def test_bad_storages_are_refused_even_if_no_tensor_needs_them(tmp_path, bad, words):
    content = torch_zip({"a": tensor(storage("1"), (6,), (1,)), "b": bad}, STORAGES | {"1": STORAGES["0"]})
    assert words in refused(tmp_path, content)


def test_nesting_without_end_is_refused(tmp_path):
    def message(value: bytes) -> str:
        return refused(tmp_path, torch_zip(dumps(Raw(value)), {}))

    assert "contains itself" in message(b"}q\x00(X\x04\x00\x00\x00selfh\x00u")
    assert "contains itself" in message(b"]q\x00h\x00a")
    assert "nested more than 64 deep" in message(b"]" * 100_000 + b"a" * 99_999)
    assert "nested more than 64 deep" in message(b"N" + b"\x85" * 100_000)


def test_a_list_that_doubles_without_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(torch_tensors, "_MAX_NODES", 10_000)
    doubling = b"]" + b"2\x86" * 60
    assert "more than 10000 objects" in refused(tmp_path, torch_zip(dumps(Raw(doubling)), {}))


LEGACY = {"a": tensor(legacy_storage(), (2, 3), (3, 1)), "b": tensor(legacy_storage("1"), (6,), (1,))}
SIX_TWICE = {"0": (6, SIX.tobytes()), "1": (6, SIX[::-1].tobytes())}


class TestLegacy:
    """The format before zip."""

    def test_tensors_are_read(self, tmp_path):
        checkpoint = opened(tmp_path, legacy_bytes(LEGACY, SIX_TWICE) + b"more")
        assert same(checkpoint.tensors["a"].read(), SIX.reshape(2, 3))
        assert same(checkpoint.tensors["b"].read(), SIX[::-1])
        assert checkpoint.container == "PyTorch file of the format before zip"
        assert checkpoint.notes == (
            "This format has no checksums, so that damage to the numbers would go unnoticed.",
            "4 bytes after the last storage were ignored.",
        )

    def test_classes_with_their_source_code_are_objects(self, tmp_path):
        module = Persistent(("module", Global("mine.Net"), "net.py", "class Net: ..."))
        value = {"a": tensor(legacy_storage(), (6,), (1,)), "net": Call(module, ())}
        assert "'mine.Net' (1)" in opened(tmp_path, legacy_bytes(value, {"0": (6, SIX.tobytes())})).notes[1]

    @pytest.mark.parametrize(
        ("value", "storages", "words"),
        [
            (LEGACY, {"0": (6, SIX.tobytes())}, "does not list the storages"),
            (LEGACY, SIX_TWICE | {"2": (6, SIX.tobytes())}, "does not list the storages"),
            (LEGACY, SIX_TWICE | {"1": (5, SIX.tobytes())}, "Storage '1' has 5 elements, and the pickle says 6"),
            (LEGACY, SIX_TWICE | {"1": (6, b"")}, "truncated within storage '1'"),
            ({"a": legacy_storage(count=-1)}, {"0": (-1, b"")}, "Storage '0' has -1 elements"),
            ({"a": legacy_storage(view=("1", 0, 3))}, {"0": (6, SIX.tobytes())}, "no plain storage"),
            ({"a": storage()}, {"0": (6, SIX.tobytes())}, "no plain storage"),
        ],
    )
    def test_bad_storages_are_refused(self, tmp_path, value, storages, words):
        assert words in refused(tmp_path, legacy_bytes(value, storages))

    @pytest.mark.parametrize(
        "start",
        [
            [LEGACY_START[0], 1002, LEGACY_START[2]],
            [LEGACY_START[0], 1001, {"little_endian": False}],
            [LEGACY_START[0], 1001, 5],
        ],
    )
    def test_other_versions_are_refused(self, tmp_path, start):
        content = legacy_bytes(LEGACY, SIX_TWICE, start)
        assert "is not little-endian version 1001" in refused(tmp_path, content)

    def test_every_truncation_is_refused(self, tmp_path):
        content = legacy_bytes(LEGACY, SIX_TWICE)
        for size in range(20, len(content), 7):
            assert "truncated" in refused(tmp_path, content[:size])

    def test_bool_keys_are_no_list_of_storages(self, tmp_path):
        content = b"".join(dumps(part) for part in [*LEGACY_START, {"a": 1}, {"0": 1}])
        assert "does not list the storages" in refused(tmp_path, content)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (dumps({"a": 1}), "a plain pickle, not written by torch.save"),
        (b"\x80\x04\x95" + bytes(40), "a plain pickle"),
        (b"\x89HDF\r\n\x1a\n" + bytes(99), "an HDF5 file"),
        (b"\x93NUMPY\x01\x00" + bytes(99), "a numpy file"),
        (b"\x1f\x8b\x08" + bytes(99), "gzip: unpack it first"),
        (bytes(257) + b"ustar\x0000" + bytes(300), "a tar archive; if PyTorch before 0.1.10 wrote it"),
        (b"\x08\x07\x12\x07pytorch", "perhaps an ONNX model"),
        (b"<!DOCTYPE html><html>", "a web page: the download has failed"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "a Git LFS pointer"),
        (b"\x00\x01\x02\x03", r"something else, which begins with b'\x00\x01\x02\x03'"),
        (struct.pack("<d", 1.5) * 100, "something else, which begins with"),
        (b"", "The file is empty"),
    ],
)
def test_files_of_another_kind_are_named(tmp_path, content, words):
    assert words in refused(tmp_path, content)


def test_reading_takes_no_memory_for_the_numbers(tmp_path):
    status = Path("/proc/self/statm")
    if not status.exists():
        pytest.skip("resident memory is only known on Linux")
    arrays = {str(index): np.full(1 << 18, index, np.float32) for index in range(64)}  # 64 MiB
    path = write_torch_zip(tmp_path / "large.pth", arrays)
    del arrays
    before = int(status.read_text().split()[1])
    tensors = read_tensors(path)
    resident = (int(status.read_text().split()[1]) - before) * 4096
    assert sum(array.nbytes for array in tensors.values()) == 1 << 26
    assert resident < 1 << 23
    assert tensors["7"][-1] == 7
