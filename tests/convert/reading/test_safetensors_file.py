"""Safetensors files: what the library writes, and what it does not refuse by itself."""

import json
import struct

import ml_dtypes
import numpy as np
import pytest
from reading import opened, read, refusal, refused, write
from safetensors.numpy import save

from sam_jax.convert.reader import read_tensors

SIX = np.arange(6, dtype=np.float32).reshape(2, 3)


def safetensors(header: dict | str, data: bytes = b"") -> bytes:
    """Return a file with any header."""
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(dtype: str, shape: list[int], start: int, stop: int) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


def test_tensors_are_views_of_the_file(tmp_path):
    arrays = {"a": SIX, "b": np.array(3.5), "c": np.empty((0, 4), np.int16), "d": np.array([True, False])}
    content = save(arrays, metadata={"format": "pt"})
    tensors = read(tmp_path, content)
    assert tensors.keys() == arrays.keys()
    for name, array in arrays.items():
        assert tensors[name].dtype == array.dtype
        np.testing.assert_array_equal(tensors[name], array)
    assert not tensors["a"].flags.owndata
    assert not tensors["a"].flags.writeable
    assert opened(tmp_path, content).container == "safetensors"


@pytest.mark.parametrize(
    ("code", "dtype"),
    [
        ("BF16", ml_dtypes.bfloat16),
        ("F8_E4M3", ml_dtypes.float8_e4m3fn),
        ("F8_E5M2", ml_dtypes.float8_e5m2),
        ("F8_E8M0", ml_dtypes.float8_e8m0fnu),
        ("F16", np.float16),
        ("C64", np.complex64),
        ("U64", np.uint64),
        ("U32", np.uint32),
        ("U16", np.uint16),
        ("I8", np.int8),
    ],
)
def test_dtypes(tmp_path, code, dtype):
    array = np.array([1, 2, 4]).astype(dtype)
    tensors = read(tmp_path, safetensors({"a": entry(code, [3], 0, array.nbytes)}, array.tobytes()))
    assert tensors["a"].dtype == np.dtype(dtype)
    assert tensors["a"].tobytes() == array.tobytes()


ENTRY = json.dumps(entry("F32", [6], 0, 24))
REPEATED = safetensors(f'{{"a":{ENTRY},"a":{ENTRY}}}', bytes(24))
GOOD = safetensors({"a": entry("F32", [2, 3], 0, 24)}, SIX.tobytes())


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (REPEATED, "a key is repeated"),
        (
            safetensors('{"a":{"dtype":"F32","shape":[6],"shape":[6],"data_offsets":[0,24]}}', bytes(24)),
            "no sound safetensors file",
        ),
        (safetensors({"a": entry("F32", [0, 1 << 62], 0, 0)}), "Tensor 'a' has the shape (0, 4611686018427387904)"),
        (safetensors({"a": entry("F32", [1] * 65, 0, 4)}, bytes(4)), "Tensor 'a' has 65 dimensions"),
        (safetensors({"a": entry("F4", [2], 0, 1)}, bytes(1)), "Tensor 'a' has the dtype F4"),
        (safetensors({"a": entry("BOOL", [2], 0, 2)}, b"\0\2"), "Tensor 'a' is of dtype bool"),
        (safetensors({"a\x1b[0m": entry("U8", [1], 0, 1)}, b"\0"), "is not up to 1024 printable characters"),
        (safetensors({"a": entry("F32", [7], 0, 24)}, bytes(24)), "no sound safetensors file"),
        (safetensors({"a": entry("F32", [6], 0, 24)}, bytes(25)), "no sound safetensors file"),
        (safetensors({"a": entry("F32", [6], 4, 28)}, bytes(28)), "no sound safetensors file"),
        (safetensors({"a": entry("F99", [6], 0, 24)}, bytes(24)), "no sound safetensors file"),
        (safetensors({"a": entry("\x1b[0m", [6], 0, 24)}, bytes(24)), "no sound safetensors file"),
        (safetensors({"a": 5}), "no sound safetensors file"),
        (safetensors("{" * 100_000), "no sound safetensors file"),
        (safetensors("{}"), "holds no tensors"),
        (GOOD[:-1], "no sound safetensors file"),
    ],
)
def test_bad_files_are_refused(tmp_path, content, words):
    assert words in refused(tmp_path, content)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "The file is empty"),
        (GOOD[:7], "truncated"),
        (GOOD[:40], "truncated"),
        (safetensors(' {"a": 1}'), "does not begin with a brace"),
        (struct.pack("<Q", 1 << 62) + b"{}", "header of 4611686018427387904 bytes is longer than"),
        (b"<html>Not found</html>", "longer than"),
    ],
)
def test_what_is_no_safetensors_file_but_is_named_so_is_refused(tmp_path, content, words):
    assert words in refusal(write(tmp_path, content, "model.safetensors"))


def test_the_content_decides_and_not_the_name(tmp_path):
    np.testing.assert_array_equal(read_tensors(write(tmp_path, GOOD, "model.pth"))["a"], SIX)
