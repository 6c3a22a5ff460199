"""One safetensors file: names, shapes and row ranges of its tensors.

    u64 n | n bytes of JSON {"name": {"dtype", "shape", "data_offsets": [begin, end]}, …} | data

Rows are read with `pread` into memory of the caller's own, not mapped: what a conversion holds in memory stays
bounded by what it works on, and a file that shrinks meanwhile is an error and not a crash.

Source: https://github.com/huggingface/safetensors (format; the header limit of 100 MB; the rules on offsets).
"""

from __future__ import annotations

import json
import struct
from collections import Counter
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ggufkit.checkpoint.shard import ShardFile
from ggufkit.errors import CheckpointError, GGUFError, printable
from ggufkit.formats.table import FORMATS, Format
from ggufkit.storage.source import Source
from ggufkit.tensors.tensor import Tensor

if TYPE_CHECKING:
    import numpy as np

__all__ = ["DTYPES", "MAX_HEADER", "RAW_DTYPES", "read_safetensors"]

MAX_HEADER = 100_000_000  # bytes

_MAX_DIMS = 8  # GGUF has 4

# safetensors' names of the dtypes that GGML has too.
DTYPES = {
    "F64": FORMATS["F64"],
    "F32": FORMATS["F32"],
    "F16": FORMATS["F16"],
    "BF16": FORMATS["BF16"],
    "I64": FORMATS["I64"],
    "I32": FORMATS["I32"],
    "I16": FORMATS["I16"],
    "I8": FORMATS["I8"],
}

# Those that it has not: kept as they are, for an architecture's transforms to make something of.
RAW_DTYPES = {
    name: Format(name, -1, 1, f"x:{code}", "raw", encodable=False)
    for name, code in (
        ("BOOL", "u1"),
        ("U8", "u1"),
        ("U16", "u2"),
        ("U32", "u4"),
        ("U64", "u8"),
        ("F8_E4M3", "u1"),
        ("F8_E5M2", "u1"),
        ("F8_E4M3FNUZ", "u1"),
        ("F8_E5M2FNUZ", "u1"),
        ("F8_E8M0", "u1"),
    )
}


def read_safetensors(file: Path | Source) -> Iterator[Tensor]:
    """The tensors of a file, sorted by name as the reference reads them.

    Raises
    ------
    FileError : the file cannot be read.
    CheckpointError : it is truncated, its header is not valid, or a dtype is unknown.
    """
    source = ShardFile(file) if isinstance(file, Path) else file
    header, data_start = _read_header(source)
    entries = [(name, entry) for name, entry in header.items() if name != "__metadata__"]
    spans = []
    for name, entry in sorted(entries):
        format, shape, begin, end = _parse_entry(source.name, name, entry)
        spans.append((begin, end, name))
        yield Tensor(name, shape, format, _reader(source, data_start + begin, shape, format, name))
    _check_spans(source.name, sorted(spans), source.size - data_start)


def _read_header(source: Source) -> tuple[dict[str, Any], int]:
    """(header, byte where the data starts)."""
    shown, size = printable(source.name), source.size
    if size < 8:
        raise CheckpointError(f"{shown}: a safetensors file has at least 8 bytes, this one {size}")
    (length,) = struct.unpack("<Q", source.read(0, 8))
    if length > MAX_HEADER:
        raise CheckpointError(f"{shown}: the header claims {length} bytes, the limit is {MAX_HEADER} (byte 0)")
    if length > size - 8:
        raise CheckpointError(
            f"{shown}: the header claims {length} bytes and {size - 8} follow; the file is truncated (byte 0)"
        )
    text = source.read(8, length)
    try:
        header = json.loads(text, object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as e:
        raise CheckpointError(f"{shown}: the header is not valid JSON: {printable(e)}") from None
    if not isinstance(header, dict):
        raise CheckpointError(f"{shown}: the header must be a JSON object, not {type(header).__name__}")
    return header, 8 + length


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"{printable(repr(twice), 100)} occurs twice")
    return result


def _parse_entry(path: str, name: str, entry: Any) -> tuple[Format, tuple[int, ...], int, int]:
    where = f"{printable(path)}: tensor {printable(name)}"
    try:
        dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        if len(shape) > _MAX_DIMS:
            raise CheckpointError(f"{where} has {len(shape)} dimensions, the limit is {_MAX_DIMS}")
        numbers = [*shape, begin, end]
    except (KeyError, TypeError, ValueError):
        raise CheckpointError(f"{where} needs dtype, shape and two data_offsets") from None
    if any(type(n) is not int or not 0 <= n < 1 << 63 for n in numbers):
        raise CheckpointError(f"{where} has a shape or offset that is not a whole number of at least 0")
    format = (DTYPES.get(dtype) or RAW_DTYPES.get(dtype)) if isinstance(dtype, str) else None
    if format is None:
        known = ", ".join([*DTYPES, *RAW_DTYPES])
        raise CheckpointError(f"{where} has dtype {printable(dtype)}, which cannot be converted; known: {known}")
    expected = prod(shape) * format.type_size
    if end - begin != expected:
        raise CheckpointError(
            f"{where} of shape {shape} needs {expected} bytes of {dtype}, its data_offsets span {end - begin}"
        )
    return format, tuple(shape), begin, end


def _check_spans(path: str, spans: list[tuple[int, int, str]], data_size: int) -> None:
    """Tensors must follow one another without gap or overlap and end where the file ends."""
    at = 0
    for begin, end, name in spans:
        if begin != at:
            what = "overlaps the one before" if begin < at else f"leaves a gap of {begin - at} bytes"
            raise CheckpointError(f"{printable(path)}: tensor {printable(name)} {what} (byte {begin} of the data)")
        at = end
    if at > data_size:
        raise CheckpointError(
            f"{printable(path)}: the tensors need {at} bytes of data, the file has {data_size}; it is truncated"
        )
    if at < data_size:
        raise CheckpointError(f"{printable(path)}: {data_size - at} bytes follow the last tensor")


def _reader(source: Source, start: int, shape: tuple[int, ...], format: Format, name: str) -> Any:
    row_bytes = (shape[-1] if shape else 1) * format.type_size

    def read(lo: int, hi: int) -> np.ndarray:
        """Rows lo:hi as bytes, (hi - lo, row_bytes) uint8, read-only."""
        try:
            data = source.array(start + lo * row_bytes, (hi - lo) * row_bytes)
        except GGUFError:
            raise CheckpointError(f"{printable(source.name)}: the file ends inside tensor {printable(name)}") from None
        return data.reshape(hi - lo, row_bytes)

    return read
