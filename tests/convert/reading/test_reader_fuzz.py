"""Random damage and random hostility: a file is read as valid arrays or refused, nothing runs, memory stays small."""

import itertools
import struct
import sys
import tracemalloc
import types
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save
from torch_writer import (
    Call,
    Global,
    Pairs,
    Persistent,
    Raw,
    Record,
    array_tensor,
    dumps,
    legacy_bytes,
    legacy_storage,
    opcodes,
    ordered_dict,
    storage,
    tensor,
    torch_records,
    torch_zip,
    zip_bytes,
)

from sam_jax.convert.reader import read_tensors
from sam_jax.errors import CheckpointError

fuzz = settings(
    derandomize=True,
    deadline=None,
    database=None,
    max_examples=150,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

SIX = np.arange(6, dtype=np.float32).reshape(2, 3)
STORAGES = {"0": SIX.tobytes(), "1": SIX[::-1].tobytes()}
STATE_DICT = ordered_dict({"a.weight": array_tensor(SIX, "0"), "a.bias": tensor(storage("1"), (3,), (1,), 3)})
VALUE = {"model": STATE_DICT, "epoch": 3, "optimizer": Call(Global("torch.optim.Adam"), (), {"lr": 0.1})}
LEGACY = {"a": tensor(legacy_storage(), (2, 3), (3, 1)), "b": tensor(legacy_storage("1"), (6,), (1,))}
SEEDS = {
    "zip": torch_zip(VALUE, STORAGES),
    "deflated zip": torch_zip(VALUE, STORAGES, method=8),
    "zip without checksums": torch_zip(VALUE, STORAGES, crc=0),
    "legacy": legacy_bytes(LEGACY, {key: (6, data) for key, data in STORAGES.items()}),
    "safetensors": save({"a": SIX, "b": SIX.astype(np.float16), "c": np.arange(5) > 2}),
}


@pytest.fixture
def sentinel(monkeypatch):
    """A module that hostile pickles name, whose functions must not run."""
    module = types.ModuleType("sentinel")
    module.called = False

    def call(*_args, **_options):
        module.called = True
        return {}

    module.call = call
    module.Class = type("Class", (), {"__init__": call, "__setstate__": call, "__reduce__": call})
    monkeypatch.setitem(sys.modules, "sentinel", module)
    yield module
    assert not module.called


def survive(folder: Path, content: bytes) -> bool:
    """Read a file. It is refused by a check made for it, or every number can be used. Return whether it was read."""
    path = folder / "fuzzed"
    path.write_bytes(content)
    tensors, refused = {}, None
    try:
        tensors = read_tensors(path)
    except CheckpointError as error:
        refused = error
    if refused is not None:
        assert isinstance(refused.__cause__, CheckpointError), refused.__cause__
        assert str(refused).isprintable()
        return False
    for array in tensors.values():
        assert not array.flags.writeable
        array.tobytes()
    return True


@pytest.mark.parametrize("seed", SEEDS.values(), ids=SEEDS.keys())
def test_the_seeds_are_sound(tmp_path, seed):
    assert survive(tmp_path, seed)


@pytest.mark.parametrize("seed", SEEDS.values(), ids=SEEDS.keys())
def test_changed_bytes(tmp_path, seed, sentinel):
    places = st.integers(0, len(seed) - 1)

    @fuzz
    @given(st.dictionaries(places, st.sampled_from([0, 1, 0x7F, 0x80, 0xFF]) | st.integers(0, 255), max_size=4))
    def check(changes):
        content = bytearray(seed)
        for place, byte in changes.items():
            content[place] = byte
        survive(tmp_path, bytes(content))

    check()


@pytest.mark.parametrize("seed", SEEDS.values(), ids=SEEDS.keys())
def test_cut_moved_and_repeated_bytes(tmp_path, seed, sentinel):
    places = st.integers(0, len(seed))

    @fuzz
    @given(st.lists(st.tuples(places, places), min_size=1, max_size=3))
    def check(pieces):
        survive(tmp_path, b"".join(seed[start:stop] if start < stop else seed[start:] for start, stop in pieces))

    check()


@pytest.mark.parametrize("seed", SEEDS.values(), ids=SEEDS.keys())
def test_every_truncation_of_a_file_is_refused(tmp_path, seed):
    assert not any(survive(tmp_path, seed[:size]) for size in range(0, len(seed), 5))


@pytest.mark.parametrize("pair", list(itertools.permutations(SEEDS, 2)), ids=" + ".join)
def test_two_files_in_one(tmp_path, pair):
    first, second = (SEEDS[name] for name in pair)
    survive(tmp_path, first + second)
    survive(tmp_path, first[: len(first) // 2] + second[len(second) // 2 :])


NUMBERS = st.integers(-2, 7) | st.sampled_from([1 << 31, 1 << 62, -(1 << 63), 1 << 100])
WORDS = st.sampled_from(["a", "0", "1", "storage", "model", "", "../x", "\x1b", "\ud800"])
GLOBALS = st.sampled_from(
    [
        *("sentinel.call", "sentinel.Class", "sentinel.missing", "builtins.bytearray", "builtins.getattr"),
        *("collections.OrderedDict", "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor_v3"),
        *("torch._utils._rebuild_parameter", "torch._utils._rebuild_sparse_tensor", "torch.FloatStorage"),
        *("torch.storage.UntypedStorage", "torch.float8_e4m3fn", "torch.Size", "copyreg._reconstructor"),
    ]
).map(Global)
TENSORS = st.builds(
    tensor,
    st.builds(storage, st.sampled_from(["0", "1", "2"]), st.just("torch.FloatStorage"), NUMBERS | st.just(6)),
    st.lists(NUMBERS, max_size=3).map(tuple),
    st.lists(NUMBERS, max_size=3).map(tuple),
    NUMBERS,
)
LEAVES = st.none() | st.booleans() | NUMBERS | st.floats() | WORDS | GLOBALS | TENSORS


def containers(children):
    """Return values made of other values: containers, calls and persistent ids of anything."""
    items = st.lists(children, max_size=4)
    pairs = st.lists(st.tuples(WORDS | children, children), max_size=4).map(tuple)
    calls = st.builds(Call, GLOBALS | children, items.map(tuple) | children, st.none() | children, pairs)
    return items | items.map(tuple) | st.builds(Pairs, pairs) | calls | st.builds(Persistent, items.map(tuple))


@fuzz
@given(value=st.recursive(LEAVES, containers, max_leaves=20), zipped=st.booleans())
def test_random_objects(tmp_path_factory, sentinel, value, zipped):
    content = torch_zip(value, STORAGES) if zipped else legacy_bytes(value, {"0": (6, STORAGES["0"])})
    survive(tmp_path_factory.getbasetemp(), content)


PUSHES = st.builds(opcodes, LEAVES)
STACK = st.sampled_from([bytes([code]) for code in b"012(.}])]taeusbRQ\x81\x85\x86\x87\x8f\x90\x91\x92\x93\x94lod"])
INDEXED = st.builds(lambda code, index: bytes([code, index]), st.sampled_from(b"hqK\x80"), st.integers(0, 5))


@fuzz
@given(st.lists(PUSHES | STACK | INDEXED, max_size=40))
@example([b"}", b"q\x00", b"(", opcodes("a"), b"h\x00", b"u"])
def test_random_opcodes(tmp_path_factory, sentinel, program):
    content = torch_zip(b"\x80\x04" + b"".join(program) + b".", STORAGES)
    survive(tmp_path_factory.getbasetemp(), content)


@fuzz
@given(st.binary(max_size=60), st.sampled_from([b"", b"PK\x03\x04", b"\x80\x02", b"\x89HDF", b"(" * 20, b'{"a":']))
def test_random_bytes(tmp_path_factory, sentinel, content, start):
    survive(tmp_path_factory.getbasetemp(), start + content)
    survive(tmp_path_factory.getbasetemp(), torch_zip(start + content, STORAGES))


RECORDS = st.builds(
    Record,
    st.sampled_from(["archive/data.pkl", "archive/data/0", "archive/data/1", "archive/byteorder", "other/data.pkl"]),
    st.sampled_from([dumps(VALUE), *STORAGES.values(), b"", b"little", b"big"]),
    method=st.sampled_from([0, 8, 12]),
    flags=st.sampled_from([0x0808, 0, 8, 1]),
    size=st.none() | st.sampled_from([0, 24, 1 << 31, 0xFFFFFFFF]),
    crc=st.none() | st.just(0) | st.just(1),
    extra=st.sampled_from([b"", b"\x01\x00\x08\x00" + bytes(8), b"\x01\x00"]),
    wide=st.booleans(),
)


@fuzz
@given(st.lists(RECORDS, max_size=3), st.booleans())
def test_random_records(tmp_path_factory, records, wide_end):
    content = zip_bytes([*torch_records(VALUE, STORAGES)[:3], *records], wide_end=wide_end)
    survive(tmp_path_factory.getbasetemp(), content)


NESTED = b"(" * 4000 + b"t" * 4000
GREEDY = {
    "a text of 4 GiB": lambda: torch_zip(b"\x80\x02X\xff\xff\xff\xff.", {}),
    "bytes of 2**62": lambda: torch_zip(b"\x80\x04\x8e" + struct.pack("<Q", 1 << 62) + b".", {}),
    "a bytearray of 2**36": lambda: torch_zip({"x": Call(Global("builtins.bytearray"), (1 << 36,))}, {}),
    "a tensor of 34 GB over 24 bytes": lambda: torch_zip({"x": tensor(storage(), (1 << 33,), (0,))}, STORAGES),
    "a million such tensors": lambda: torch_zip(
        dumps(Raw(b"(" + opcodes(tensor(storage(), (1 << 24,), (0,))) + b"2" * 100_000 + b"t")), STORAGES
    ),
    "20,000 lists in each other": lambda: torch_zip(dumps(Raw(b"]" * 20_000 + b"a" * 19_999)), {}),
    "20,000 dictionaries in each other": lambda: torch_zip(dumps(Raw(b"}N" * 19_999 + b"}" + b"s" * 19_999)), {}),
    "4000 tuples in each other, in messages": lambda: torch_zip({"x": tensor(storage(), Raw(NESTED), (1,))}, STORAGES),
    "2**60 numbers, in messages": lambda: torch_zip(
        {"x": tensor(storage(), Raw(b"N" + b"2\x86" * 60), (1,))}, STORAGES
    ),
    "a pickle of 64 MiB": lambda: torch_zip(bytes(1 << 26), {}, method=8),
    "a storage of 128 MiB": lambda: torch_zip({"x": array_tensor(SIX, "0")}, {"0": bytes(1 << 27)}, method=8),
    "a key of 1 MiB, repeated": lambda: torch_zip(
        dumps(Raw(b"}" + opcodes("k" * (1 << 20)) + b"(" + opcodes(array_tensor(SIX, "0")) + b"2" * 1000 + b"ts")),
        STORAGES,
    ),
    "a number of 16 MB": lambda: torch_zip(b"\x80\x02\x8b" + struct.pack("<i", 1 << 24) + bytes(1 << 24) + b".", {}),
    "a safetensors header of 2**62": lambda: struct.pack("<Q", 1 << 62) + b'{"a":1}',
}


@pytest.mark.slow
@pytest.mark.parametrize("make", GREEDY.values(), ids=GREEDY.keys())
def test_greedy_files_are_refused_with_little_memory(tmp_path, make):
    path = tmp_path / "greedy.pth"
    path.write_bytes(make())
    tracemalloc.start()
    with pytest.raises(CheckpointError):
        read_tensors(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 26
