"""Read pickles as data: nothing in them is imported, called or given attributes.

A pickle is a program for a stack machine, and Python's runs any callable that it names. The machine here knows
values, containers, and a table of constructors of its caller's, by name:

    read_pickle(file, {"collections.OrderedDict": ordered_dict}, persistent)

Everything else that a program asks for is refused before it happens.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import IO, Any, cast

from ggufkit.errors import CheckpointError, printable

__all__ = ["MAX_PICKLE", "Name", "read_pickle"]

MAX_PICKLE = 100_000_000  # bytes; the pickle of a large model's shard has a few hundred KB


@dataclass(frozen=True)
class Name:
    """A global that a pickle names, ``torch.FloatStorage``; never looked up."""

    name: str


class _Limited:
    """A file that ends after `MAX_PICKLE` bytes, so that a claimed length cannot ask for more."""

    def __init__(self, file: IO[bytes]):
        self._file = file
        self._left = MAX_PICKLE

    @property
    def nbytes(self) -> int:
        """Bytes read so far."""
        return MAX_PICKLE - self._left

    def read(self, n: int) -> bytes:
        return self._counted(self._file.read(min(max(n, 0), self._left)))

    def readline(self) -> bytes:
        return self._counted(self._file.readline(self._left))

    def tell(self) -> int:
        return self._file.tell()

    def _counted(self, data: bytes) -> bytes:
        self._left -= len(data)
        return data


def read_pickle(
    file: IO[bytes],
    constructors: Mapping[str, Callable[..., Any]],
    persistent: Callable[[Any], Any],
) -> Any:
    """The value of the pickle at the file's position, which moves behind it.

    Parameters
    ----------
    constructors : name of a callable → what takes its place.
    persistent : gives the value of a persistent id, torch's reference to a storage.

    Raises
    ------
    CheckpointError : the pickle is malformed, or names a callable that is not among `constructors`.
    """
    machine = _Machine(constructors, persistent)
    limited = _Limited(file)
    try:
        for opcode, argument, _ in pickletools.genops(cast("IO[bytes]", limited)):
            if opcode.name == "STOP":
                return machine.stack.pop()
            machine.nbytes = limited.nbytes
            machine.run(opcode.name, argument)
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, MemoryError) as e:
        raise CheckpointError(f"the pickle is malformed: {printable(e)}") from None
    raise CheckpointError("the pickle is malformed: it has no end")


# What a pickle may make by naming again what it has: so many items, beyond a few for each byte of it.
_FREE, _PER_BYTE = 100_000, 4
_MAX_NAME = 500  # characters of a global's name


class _Machine:
    """The stack, the marks in it, and the memo.

    A container that was put into the memo is named with two bytes, and a constructor that copies it makes it again:
    what constructors are given is counted, against the bytes that were read.
    """

    def __init__(self, constructors: Mapping[str, Callable[..., Any]], persistent: Callable[[Any], Any]):
        self.stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        self._constructors = constructors
        self._persistent = persistent
        self.nbytes = 0  # of the pickle, so far
        self._given = 0  # items that constructors got

    def run(self, opcode: str, argument: Any) -> None:
        stack = self.stack
        if opcode in _IGNORED:
            return
        if opcode in _CONSTANTS:
            stack.append(_CONSTANTS[opcode])
        elif opcode in _VALUES:
            stack.append(argument)
        elif opcode in _EMPTY:
            stack.append(_EMPTY[opcode]())
        elif opcode in _TUPLES:
            n = _TUPLES[opcode]
            stack[len(stack) - n :] = [tuple(stack[len(stack) - n :])]
        elif opcode == "MARK":
            self._marks.append(len(stack))
        elif opcode in ("TUPLE", "LIST"):
            items = self._pop_mark()
            stack.append(tuple(items) if opcode == "TUPLE" else items)
        elif opcode in ("APPEND", "APPENDS"):
            items = [stack.pop()] if opcode == "APPEND" else self._pop_mark()
            _expect(stack[-1], list).extend(items)
        elif opcode in ("SETITEM", "SETITEMS"):
            items = self._pop_mark() if opcode == "SETITEMS" else [stack.pop(-2), stack.pop()]
            _set_items(_expect(stack[-1], dict), items)
        elif opcode in ("PUT", "BINPUT", "LONG_BINPUT"):
            self._memo[argument] = stack[-1]
        elif opcode == "MEMOIZE":
            self._memo[len(self._memo)] = stack[-1]
        elif opcode in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(self._memo[argument])
        elif opcode == "POP":
            stack.pop()
        elif opcode == "POP_MARK":
            self._pop_mark()
        elif opcode == "DUP":
            stack.append(stack[-1])
        elif opcode == "GLOBAL":
            stack.append(Name(argument.replace(" ", ".", 1)))
        elif opcode == "STACK_GLOBAL":
            name, module = _expect(stack.pop(), str), _expect(stack.pop(), str)
            if len(name) + len(module) > _MAX_NAME:
                raise ValueError(f"the name of a global has {len(name) + len(module)} characters")
            stack.append(Name(f"{module}.{name}"))
        elif opcode == "BINPERSID":
            stack.append(self._persistent(stack.pop()))
        elif opcode in ("REDUCE", "NEWOBJ"):
            arguments = _expect(stack.pop(), tuple)
            stack.append(self._construct(stack.pop(), arguments))
        elif opcode == "BUILD":
            stack.pop()  # attributes, which nothing here has; torch keeps `_metadata` of modules so
        elif opcode in ("INST", "OBJ"):
            items = self._pop_mark()
            self._construct(Name(argument.replace(" ", ".", 1)) if opcode == "INST" else items[0], ())
        else:
            raise CheckpointError(f"the pickle uses {opcode}, which no checkpoint needs")

    def _pop_mark(self) -> list[Any]:
        at = self._marks.pop()
        items = self.stack[at:]
        del self.stack[at:]
        return items

    def _construct(self, function: Any, arguments: tuple[Any, ...]) -> Any:
        name = function.name if isinstance(function, Name) else type(function).__name__
        if not isinstance(function, Name) or name not in self._constructors:
            raise CheckpointError(
                f"the pickle would call {printable(name)}, which is not needed to read weights; "
                "nothing was run. Do not load this file with torch"
            )
        self._given += sum(len(value) for value in arguments if isinstance(value, (list, tuple, dict, set, str, bytes)))
        if self._given > _FREE + _PER_BYTE * self.nbytes:
            raise CheckpointError(
                f"the pickle makes {self._given} items of {self.nbytes} bytes by repeating them; no checkpoint does"
            )
        return self._constructors[name](*arguments)


_IGNORED = ("PROTO", "FRAME")
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY: dict[str, Callable[[], Any]] = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_SET": set}
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_VALUES = (
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "STRING", "BINSTRING", "SHORT_BINSTRING"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
)


def _expect(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"{kind.__name__} expected, not {type(value).__name__}")
    return value


def _set_items(target: dict[Any, Any], items: list[Any]) -> None:
    for key, value in zip(items[::2], items[1::2], strict=True):
        # A nested tuple may take for ever to hash.
        if not isinstance(key, (str, bytes, int, float)):
            raise TypeError(f"a {type(key).__name__} as a key")
        target[key] = value
