"""The header of a GGUF file, read with the standard library alone.

    ┌──────────────────────────────────────────────────────────────────────────────┐
    │ "GGUF"  version u32   tensors u64   pairs u64                                │  v1: counts and lengths u32
    ├──────────────────────────────────────────────────────────────────────────────┤
    │ pair:    key string   type u32   value                                       │  × pairs
    │   string: length u64, bytes                                                  │
    │   array:  item type u32, count u64, items                                    │
    ├──────────────────────────────────────────────────────────────────────────────┤
    │ tensor:  name string   dims u32   ne[0] … ne[dims-1] u64   type u32   offset │  × tensors
    ├──────────────────────────────────────────────────────────────────────────────┤
    │ zeros up to a multiple of general.alignment (32), counted from the magic     │
    ├──────────────────────────────────────────────────────────────────────────────┤
    │ data: the tensors in order, each padded with zeros to the alignment          │
    └──────────────────────────────────────────────────────────────────────────────┘

Everything here may come from a stranger. A count is checked against the bytes that are left before anything is
allocated or fetched for it, and what llama.cpp refuses is refused. Where llama.cpp is lenient in a way that makes
two readers see two different files (NUL or bad UTF-8 in names, sizes that overflow, data that is not there), the
file is refused too. Values are decoded when they are asked for.

Source: ggml/src/gguf.cpp of llama.cpp, docs/gguf.md of ggml.
"""

from __future__ import annotations

import struct
import sys
from dataclasses import dataclass
from itertools import repeat
from math import prod

from ggufkit.errors import GGUFError, printable
from ggufkit.formats.table import Format, format_by_id
from ggufkit.gguf.values import VALUE_TYPES, Field, Value, ValueType
from ggufkit.storage.source import FileSource, Source

__all__ = ["Field", "Header", "Limits", "TensorInfo", "Value", "ValueType", "parse_header"]

MAGIC = b"GGUF"
ALIGNMENT_KEY = "general.alignment"
DEFAULT_ALIGNMENT = 32
MAX_NAME = 64  # GGML_MAX_NAME: a tensor's name and its final NUL
MAX_DIMS = 4  # GGML_MAX_DIMS

_LARGER = "allow more with {limits=Limits(header=…)}"

# The length of a string, as `struct` has it, where it is a number of this machine.
_NATIVE_LENGTH = ("<" if sys.byteorder == "little" else ">") + "Q"


@dataclass(frozen=True)
class Limits:
    """The caps of the reader. The defaults are llama.cpp's where it has one.

    Attributes
    ----------
    header : bytes of the whole header (real ones stay below 20 MB).
    key : bytes of a key (the specification's 2^16 - 1).
    string : bytes of a string value.
    array : items of an array.
    alignment : largest `general.alignment`.
    versions : accepted versions; add 1 to read files of 2023.
    complete : all data must be there; False to look into a file that was only begun.
    """

    header: int = 128 << 20
    key: int = (1 << 16) - 1
    string: int = 1 << 30
    array: int = 1 << 30
    alignment: int = 1 << 20
    versions: tuple[int, ...] = (2, 3)
    complete: bool = True


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where a tensor is.

    Attributes
    ----------
    name, format : its name and type.
    shape : NumPy order; `shape[-1]` is the row length, GGUF's `ne[0]`.
    offset : byte in the data section where it starts.
    nbytes : bytes without padding.
    at : byte in the GGUF where its entry (the name's length) starts.
    """

    name: str
    shape: tuple[int, ...]
    format: Format
    offset: int
    nbytes: int
    at: int


@dataclass(frozen=True)
class Header:
    """A parsed header. All offsets count from the magic.

    Attributes
    ----------
    version : 1, 2 or 3.
    byteorder : ``"little"`` or ``"big"``.
    alignment : bytes.
    fields : the metadata pairs in file order.
    tensors : the tensors in file order.
    end : first byte after the last tensor's entry.
    data_offset : first byte of the data section.
    data_end : first byte after the last tensor's last padding.
    """

    version: int
    byteorder: str
    alignment: int
    fields: dict[str, Field]
    tensors: dict[str, TensorInfo]
    end: int
    data_offset: int
    data_end: int


def padded(n: int, alignment: int) -> int:
    """`n` rounded up to a multiple of `alignment`."""
    return -(-n // alignment) * alignment


def parse_header(source: Source, start: int = 0, limits: Limits | None = None) -> Header:
    """Read the header of the GGUF that starts at byte `start` of `source`.

    Raises
    ------
    GGUFError : the file breaks a rule; `.offset` is the byte of the offending value.
    """
    return _Parser(source, start, limits or Limits()).parse()


class _Parser:
    """Walks a header from front to back and fetches it as it goes."""

    # From a server fetches grow by half of what is there: few requests, and never twice the header in all.
    FIRST_FETCH = 64 << 10
    RUN = 128  # strings of a vocabulary that are stepped over at once

    def __init__(self, source: Source, start: int, limits: Limits):
        self.source, self.start, self.limits = source, start, limits
        self.size = source.size - start  # of the GGUF with its data
        self.buffer = bytearray()  # the GGUF's first bytes, as many as were needed so far
        self.at = 0  # where the next value starts
        self.order, self.length = "<", "Q"
        self.words: tuple[bytearray | None, list[memoryview]] = (None, [])  # a buffer, and views of it

    def fail(self, message: str, at: int, hint: str | None = None) -> GGUFError:
        return GGUFError(message, self.source.name, self.start + at, hint)

    # -- bytes --------------------------------------------------------------------------------------------

    def need(self, n: int, what: str) -> None:
        """Make sure that the `n` bytes at `self.at` are in the buffer."""
        end = self.at + n
        if end <= len(self.buffer):
            return
        if n > self.size - self.at:
            raise self.fail(
                f"{what} needs {n} bytes, but only {max(0, self.size - self.at)} are left in the file; "
                "it is cut short or damaged",
                self.at,
            )
        if end > self.limits.header:
            raise self.fail(
                f"{what} makes the header larger than the limit of {self.limits.header} bytes", self.at, _LARGER
            )
        have = len(self.buffer)
        ahead = FileSource.AHEAD if isinstance(self.source, FileSource) else 0
        growth = max(have // 2, ahead) if have else self.FIRST_FETCH
        want = max(end, min(self.size, self.limits.header, have + growth))
        # A larger buffer that is filled directly: to append would move the bytes three times. The values found so far
        # keep the one that they lie in.
        larger = bytearray(want)
        larger[:have] = self.buffer
        if isinstance(self.source, FileSource):
            self.source.read_into(self.start + have, memoryview(larger)[have:])
        else:
            larger[have:] = self.source.read(self.start + have, want - have)
        self.buffer = larger

    def number(self, code: str, what: str) -> int:
        self.need(struct.calcsize("<" + code), what)
        value: int = struct.unpack_from(self.order + code, self.buffer, self.at)[0]
        self.at += struct.calcsize("<" + code)
        return value

    def skip(self, count: int, size: int, what: str) -> None:
        """Step over `count` items of `size` bytes."""
        if count > (self.size - self.at) // size:
            raise self.fail(
                f"{what} has {count} items of {size} bytes, but only {max(0, self.size - self.at)} bytes are left "
                "in the file",
                self.at,
            )
        self.need(count * size, what)
        self.at += count * size

    def string(self, what: str, limit: int) -> bytes:
        at = self.at
        n = self.number(self.length, f"the length of {what}")
        if n > limit:
            raise self.fail(f"{what} is {n} bytes long, the limit is {limit}", at)
        self.need(n, what)
        self.at += n
        return bytes(self.buffer[self.at - n : self.at])

    def name(self, what: str, limit: int) -> str:
        """A key or a tensor's name: not empty, no NUL, UTF-8."""
        at = self.at
        raw = self.string(what, limit)
        if not raw:
            raise self.fail(f"{what} is empty", at)
        if b"\0" in raw:
            raise self.fail(f"{what} {printable(repr(raw)[1:])} holds a NUL: C programs would read another name", at)
        try:
            return raw.decode()
        except UnicodeDecodeError as e:
            raise self.fail(f"{what} {printable(repr(raw)[1:])} is not valid UTF-8 ({e.reason})", at) from None

    # -- parts --------------------------------------------------------------------------------------------

    def parse(self) -> Header:
        version, n_tensors, n_pairs = self.preamble()
        fields = self.pairs(n_pairs)
        alignment = self.alignment(fields.get(ALIGNMENT_KEY))
        tensors, data_size = self.tensors(n_tensors, alignment)
        end = self.at
        data_offset = padded(end, alignment) if tensors else end
        if self.limits.complete:
            self.check_data(list(tensors.values()), data_offset)
        return Header(
            version=version,
            byteorder="little" if self.order == "<" else "big",
            alignment=alignment,
            fields=fields,
            tensors=tensors,
            end=end,
            data_offset=data_offset,
            data_end=data_offset + data_size,
        )

    def preamble(self) -> tuple[int, int, int]:
        """Magic, version and counts → (version, tensors, pairs). Finds the byte order."""
        if self.size < 4:
            raise self.not_gguf()
        self.need(4, "the magic")
        if bytes(self.buffer[:4]) != MAGIC:
            raise self.not_gguf()
        self.at = 4
        version = self.number("I", "the version")
        # A version that fits two bytes has them at the other end when the byte order is the other one.
        if version & 0xFFFF == 0 and version != 0:
            self.order = ">"
            (version,) = struct.unpack_from(">I", self.buffer, 4)
        if version not in self.limits.versions:
            supported = ", ".join(map(str, self.limits.versions))
            old = "llama.cpp no longer reads version 1, open it with {limits=Limits(versions=(1, 2, 3))}"
            hint = old if version == 1 else None
            raise self.fail(f"GGUF version {version} is not supported, only {supported}", 4, hint)
        if version == 1:
            self.length = "I"

        n_bytes = struct.calcsize("<" + self.length)
        at = self.at
        n_tensors = self.number(self.length, "the number of tensors")
        n_pairs = self.number(self.length, "the number of metadata pairs")
        # The smallest pair: a key of one byte, its type, a value of one byte. The smallest tensor: a name of one
        # byte, no dimensions, its type, its offset.
        for where, n, least, what in (
            (at, n_tensors, n_bytes + 1 + 4 + 4 + 8, "tensors"),
            (at + n_bytes, n_pairs, n_bytes + 1 + 4 + 1, "metadata pairs"),
        ):
            left = self.size - self.at
            if n > left // least:
                raise self.fail(f"the header promises {n} {what}, but only {left} bytes are left in the file", where)
        return version, n_tensors, n_pairs

    def not_gguf(self) -> GGUFError:
        from ggufkit.storage.foreign import HEAD, foreign_file

        head = self.source.read(self.start, min(HEAD, max(0, self.size)))
        if (found := foreign_file(head)) is None:
            return self.fail(f"this is not a GGUF file: it starts with {head[:4]!r} instead of b'GGUF'", 0)
        what, todo = found
        return self.fail(f"this is not a GGUF file: it is {what}", 0, todo)

    def pairs(self, n: int) -> dict[str, Field]:
        fields: dict[str, Field] = {}
        for i in range(n):
            at = self.at
            key = self.name(f"metadata key {i}", self.limits.key)
            if key in fields:
                raise self.fail(f"the key {printable(key)} occurs twice, first at byte {fields[key].offset}", at)
            fields[key] = self.pair(key, at)
        return fields

    def pair(self, key: str, at: int) -> Field:
        shown = printable(key)
        kind, item_type, count = self.value_type(f"the type of {shown}"), None, 1
        if kind is ValueType.ARRAY:
            item_type = self.value_type(f"the item type of the array {shown}")
            if item_type is ValueType.ARRAY:
                raise self.fail(f"{shown} is an array of arrays, which llama.cpp does not read", self.at - 4)
            where = self.at
            count = self.number(self.length, f"the length of the array {shown}")
            if count > self.limits.array:
                raise self.fail(f"the array {shown} has {count} items, the limit is {self.limits.array}", where)
        start = self.at
        basic = kind if item_type is None else item_type
        if basic is ValueType.STRING:
            self.skip_strings(count, shown)
        else:
            self.skip(count, basic.nbytes, f"the value of {shown}")
        return Field(key, kind, item_type, count, at, start, self.at, self.buffer, self.order, self.length)

    def value_type(self, what: str) -> ValueType:
        at = self.at
        number = self.number("I", what)
        if (kind := VALUE_TYPES.get(number)) is None:
            raise self.fail(f"{what} is {number}, the known types are 0 to {max(VALUE_TYPES)}", at)
        return kind

    def skip_strings(self, count: int, shown: str) -> None:
        """Step over `count` strings: the hot loop of a header with a large vocabulary."""
        length = struct.Struct(self.order + self.length)
        if count > (self.size - self.at) // length.size:
            raise self.fail(
                f"{shown} has {count} strings, but only {max(0, self.size - self.at)} bytes are left in the file",
                self.at,
            )
        if count * length.size > self.limits.header - self.at:
            raise self.fail(
                f"{shown} makes the header larger than the limit of {self.limits.header} bytes", self.at, _LARGER
            )
        done = 0
        while done < count:
            # A run at a time without looking: a length that leads out of the buffer makes the next look-up, or the
            # comparison at the end, fail. Then the run is walked again with care.
            run = min(self.RUN, count - done)
            try:
                if self.limits.string < self.limits.header:
                    raise OverflowError  # a string over its limit could lie inside the buffer
                at = self.end_of_strings(length, self.at, run)
                if at > len(self.buffer):
                    raise OverflowError
                self.at = at
            except (struct.error, IndexError, OverflowError):
                for i in range(done, done + run):
                    self.string(f"string {i} of {shown}", self.limits.string)
            done += run

    def end_of_strings(self, length: struct.Struct, at: int, count: int) -> int:
        """Where `count` strings from `at` on end, if they are what they should be."""
        if length.format != _NATIVE_LENGTH:
            unpack, prefix, buffer = length.unpack_from, length.size, self.buffer
            for _ in repeat(None, count):
                at += prefix + unpack(buffer, at)[0]
            return at
        # A quarter quicker: the buffer as words of 8 bytes from its byte 0, 1, … 7 on.
        if self.words[0] is not self.buffer:
            view = memoryview(self.buffer)
            self.words = self.buffer, [view[k : k + (len(view) - k) // 8 * 8].cast("Q") for k in range(8)]
        words = self.words[1]
        for _ in repeat(None, count):
            at += 8 + words[at & 7][at >> 3]
        return at

    def alignment(self, pair: Field | None) -> int:
        if pair is None:
            return DEFAULT_ALIGNMENT
        if pair.type is not ValueType.UINT32:
            raise self.fail(f"{ALIGNMENT_KEY} must be of type u32 but is {pair.describe()}", pair.offset)
        value: int = pair.value
        if value == 0 or value & (value - 1):
            raise self.fail(f"{ALIGNMENT_KEY} is {value}, which is not a power of two", pair.start)
        if value > self.limits.alignment:
            raise self.fail(f"{ALIGNMENT_KEY} is {value}, the limit is {self.limits.alignment}", pair.start)
        return value

    def tensors(self, n: int, alignment: int) -> tuple[dict[str, TensorInfo], int]:
        """The tensors' entries, and the bytes of the data section."""
        tensors: dict[str, TensorInfo] = {}
        data_size = 0
        for i in range(n):
            info = self.tensor(i)
            if info.name in tensors:
                raise self.fail(
                    f"the tensor {printable(info.name)} occurs twice, first at byte {tensors[info.name].at}", info.at
                )
            if info.offset != data_size:
                raise self.fail(
                    f"the data of tensor {printable(info.name)} starts at {info.offset}, but the tensor before ends "
                    f"at {data_size}: tensors must follow each other without gaps",
                    self.at - 8,
                )
            tensors[info.name] = info
            data_size += padded(info.nbytes, alignment)
        return tensors, data_size

    def tensor(self, i: int) -> TensorInfo:
        at = self.at
        name = self.name(f"the name of tensor {i}", MAX_NAME - 1)
        shown = printable(name)
        n_dims = self.number("I", f"the number of dimensions of {shown}")
        if n_dims > MAX_DIMS:
            raise self.fail(f"tensor {shown} has {n_dims} dimensions, the limit is {MAX_DIMS}", self.at - 4)
        dims_at = self.at
        width = 4 if self.length == "I" else 8
        self.need(n_dims * width, f"the shape of {shown}")
        ne = struct.unpack_from(f"{self.order}{n_dims}{self.length}", self.buffer, self.at)
        self.at += n_dims * width
        # "At least": llama.cpp lets the product be 2^63 - 1 in one check and not in the next.
        if any(n >= 1 << 63 for n in ne) or prod(n for n in ne if n) >= (1 << 63) - 1:
            raise self.fail(f"tensor {shown} of shape {list(ne)} has 2^63 or more elements", dims_at)

        type_at = self.at
        number = self.number("I", f"the type of {shown}")
        if (format := format_by_id(number)) is None:
            raise self.fail(f"tensor {shown} has the unknown or removed type {number}", type_at)
        row = ne[0] if ne else 1
        if row % format.block_size:
            raise self.fail(
                f"tensor {shown} is {format.name} with rows of {row} weights, which is not a multiple of "
                f"{format.block_size}",
                dims_at,
            )
        offset = self.number("Q", f"the data offset of {shown}")
        nbytes = format.row_bytes(row) * prod(ne[1:])
        return TensorInfo(name, tuple(reversed(ne)), format, offset, nbytes, at)

    def check_data(self, tensors: list[TensorInfo], data_offset: int) -> None:
        """All the data must be there; only zeros after the last tensor may be missing."""
        if tensors and data_offset > self.size:
            raise self.fail(
                f"the data section starts at byte {data_offset}, but the file has only {self.size} bytes", self.at
            )
        for info in tensors:
            if info.nbytes > self.size - data_offset - info.offset:
                left = max(0, self.size - data_offset - info.offset)
                raise self.fail(
                    f"tensor {printable(info.name)} needs {info.nbytes} bytes of data at byte "
                    f"{data_offset + info.offset}, but only {left} are left in the file; it is cut short or damaged",
                    info.at,
                    "look at what is there with {limits=Limits(complete=False)}",
                )
