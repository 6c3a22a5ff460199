"""Write GGUF files: plan the header and all offsets first, then stream the rows to their places.

    tensors = [("token_embd.weight", (32000, 4096), FORMATS["Q4_K"])]
    with ggufkit.Writer("out.gguf", {"general.architecture": "llama"}, tensors) as out:
        out.write("token_embd.weight", 0, blocks)

The bytes are those of llama.cpp's `gguf_write_to_file` and of gguf-py for the same content.
"""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Iterable, Mapping
from math import prod
from typing import TYPE_CHECKING, Any

from ggufkit.errors import GGUFError, printable
from ggufkit.formats.table import Format
from ggufkit.gguf.header import (
    ALIGNMENT_KEY,
    DEFAULT_ALIGNMENT,
    MAGIC,
    MAX_DIMS,
    MAX_NAME,
    Field,
    Limits,
    TensorInfo,
    Value,
    ValueType,
    padded,
)
from ggufkit.storage.sink import FileSink

if TYPE_CHECKING:
    import numpy as np

__all__ = ["FileLayout", "Writer", "as_value", "encode_info", "encode_pair", "with_alignment"]

VERSION = 3
_NUMPY_TYPES = {
    "uint8": ValueType.UINT8,
    "int8": ValueType.INT8,
    "uint16": ValueType.UINT16,
    "int16": ValueType.INT16,
    "uint32": ValueType.UINT32,
    "int32": ValueType.INT32,
    "float32": ValueType.FLOAT32,
    "bool": ValueType.BOOL,
    "uint64": ValueType.UINT64,
    "int64": ValueType.INT64,
    "float64": ValueType.FLOAT64,
}


def as_value(value: Any) -> Value:
    """A plain Python or NumPy value with its GGUF type.

    An int becomes u32, a negative one i32 (u64, i64 when it does not fit), a float f32, and a list an array of
    str, f32, bool or i32 (i64), after its items. NumPy's own types are kept.

    Raises
    ------
    GGUFError : there is no type for it, or an empty list, whose item type nobody can know.
    """
    if isinstance(value, Value):
        return value
    if (dtype := getattr(value, "dtype", None)) is not None and dtype.name in _NUMPY_TYPES:
        kind = _NUMPY_TYPES[dtype.name]
        return Value(ValueType.ARRAY, value, kind) if value.ndim else Value(kind, value.item())
    if isinstance(value, bool):
        return Value(ValueType.BOOL, value)
    if isinstance(value, int):
        if value < 0:
            return Value(ValueType.INT32 if value >= -(1 << 31) else ValueType.INT64, value)
        return Value(ValueType.UINT32 if value < 1 << 32 else ValueType.UINT64, value)
    if isinstance(value, float):
        return Value(ValueType.FLOAT32, value)
    if isinstance(value, (str, bytes)):
        return Value(ValueType.STRING, value)
    if isinstance(value, (list, tuple)) and value:
        return Value(ValueType.ARRAY, value, _item_type(value))
    raise GGUFError(
        f"no metadata type for {printable(repr(value), 60)} of type {type(value).__name__}; give a Value with its type"
    )


def _item_type(items: list[Any] | tuple[Any, ...]) -> ValueType:
    kinds = {type(item) for item in items}
    if kinds <= {str, bytes}:
        return ValueType.STRING
    if kinds == {bool}:
        return ValueType.BOOL
    if kinds == {int}:
        return ValueType.INT32 if all(-(1 << 31) <= item < 1 << 31 for item in items) else ValueType.INT64
    if kinds <= {int, float}:
        return ValueType.FLOAT32
    raise GGUFError(f"an array cannot mix {', '.join(sorted(kind.__name__ for kind in kinds))}")


def encode_string(text: str | bytes, order: str = "<") -> bytes:
    """Length and bytes of a string; surrogate escapes become the bytes they stand for."""
    if not isinstance(text, (str, bytes)):
        raise TypeError(f"{text!r} is no text")
    try:
        raw = text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text
    except UnicodeEncodeError as e:
        raise GGUFError(f"the text {printable(repr(text), 60)} cannot be written as UTF-8: {e.reason}") from None
    return struct.pack(order + "Q", len(raw)) + raw


def encode_pair(key: str, value: Any, order: str = "<") -> bytes:
    """One metadata pair as bytes.

    Parameters
    ----------
    value : a `Value`, a `Field` of a file (its bytes are kept, NaN payloads included), or plain Python.
    order : ``"<"`` or ``">"``.

    Raises
    ------
    GGUFError : the key is illegal, or the value does not fit its type.
    """
    raw_key = key.encode("utf-8", "surrogatepass")
    check_name(raw_key, "a metadata key", Limits().key)
    if isinstance(value, Field):
        kind, item_type, count, payload = value.type, value.item_type, value.count, _field_payload(value, order)
    else:
        typed = as_value(value)
        kind, item_type = typed.type, typed.item_type
        try:
            count, payload = _payload(typed, order)
        except (struct.error, TypeError, ValueError, OverflowError) as e:
            shown = (kind if item_type is None else item_type).short
            raise GGUFError(f"{printable(key)}: the value does not fit the type {shown}: {e}") from None
    head = encode_string(raw_key, order) + struct.pack(order + "I", kind)
    if item_type is not None:
        head += struct.pack(order + "IQ", item_type, count)
    return head + payload


def _payload(value: Value, order: str) -> tuple[int, bytes]:
    """(items, bytes) of a value without its type."""
    if value.type is not ValueType.ARRAY:
        items: Any = [value.value]
        kind = value.type
    else:
        if value.item_type is None or value.item_type is ValueType.ARRAY:
            raise ValueError("an array needs the type of its items, and that is not an array")
        items, kind = value.value, value.item_type
    if kind is ValueType.STRING:
        return len(items), b"".join(encode_string(text, order) for text in items)
    if isinstance(items, (bytes, bytearray, memoryview)):
        items = memoryview(items).cast("B")
        items = struct.unpack(f"<{len(items) // kind.nbytes}{kind.code}", items)
    elif hasattr(items, "tolist"):
        items = items.tolist()
    if any(isinstance(item, str) for item in items):
        raise ValueError("it is a text")
    if kind is ValueType.BOOL and any(item not in (0, 1) for item in items):
        raise ValueError("it is neither true nor false")
    return len(items), struct.pack(f"{order}{len(items)}{kind.code}", *items)


def _field_payload(field: Field, order: str) -> bytes:
    """A field's value for a file in `order`: its own bytes where they can stay."""
    kind = field.type if field.item_type is None else field.item_type
    if kind is ValueType.STRING:
        return b"".join(encode_string(text, order) for text in field.strings())
    raw = field.raw
    if kind is ValueType.BOOL:
        return bytes(map(bool, raw))  # a byte of 2 is true, and no legal bool to C++
    if field._order == order or kind.nbytes == 1:
        return raw
    # Reverse each number as an integer: a float's NaN payload survives.
    code = {2: "H", 4: "I", 8: "Q"}[kind.nbytes]
    return struct.pack(f"{order}{field.count}{code}", *struct.unpack(f"{field._order}{field.count}{code}", raw))


def check_name(raw: bytes, what: str, limit: int) -> None:
    """Refuse a key or tensor name that the reader would refuse."""
    shown = printable(repr(raw)[1:])
    if not raw:
        raise GGUFError(f"{what} is empty")
    if len(raw) > limit:
        raise GGUFError(f"{what} {shown} is {len(raw)} bytes long, the limit is {limit}")
    if b"\0" in raw:
        raise GGUFError(f"{what} {shown} holds a NUL")
    try:
        raw.decode()
    except UnicodeDecodeError:
        raise GGUFError(f"{what} {shown} is not valid UTF-8") from None


def encode_info(info: TensorInfo, order: str = "<") -> bytes:
    """A tensor's entry in the header as bytes."""
    ne = tuple(reversed(info.shape))
    return encode_string(info.name, order) + struct.pack(
        f"{order}I{len(ne)}QIQ", len(ne), *ne, info.format.id, info.offset
    )


class FileLayout:
    """The header of a file to write, and where everything goes. The same arguments give the same plan.

    Parameters
    ----------
    metadata : keys in file order → `Value`, `Field` or plain Python.
    tensors : (name, shape in NumPy order, format) in file order.
    alignment : bytes; None takes `general.alignment` of the metadata, or 32. Another one than 32 is recorded as
        `general.alignment`, at the end when the metadata lacks the key.
    byteorder : ``"little"`` or ``"big"``.
    pad_header : pad the header of a file without tensors, as llama.cpp does and gguf-py does not.

    Attributes
    ----------
    header : the bytes up to the data section, padding included.
    infos : name → `TensorInfo`.
    data_offset : where the data section starts.
    size : bytes of the whole file.

    Raises
    ------
    GGUFError : a name, shape or value that no reader would accept.
    """

    def __init__(
        self,
        metadata: Mapping[str, object],
        tensors: Iterable[tuple[str, tuple[int, ...], Format]],
        *,
        alignment: int | None = None,
        byteorder: str = "little",
        pad_header: bool = True,
    ):
        self.order = "<" if byteorder == "little" else ">"
        self.alignment, metadata = with_alignment(metadata, alignment)
        parts = [encode_pair(key, value, self.order) for key, value in metadata.items()]
        self.infos: dict[str, TensorInfo] = {}
        at = len(MAGIC) + 4 + 8 + 8 + sum(map(len, parts))
        offset = 0
        for name, shape, format in tensors:
            if name in self.infos:
                raise GGUFError(f"two tensors are called {printable(name)}")
            info = _plan_tensor(name, tuple(map(int, shape)), format, offset, at)
            self.infos[name] = info
            parts.append(encode_info(info, self.order))
            at += len(parts[-1])
            offset += padded(info.nbytes, self.alignment)
        counts = struct.pack(self.order + "IQQ", VERSION, len(self.infos), len(metadata))
        self.data_offset = padded(at, self.alignment) if self.infos or pad_header else at
        self.size = self.data_offset + offset
        self.header = b"".join([MAGIC, counts, *parts, bytes(self.data_offset - at)])

    def file_offset(self, name: str) -> int:
        """The byte of the file where a tensor's data starts."""
        return self.data_offset + self.infos[name].offset


def with_alignment(metadata: Mapping[str, object], alignment: int | None) -> tuple[int, Mapping[str, Any]]:
    """The alignment to use, and the metadata that says so."""
    given: int | None = None
    if ALIGNMENT_KEY in metadata:
        pair = metadata[ALIGNMENT_KEY]
        typed = pair if isinstance(pair, Field) else as_value(pair)
        if typed.type is not ValueType.UINT32:
            raise GGUFError(f"{ALIGNMENT_KEY} must be of type u32, not {typed.type.short}")
        given = typed.value
    chosen = alignment if alignment is not None else given if given is not None else DEFAULT_ALIGNMENT
    if given is not None and given != chosen:
        raise GGUFError(f"the alignment is to be {chosen}, but the metadata's {ALIGNMENT_KEY} is {given}")
    if chosen <= 0 or chosen & (chosen - 1) or chosen > Limits().alignment:
        raise GGUFError(f"the alignment {chosen} is not a power of two up to {Limits().alignment}")
    if chosen != DEFAULT_ALIGNMENT and given is None:
        metadata = {**metadata, ALIGNMENT_KEY: Value(ValueType.UINT32, chosen)}
    return chosen, metadata


def _plan_tensor(name: str, shape: tuple[int, ...], format: Format, offset: int, at: int) -> TensorInfo:
    check_name(name.encode("utf-8", "surrogatepass"), "the tensor name", MAX_NAME - 1)
    shown = printable(name)
    if len(shape) > MAX_DIMS:
        raise GGUFError(f"tensor {shown} has {len(shape)} dimensions, the limit is {MAX_DIMS}")
    if any(n < 0 for n in shape) or prod(n for n in shape if n) >= (1 << 63) - 1:
        raise GGUFError(f"tensor {shown} has the impossible shape {list(shape)}")
    row = shape[-1] if shape else 1
    if row % format.block_size:
        raise GGUFError(
            f"tensor {shown} with rows of {row} weights cannot be {format.name}: "
            f"the length must be a multiple of {format.block_size}"
        )
    return TensorInfo(name, shape, format, offset, format.row_bytes(row) * prod(shape[:-1]), at)


class Writer:
    """Stream tensors into a new GGUF file that appears whole or not at all.

    Takes the arguments of `FileLayout`. Use as a context manager. Rows may come in any order and from several threads;
    on a clean exit every row must have been written.

    Parameters
    ----------
    path : the file to write.
    force : replace an existing file.
    temp : see `AtomicFile`.
    reserved : take the room on the disk at once, see `FileSink`. Not for copies that may share the source's.

    Attributes
    ----------
    layout : the `FileLayout`.

    Raises
    ------
    FileError : the file exists without `force`, cannot be written, or the disk is full.
    GGUFError : see `FileLayout`; at the end, rows are missing.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        metadata: Mapping[str, object],
        tensors: Iterable[tuple[str, tuple[int, ...], Format]],
        *,
        alignment: int | None = None,
        byteorder: str = "little",
        pad_header: bool = True,
        force: bool = False,
        temp: str | os.PathLike[str] | None = None,
        reserved: bool = False,
    ):
        self.layout = FileLayout(metadata, tensors, alignment=alignment, byteorder=byteorder, pad_header=pad_header)
        self._lock = threading.Lock()
        self._missing = {name: info.nbytes for name, info in self.layout.infos.items() if info.nbytes}
        # The gaps between tensors are never written: they read as zeros.
        self._sink = FileSink(path, self.layout.size, force=force, temp=temp, reserved=reserved)
        try:
            self.write_at(0, self.layout.header)
        except BaseException:
            self._sink.discard()
            raise

    @property
    def path(self) -> str:
        return self._sink.path

    def fileno(self) -> int:
        """The descriptor of the temporary file, for copies inside the kernel."""
        return self._sink.fileno()

    def write(self, name: str, row: int, blocks: np.ndarray) -> None:
        """Write rows `row:row + len(blocks)` of a tensor.

        Parameters
        ----------
        blocks : array of shape (rows, row_bytes), uint8.

        Raises
        ------
        GGUFError : no such tensor, or the rows are not inside it.
        """
        if (info := self.layout.infos.get(name)) is None:
            raise GGUFError(f"no tensor {printable(name)} was planned", self.path)
        rows = prod(info.shape[:-1])
        row_bytes = info.nbytes // rows if rows else 0
        data = blocks.data
        if data.nbytes != len(blocks) * row_bytes or not 0 <= row <= rows - len(blocks):
            raise GGUFError(
                f"rows {row}:{row + len(blocks)} of {data.nbytes} bytes do not fit tensor {printable(name)} of "
                f"{rows} rows of {row_bytes} bytes",
                self.path,
            )
        if data.nbytes:
            self.write_at(self.layout.file_offset(name) + row * row_bytes, data.cast("B"))
            self.wrote(name, data.nbytes)

    def write_at(self, offset: int, data: bytes | memoryview) -> None:
        """Write bytes at a byte of the file. For copies; `write` knows the tensors."""
        self._sink.write(offset, data)

    def wrote(self, name: str, nbytes: int) -> None:
        """Note that `nbytes` of a tensor's data were written, by whatever way."""
        if name in self._missing:
            with self._lock:
                self._missing[name] -= nbytes

    @property
    def missing(self) -> list[str]:
        """The tensors that are not written completely yet."""
        return [name for name, n in self._missing.items() if n > 0]

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: Any, value: Any, trace: Any) -> None:
        try:
            if kind is None and (missing := self.missing):
                raise GGUFError(
                    f"{len(missing)} tensors were not written completely, the first is {printable(missing[0])}",
                    self.path,
                )
        except BaseException:
            self._sink.discard()
            raise
        self._sink.__exit__(kind, value, trace)
