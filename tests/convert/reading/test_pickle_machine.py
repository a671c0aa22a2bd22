"""The pickle machine on real pickles, on damaged ones and on hostile ones."""

import pickle
import struct
import sys
import tracemalloc
from collections import OrderedDict

import pytest
from torch_writer import Call, Global, dumps, opcodes

from sam_jax.convert.reading import pickle_machine
from sam_jax.convert.reading.pickle_machine import Dictionary, read_pickle
from sam_jax.errors import CheckpointError

SCALARS = [None, True, False, 0, 255, -1, 1 << 16, -(1 << 40), 1 << 100, 1.5, "word", "é\n'", b"bytes"]


class Thing:
    """Any object."""

    def __init__(self, value):
        self.value = value

    def __reduce__(self):
        return Thing, (self.value,)


def no_storage(persistent_id):
    raise CheckpointError("no persistent ids here")


def load(data: bytes):
    return read_pickle(data, no_storage)[0]


def plain(value):
    """Return a value with dictionaries in place of what stands for them."""
    if isinstance(value, Dictionary):
        return {plain(key): plain(item) for key, item in value.pairs}
    if isinstance(value, list | tuple):
        return type(value)(map(plain, value))
    return value


@pytest.mark.parametrize("protocol", range(3, pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("pickler", [pickle._dumps, pickle.dumps], ids=["python", "c"])
def test_plain_data_is_read_as_it_is(protocol, pickler):
    shared = ["shared"]
    value = {
        "list": [*SCALARS, (), (1,), [2, [3]]],
        "again": [shared, shared],
        5: {"deep": {"deeper": tuple(range(5))}},
        "long": "x" * 300,
    }
    assert plain(load(pickler(value, protocol))) == value


@pytest.mark.parametrize("protocol", range(3))
def test_old_protocols_are_read(protocol):
    value = {"a": [1, -2, 3.5, None, (4, 5), (6,)], "b": 1 << 70, "c": {"d": [[], {}, ()]}, "yes": True, "é\\u": "☃"}
    assert plain(load(pickle.dumps(value, protocol))) == value


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_objects_are_written_down_and_not_made(protocol, monkeypatch):
    monkeypatch.setattr(Thing, "__init__", lambda self, value: pytest.fail("an object was made"))
    thing = Thing.__new__(Thing)
    thing.value = 7
    call = load(pickle.dumps(thing, protocol))
    assert call.function == pickle_machine.Global(f"{Thing.__module__}.Thing")
    assert call.arguments == (7,)


def test_an_ordered_dict_is_a_dictionary_without_its_state():
    value = OrderedDict(a=1)
    value.update = 5  # what sets attributes of an OrderedDict replaces its methods
    assert load(pickle.dumps(value, 2)).pairs == [("a", 1)]


def test_nothing_is_imported(tmp_path, monkeypatch):
    (tmp_path / "booby_trap.py").write_text(f"import pathlib\npathlib.Path({str(tmp_path / 'sprung')!r}).touch()\n")
    monkeypatch.syspath_prepend(tmp_path)
    hostile = dumps([Call(Global("booby_trap.anything"), ("x",)), Global("booby_trap.Other")])
    assert load(hostile)[0].function.path == "booby_trap.anything"
    assert "booby_trap" not in sys.modules
    assert not (tmp_path / "sprung").exists()
    with pytest.raises(AttributeError):  # the trap works
        pickle.loads(hostile)
    assert (tmp_path / "sprung").exists()
    del sys.modules["booby_trap"]


@pytest.mark.parametrize(
    "path",
    [
        *("posix.system", "os.popen", "nt.system", "builtins.eval", "__builtin__.exec", "builtins.__import__"),
        *("subprocess.Popen", "sys.exit", "importlib.import_module", "runpy.run_path", "pip.main", "shutil.rmtree"),
        *("socket.create_connection", "os.path.join", "webbrowser.open", "builtins.print", "urllib.request.urlopen"),
    ],
)
def test_globals_that_attacks_use_are_refused_by_name(path):
    shown = path.replace("__builtin__", "builtins")
    module, _, name = path.rpartition(".")
    for data in (
        dumps(Call(Global(path), ("true",))),
        dumps({"a": 1, "hidden": [Call(Global("collections.OrderedDict"), (Global(path),))]}),
        b"\x80\x04" + opcodes(module) + opcodes(name) + pickle.STACK_GLOBAL + pickle.STOP,
        b"(" + opcodes("true") + f"i{module}\n{name}\n.".encode(),
    ):
        with pytest.raises(CheckpointError, match=rf"names '{shown}', as files do that attack"):
            load(data)


@pytest.mark.parametrize("path", ["osmosis.system", "codecs.lookup", "builtins.set", "builtins.getattr", "system.x"])
def test_globals_that_resemble_those_are_not_refused(path):
    assert load(dumps(Global(path))).path == path


DAMAGED = {
    "empty": b"",
    "only a start": b"\x80\x02",
    "no stop": dumps({"a": 1})[:-1],
    "unknown opcode": b"\x80\x02\xff.",
    "protocol 6": b"\x80\x06N.",
    "empty stack": b".",
    "stack underflow": b"\x80\x02\x85.",
    "tuple underflow": b"NN\x87.",
    "underflow below a mark": b"N(\x85.",
    "missing mark": b"Nt.",
    "missing memo": b"\x80\x02h\x05.",
    "memo of nothing": b"q\x00N.",
    "negative memo": b"Np-1\n.",
    "huge memo": b"Nr\xff\xff\xff\xff.",
    "two values": b"NN.",
    "a mark is left": b"(N.",
    "item without value": b"}(N" + pickle.SETITEMS + b".",
    "set item of a list": b"]" + b"NN" + pickle.SETITEM + b".",
    "set items of None": b"N(NN" + pickle.SETITEMS + b".",
    "append to a dict": b"}Na.",
    "append to a tuple": b")Na.",
    "build on a dict": b"}}b.",
    "build on a list": b"]}b.",
    "build on text": opcodes("x") + b"}b.",
    "call of text": opcodes("x") + b")R.",
    "call with a list": opcodes(Global("a.b")) + b"]R.",
    "object without class": b"(o.",
    "keywords of another kind": opcodes(Global("a.b")) + b")]" + pickle.NEWOBJ_EX + b".",
    "global of numbers": b"K\x01K\x02" + pickle.STACK_GLOBAL + b".",
    "global that is cut": b"cos",
    "global that is not text": b"c\xff\nx\n.",
    "global without end": opcodes(Global("a." + "b" * 2000)) + b".",
    "text that is not UTF-8": b"X\x01\x00\x00\x00\xff.",
    "number that is no number": b"Ione\n.",
    "float that is no number": b"Fone\n.",
    "number of 4 MB": b"\x8b" + struct.pack("<i", 1 << 22) + bytes(1 << 22) + b".",
    "number of 10,000 digits": b"L" + b"9" * 10_000 + b"L\n.",
    "number of negative length": b"\x8b" + struct.pack("<i", -1) + b".",
    "text longer than the pickle": b"X\xff\xff\xff\xff.",
    "text of 2**63 bytes": b"\x8d" + struct.pack("<Q", 1 << 63) + b".",
    "bytes of 2**64 - 1": b"\x8e" + b"\xff" * 8 + b".",
    "bytearray of 2**40": b"\x96" + struct.pack("<Q", 1 << 40) + b".",
    "extension registry": b"\x82\x01.",
    "persistent id as text": b"Pstorage\n.",
    "out-of-band buffer": b"\x97.",
    "read-only buffer": b"N\x98.",
}


@pytest.mark.parametrize("data", DAMAGED.values(), ids=DAMAGED.keys())
def test_damaged_pickles_are_refused(data):
    tracemalloc.start()
    with pytest.raises(CheckpointError, match=r"[Tt]he pickle"):
        load(data)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < (1 << 20) + 2 * len(data)


@pytest.mark.parametrize("opcode", [b"N", b"}", b"]", b"(", b")", b"2"], ids=repr)
def test_the_number_of_opcodes_is_bounded(opcode, monkeypatch):
    monkeypatch.setattr(pickle_machine, "_MAX_OPCODES", 1000)
    with pytest.raises(CheckpointError, match="more than 1000 opcodes"):
        load(b"N" + opcode * 2000)


def test_what_may_be_dropped_is_dropped():
    assert load(b"K\x01K\x020.") == 1  # POP
    assert load(b"K\x01(K\x02K\x031.") == 1  # POP_MARK
    assert load(b"K\x01(0.") == 1  # POP of a mark
    assert load(b"K\x012\x86.") == (1, 1)  # DUP
    assert load(b"\x80\x04\x95" + bytes(8) + b"N.") is None  # FRAME
    assert load(opcodes(Global("a.B")) + b")}" + pickle.NEWOBJ_EX + b".").function.path == "a.B"
    assert load(opcodes(Global("a.B")) + b")R" + b"K\x01a" + b"K\x01K\x02s" + b"}b.").changed


def test_sets_are_objects():
    assert load(pickle.dumps({1}, 4)).function.path == "builtins.set"
    assert load(pickle.dumps(frozenset({1}), 4)).function.path == "builtins.frozenset"


def test_a_method_of_an_object_is_not_called():
    method = Call(Global("builtins.getattr"), (Global("some.Class"), "make"))
    assert load(dumps(Call(method, (1,)))).function.path == "builtins.getattr"


def test_the_place_after_the_pickle_is_returned():
    data = b"junk" + dumps("first") + dumps("second")
    first, place = read_pickle(data, no_storage, 4)
    assert (first, read_pickle(data, no_storage, place)[0]) == ("first", "second")
