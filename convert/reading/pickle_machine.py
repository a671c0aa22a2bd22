"""Reads a pickle as data: nothing that it names is imported, and nothing that it asks for is called.

A pickle is a small program for a stack machine. This machine runs the part of it that builds plain data, and writes
down the rest: a name stays a `Global`, a call stays a `Call`. Work and memory are bounded by the pickle's size and its
number of opcodes, whatever lengths it claims. Dictionaries are lists of pairs, since hashing keys from a hostile file
can take quadratic time.
"""

import dataclasses
import pickle
import re
from collections.abc import Callable
from typing import Any

from sam_jax.convert.reading.pickle_stream import GETS, PUTS, VALUES, Stream, decode
from sam_jax.errors import CheckpointError, describe

MAX_BYTES = 1 << 25
"""The longest pickle that is read. A checkpoint's pickle holds names and sizes, about 250 bytes a tensor."""

_MAX_OPCODES = 1_000_000
_MAX_PROTOCOL = 5
_MAX_PATH = 1024  # characters

# Nothing is ever called, so this list is not what keeps a reader safe. It tells the user that the file is hostile.
_HOSTILE = re.compile(
    r"""
    ( _pickle | _posixsubprocess | asyncio | bdb | cProfile | code | codeop | commands | ctypes | doctest | ftplib
    | http | httplib | idlelib | imp | importlib | marshal | multiprocessing | nt | os | pdb | pickle | pip | pkgutil
    | posix | profile | pty | pydoc | requests | runpy | shutil | signal | smtplib | socket | ssl | subprocess | sys
    | timeit | trace | urllib | urllib2 | webbrowser ) \. .*
    | builtins \. (?! ( bool | bytearray | bytes | complex | dict | enumerate | float | frozenset | getattr | int | list
    | object | range | reversed | set | slice | str | tuple | type | zip ) $ ) .*
    """,
    re.VERBOSE | re.DOTALL,
)
_MODULES_RENAMED = {"__builtin__": "builtins", "copy_reg": "copyreg"}  # by Python 3


@dataclasses.dataclass(frozen=True, slots=True)
class Global:
    """A class or function that the pickle names, such as `torch.FloatStorage`."""

    path: str


@dataclasses.dataclass(eq=False, repr=False, slots=True)
class Call:
    """An object that unpickling would make by calling something.

    Attributes:
      function: what would be called.
      arguments: with what.
      changed: whether the pickle then sets the object's state or adds items, which are dropped.
    """

    function: Global
    arguments: tuple[Any, ...]
    changed: bool = False


@dataclasses.dataclass(eq=False, repr=False, slots=True)
class Dictionary:
    """A `dict` or `OrderedDict`: its pairs, in order, with repeated keys if the pickle repeats them."""

    pairs: list[tuple[Any, Any]]
    ordered: bool = False


class _Machine:
    def __init__(self, stream: Stream, persistent: Callable[[Any], Any]):
        self._stream = stream
        self._persistent = persistent
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def run(self) -> Any:
        for _ in range(_MAX_OPCODES):
            opcode = self._stream.take(1)
            if opcode == pickle.STOP:
                return self._result()
            if opcode in VALUES:
                self._push(VALUES[opcode](self._stream))
            elif opcode in GETS:
                self._push(self._get(GETS[opcode](self._stream)))
            elif opcode in PUTS:
                self._put(PUTS[opcode](self._stream))
            elif opcode in _OPERATIONS:
                _OPERATIONS[opcode](self)
            else:
                raise CheckpointError(
                    f"The pickle has the unsupported opcode {opcode!r} at byte {self._stream.place - 1}."
                )
        raise CheckpointError(f"The pickle has more than {_MAX_OPCODES} opcodes, too many for a checkpoint.")

    def _result(self) -> Any:
        result = self._pop()
        if self._stack or self._marks:
            raise CheckpointError("The pickle leaves more than one value.")
        return result

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _pop(self) -> Any:
        self._top()
        return self._stack.pop()

    def _pop_many(self, count: int) -> list[Any]:
        return [self._pop() for _ in range(count)][::-1]

    def _top(self) -> Any:
        if len(self._stack) <= (self._marks[-1] if self._marks else 0):
            raise CheckpointError(f"The pickle takes a value that is not there, at byte {self._stream.place - 1}.")
        return self._stack[-1]

    def _pop_to_mark(self) -> list[Any]:
        if not self._marks:
            raise CheckpointError(f"The pickle takes a mark that is not there, at byte {self._stream.place - 1}.")
        start = self._marks.pop()
        items = self._stack[start:]
        del self._stack[start:]
        return items

    def _mark(self) -> None:
        self._marks.append(len(self._stack))

    def _drop(self) -> None:
        if self._marks and self._marks[-1] == len(self._stack):
            self._marks.pop()
        else:
            self._pop()

    def _duplicate(self) -> None:
        self._push(self._top())

    def _put(self, index: int) -> None:
        if not 0 <= index < _MAX_OPCODES:
            raise CheckpointError(f"The pickle has the memo index {index}.")
        self._memo[index] = self._top()

    def _get(self, index: int) -> Any:
        if index not in self._memo:
            raise CheckpointError(f"The pickle takes memo {index}, which was never stored.")
        return self._memo[index]

    def _append(self, items: list[Any]) -> None:
        target = self._top()
        if type(target) is list:
            target.extend(items)
        elif type(target) is Call:
            target.changed = True
        else:
            raise CheckpointError(f"The pickle appends to {_kind(target)}.")

    def _set_items(self, items: list[Any]) -> None:
        target = self._top()
        if len(items) % 2:
            raise CheckpointError("The pickle sets a key without a value.")
        if type(target) is Dictionary:
            target.pairs.extend(zip(items[::2], items[1::2], strict=True))
        elif type(target) is Call:
            target.changed = True
        else:
            raise CheckpointError(f"The pickle sets items of {_kind(target)}.")

    def _dictionary(self) -> None:
        items = self._pop_to_mark()
        self._push(Dictionary([]))
        self._set_items(items)

    def _global(self, module: str, name: str) -> Global:
        module = _MODULES_RENAMED.get(module, module)
        path = f"{module}.{name}"
        if len(path) > _MAX_PATH:
            raise CheckpointError(f"The pickle names a global of {len(path)} characters, too long to be one.")
        if _HOSTILE.fullmatch(path):
            raise CheckpointError(f"The pickle names {describe(path)}, as files do that attack whoever unpickles them.")
        return Global(path)

    def _global_from_lines(self) -> Global:
        return self._global(decode(self._stream.line()), decode(self._stream.line()))

    def _global_from_stack(self) -> None:
        module, name = self._pop_many(2)
        if type(module) is not str or type(name) is not str:
            raise CheckpointError("The pickle names a global by something else than text.")
        self._push(self._global(module, name))

    def _call(self, function: Any, arguments: Any) -> None:
        """Write a call down. Only `OrderedDict()` is understood here: it is plain data."""
        if type(function) is Call:  # a method of an object that was not made
            function = function.function
        if type(function) is not Global or type(arguments) is not tuple:
            raise CheckpointError(f"The pickle calls {_kind(function)} with {_kind(arguments)}.")
        if function.path == "collections.OrderedDict" and not arguments:
            self._push(Dictionary([], ordered=True))
        else:
            self._push(Call(function, arguments))

    def _reduce(self) -> None:
        self._call(*self._pop_many(2))

    def _new_with_keywords(self) -> None:
        function, arguments, keywords = self._pop_many(3)
        if type(keywords) is not Dictionary:
            raise CheckpointError(f"The pickle calls with {_kind(keywords)} as keywords.")
        self._call(function, arguments)

    def _instance(self) -> None:
        self._call(self._global_from_lines(), tuple(self._pop_to_mark()))

    def _object(self) -> None:
        function, *arguments = self._pop_to_mark() or [None]
        self._call(function, tuple(arguments))

    def _build(self) -> None:
        """Drop an object's state. That of an `OrderedDict` is its `_metadata`, in a state dict."""
        self._pop()
        target = self._top()
        if type(target) is Call:
            target.changed = True
        elif type(target) is not Dictionary or not target.ordered:
            raise CheckpointError(f"The pickle sets the state of {_kind(target)}.")

    def _protocol(self) -> None:
        protocol = self._stream.unsigned(1)
        if protocol > _MAX_PROTOCOL:
            raise CheckpointError(f"The pickle has protocol {protocol}; up to {_MAX_PROTOCOL} is supported.")

    def _persistent_id(self) -> None:
        self._push(self._persistent(self._pop()))


_OPERATIONS: dict[bytes, Callable[[_Machine], Any]] = {
    pickle.PROTO: _Machine._protocol,
    pickle.FRAME: lambda machine: machine._stream.take(8),
    pickle.MARK: _Machine._mark,
    pickle.POP: _Machine._drop,
    pickle.POP_MARK: _Machine._pop_to_mark,
    pickle.DUP: _Machine._duplicate,
    pickle.MEMOIZE: lambda machine: machine._put(len(machine._memo)),
    pickle.TUPLE: lambda machine: machine._push(tuple(machine._pop_to_mark())),
    pickle.TUPLE1: lambda machine: machine._push(tuple(machine._pop_many(1))),
    pickle.TUPLE2: lambda machine: machine._push(tuple(machine._pop_many(2))),
    pickle.TUPLE3: lambda machine: machine._push(tuple(machine._pop_many(3))),
    pickle.LIST: lambda machine: machine._push(machine._pop_to_mark()),
    pickle.APPEND: lambda machine: machine._append([machine._pop()]),
    pickle.APPENDS: lambda machine: machine._append(machine._pop_to_mark()),
    pickle.ADDITEMS: lambda machine: machine._append(machine._pop_to_mark()),
    pickle.EMPTY_SET: lambda machine: machine._push(Call(Global("builtins.set"), ())),
    pickle.FROZENSET: lambda machine: machine._call(Global("builtins.frozenset"), tuple(machine._pop_to_mark())),
    pickle.EMPTY_DICT: lambda machine: machine._push(Dictionary([])),
    pickle.DICT: _Machine._dictionary,
    pickle.SETITEM: lambda machine: machine._set_items(machine._pop_many(2)),
    pickle.SETITEMS: lambda machine: machine._set_items(machine._pop_to_mark()),
    pickle.GLOBAL: lambda machine: machine._push(machine._global_from_lines()),
    pickle.STACK_GLOBAL: _Machine._global_from_stack,
    pickle.REDUCE: _Machine._reduce,
    pickle.NEWOBJ: _Machine._reduce,
    pickle.NEWOBJ_EX: _Machine._new_with_keywords,
    pickle.INST: _Machine._instance,
    pickle.OBJ: _Machine._object,
    pickle.BUILD: _Machine._build,
    pickle.BINPERSID: _Machine._persistent_id,
}
"""Opcodes that work on the stack. Not here: the extension registry, out-of-band buffers, persistent ids as text."""


def _kind(value: Any) -> str:
    """Name a value's kind. Its content may be endless, so it is not shown."""
    if type(value) in (Global, Call):
        return describe((value if type(value) is Global else value.function).path)
    return f"a {type(value).__name__.lower()}"


def read_pickle(data: bytes, persistent: Callable[[Any], Any], start: int = 0) -> tuple[Any, int]:
    """Read one pickle as data.

    Args:
      data: bytes that hold the pickle.
      persistent: what a persistent id stands for; in PyTorch's files, a storage. The id is any data.
      start: where in `data` the pickle begins.

    Returns:
      The object, made of None, bool, int, float, str, bytes, tuple, list, `Dictionary`, `Global`, `Call` and what
      `persistent` returned, and the place after the pickle. It may contain itself.

    Raises:
      CheckpointError: the pickle is damaged, uses what no checkpoint uses, or names what only an attack would.
    """
    stream = Stream(data, start)
    return _Machine(stream, persistent).run(), stream.place
