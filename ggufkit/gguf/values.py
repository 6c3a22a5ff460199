"""Metadata values: their types, and the pairs of a file, whose values stay bytes until somebody asks.

Source: docs/gguf.md of ggml, `enum gguf_type` in ggml/include/gguf.h of llama.cpp.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, Any

from ggufkit.errors import GGUFError, printable

if TYPE_CHECKING:
    import numpy as np

__all__ = ["VALUE_TYPES", "Field", "Value", "ValueType"]


class ValueType(IntEnum):
    """The type of a metadata value (`enum gguf_type`)."""

    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12

    @property
    def code(self) -> str:
        """The `struct` code of a number or bool."""
        return _CODES[self]

    @property
    def nbytes(self) -> int:
        """Bytes of a number or bool."""
        return _NBYTES[self]

    @property
    def short(self) -> str:
        """The short name that `set` takes and the tables show: u8, i32, f32, bool, str, arr, …"""
        return _SHORT[self]


_CODES = dict(zip(ValueType, "BbHhIif?saQqd", strict=True))
_SHORT = {
    ValueType.UINT8: "u8",
    ValueType.INT8: "i8",
    ValueType.UINT16: "u16",
    ValueType.INT16: "i16",
    ValueType.UINT32: "u32",
    ValueType.INT32: "i32",
    ValueType.FLOAT32: "f32",
    ValueType.BOOL: "bool",
    ValueType.STRING: "str",
    ValueType.ARRAY: "arr",
    ValueType.UINT64: "u64",
    ValueType.INT64: "i64",
    ValueType.FLOAT64: "f64",
}
_NBYTES = {t: struct.calcsize("<" + c) for t, c in _CODES.items() if c not in "sa"}

# The number in the file → the type.
VALUE_TYPES: dict[int, ValueType] = {int(t): t for t in ValueType}


@dataclass(frozen=True)
class Value:
    """A metadata value with its type, as the writer needs it.

    For an array `type` is ``ARRAY``, `item_type` the type of its items and `value` a list, a NumPy array or, for
    numbers, any buffer of their little-endian bytes.
    """

    type: ValueType
    value: Any
    item_type: ValueType | None = None


@dataclass(frozen=True, slots=True)
class Field:
    """One metadata pair. The value stays as bytes until `value` asks for it.

    Attributes
    ----------
    key : the key.
    type, item_type : the value's type; `item_type` is None unless it is an array.
    count : items of the array, 1 for a single value.
    offset : byte in the GGUF where the pair (its key's length) starts.
    start, end : bytes of the value, without its type and an array's count.
    """

    key: str
    type: ValueType
    item_type: ValueType | None
    count: int
    offset: int
    start: int
    end: int
    _buffer: bytes | bytearray = field(repr=False)
    _order: str = field(repr=False)  # "<" or ">"
    _length: str = field(repr=False)  # struct code of a length: "Q", in v1 "I"

    def __len__(self) -> int:
        return self.count

    @property
    def raw(self) -> bytes:
        """The value's bytes as they are in the file."""
        return bytes(memoryview(self._buffer)[self.start : self.end])

    @property
    def encoded(self) -> memoryview:
        """The whole pair's bytes as they are in the file: key, type, value."""
        return memoryview(self._buffer)[self.offset : self.end]

    @property
    def value(self) -> Any:
        """The value as plain Python: int, float, bool, str or a list of them.

        Strings that are no UTF-8 (partial characters in vocabularies) keep their bytes as surrogate escapes.
        """
        if self.type is ValueType.ARRAY:
            return list(self.items())
        return next(self.items())

    def items(self) -> Iterator[Any]:
        """The items of an array, or the one value, decoded one after the other."""
        kind = self.type if self.item_type is None else self.item_type
        if kind is ValueType.STRING:
            for text in self.strings():
                yield text.decode("utf-8", "surrogateescape")
        elif kind is ValueType.BOOL:
            # C's view: every byte but 0 is true.
            yield from map(bool, self.raw)
        else:
            yield from struct.unpack_from(f"{self._order}{self.count}{kind.code}", self._buffer, self.start)

    def array(self) -> np.ndarray:
        """The numbers of an array as a NumPy array of shape (count,); quicker than a list of them.

        Raises
        ------
        GGUFError : the value is not an array of numbers.
        """
        import numpy as np

        if self.item_type is None or self.item_type is ValueType.STRING:
            raise GGUFError(
                f"{printable(self.key)} is not an array of numbers, but {self.describe()}", offset=self.offset
            )
        if self.item_type is ValueType.BOOL:
            result: np.ndarray = np.frombuffer(self.raw, np.uint8) != 0
            return result
        numbers = np.frombuffer(self.raw, np.dtype(self._order + np.dtype(self.item_type.code).str[1:]))
        return numbers.astype(numbers.dtype.newbyteorder("="))

    def strings(self) -> Iterator[bytes]:
        """The items of an array of strings, or the one string, as bytes."""
        length = struct.Struct(self._order + self._length)
        at = self.start
        for _ in range(self.count):
            (n,) = length.unpack_from(self._buffer, at)
            at += length.size + n
            yield bytes(self._buffer[at - n : at])

    def describe(self) -> str:
        """The type for people: ``u32``, ``arr[str, 152064]``."""
        return self.type.short if self.item_type is None else f"arr[{self.item_type.short}, {self.count}]"
