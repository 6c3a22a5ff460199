"""What the reader lets pass and others stumble over: the end of the file, bools that are neither 0 nor 1, text."""

from __future__ import annotations

from collections.abc import Iterator

from ggufkit.errors import printable
from ggufkit.gguf.checks.finding import Finding, warning
from ggufkit.gguf.header import Field, ValueType
from ggufkit.gguf.reader import GGUF, Part
from ggufkit.gguf.shards import SPLIT_KEYS

__all__ = ["check_structure"]

_SPLIT_TYPES = dict(zip(SPLIT_KEYS, (ValueType.UINT16, ValueType.UINT16, ValueType.INT32), strict=True))


def check_structure(model: GGUF) -> Iterator[Finding]:
    for part in model.parts:
        yield from _check_end(part)
        yield from _check_split_keys(part)
        for field in part.header.fields.values():
            yield from _check_value(field)
        for info in part.header.tensors.values():
            if not info.name.isprintable():
                yield warning(f"the name {printable(info.name)} has characters that cannot be printed", info.at)
    for key in ("general.file_type", "general.quantization_version"):
        pair = model.fields.get(key)
        if pair is not None and pair.type is not ValueType.UINT32:
            yield warning(f"{key} should be of type u32, but is {pair.describe()}", pair.offset)


def _check_end(part: Part) -> Iterator[Finding]:
    left = part.source.size - part.start - part.header.data_end
    name = printable(part.source.name, 4096)
    if left < 0 and part.header.tensors:
        yield warning(f"{name} lacks the last {-left} bytes of padding; some readers refuse that")
    if left > 0 and part.header.tensors:
        yield warning(f"{name} has {left} bytes after the last tensor", part.start + part.header.data_end)


def _check_split_keys(part: Part) -> Iterator[Finding]:
    for key, kind in _SPLIT_TYPES.items():
        field = part.header.fields.get(key)
        if field is None:
            continue
        if field.type is not kind:
            yield warning(f"{key} should be of type {kind.short}, but is {field.describe()}", field.offset)
        elif field.value < 0:
            yield warning(f"{key} is {field.value}", field.offset)


def _check_value(field: Field) -> Iterator[Finding]:
    key = printable(field.key)
    kind = field.type if field.item_type is None else field.item_type
    if kind is ValueType.BOOL and (odd := set(field.raw) - {0, 1}):
        yield warning(f"{key} has a bool with the value {min(odd)}, which is neither 0 nor 1", field.start)
    if field.type is ValueType.STRING:
        raw = next(field.strings())
        try:
            raw.decode()
        except UnicodeDecodeError as e:
            yield warning(f"{key} is not valid UTF-8 at its byte {e.start}", field.start)
    if not field.key.isprintable():
        yield warning(f"the key {key} has characters that cannot be printed", field.offset)
