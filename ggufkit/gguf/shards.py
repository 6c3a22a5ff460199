"""Split models: one model in several files, and how to find the others from any of them.

    model-00001-of-00003.gguf   the metadata, and  split.no 0   split.count 3   split.tensors.count 291
    model-00002-of-00003.gguf                      split.no 1   split.count 3   split.tensors.count 291
    model-00003-of-00003.gguf                      split.no 2   split.count 3   split.tensors.count 291

`split.no` (u16) counts from 0, the names from 1. `split.tensors.count` (i32) is the total. A merged file that
llama.cpp made keeps the keys, with a `split.count` of 0.

Source: tools/gguf-split/gguf-split.cpp, `llama_split_path` in src/llama.cpp of llama.cpp.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ggufkit.errors import GGUFError, Hint, UsageError, printable
from ggufkit.gguf.header import Field, Header, TensorInfo, Value, ValueType, padded

__all__ = [
    "DEFAULT_TENSORS",
    "MAX_SHARDS",
    "SPLIT_KEYS",
    "Shard",
    "check_shards",
    "merged_fields",
    "shard_count",
    "sibling_names",
    "split_names",
    "split_tensors",
]

SPLIT_NO, SPLIT_COUNT, SPLIT_TENSORS = SPLIT_KEYS = ("split.no", "split.count", "split.tensors.count")
DEFAULT_TENSORS = 128  # per file, as llama-gguf-split has them
MAX_SHARDS = 65535  # split.count is u16

_NAME = re.compile(r"-(\d{5})-of-(\d{5})\.gguf(?=\?|$)")

# llama.cpp counts a tensor's bytes padded to this when it fills a shard, whatever the alignment is.
_PADDING = 32


def split_names(target: str, count: int) -> list[str]:
    """Names of the files of a split model, as llama.cpp writes them: ``model-00001-of-00003.gguf``."""
    stem = target.removesuffix(".gguf")
    return [f"{stem}-{i + 1:05d}-of-{count:05d}.gguf" for i in range(count)]


# -- reading ----------------------------------------------------------------------------------------------


def shard_count(fields: Mapping[str, Field]) -> int:
    """How many files the model of these metadata has; 1 when it is not split, or its split keys make no sense."""
    field, tensors = fields.get(SPLIT_COUNT), fields.get(SPLIT_TENSORS)
    if field is None or field.type is not ValueType.UINT16 or field.value < 2:
        return 1
    if tensors is not None and (tensors.type is not ValueType.INT32 or tensors.value < 0):
        return 1
    result: int = field.value
    return result


def sibling_names(name: str, header: Header) -> list[str]:
    """The names of all files of the split model that one of them, called `name`, belongs to.

    Raises
    ------
    GGUFError : the name does not say which shard it is, or says another one than the metadata.
    """
    count, field = shard_count(header.fields), header.fields.get(SPLIT_NO)
    if field is None or field.type is not ValueType.UINT16:
        raise GGUFError(
            f"{SPLIT_COUNT} is {count}, but {SPLIT_NO} (u16) is missing", name, header.fields[SPLIT_COUNT].offset
        )
    suffix = f"-{field.value + 1:05d}-of-{count:05d}.gguf"
    match = _NAME.search(name)
    if match is None or match[0] != suffix:
        raise GGUFError(
            f"this is file {field.value + 1} of a model split into {count}, but its name does not end in {suffix}: "
            "the others cannot be found",
            name,
            field.offset,
            Hint("rename it", "open it alone with {shards=False}"),
        )
    return [f"{name[: match.start()]}-{i + 1:05d}-of-{count:05d}.gguf{name[match.end() :]}" for i in range(count)]


def check_shards(names: Sequence[str], headers: Sequence[Header]) -> None:
    """Refuse files that are not the shards, in order, of one model.

    Raises
    ------
    GGUFError : a number, the count of files or of tensors differs from what it should be.
    """
    tensors = sum(len(header.tensors) for header in headers)
    for i, (name, header) in enumerate(zip(names, headers, strict=True)):
        if header.byteorder != headers[0].byteorder:
            raise GGUFError(f"it is {header.byteorder}-endian, but {printable(names[0])} is not", name, 4)
        wanted = ((SPLIT_NO, ValueType.UINT16, i), (SPLIT_COUNT, ValueType.UINT16, len(names)))
        for key, kind, value in (*wanted, (SPLIT_TENSORS, ValueType.INT32, tensors)):
            field = header.fields.get(key)
            if field is None or field.type is not kind:
                # llama.cpp reads the total of the first file only.
                if key != SPLIT_TENSORS:
                    raise GGUFError(f"{key} ({kind.short}) is missing: it is not a file of this split model", name)
            elif field.value != value:
                raise GGUFError(
                    f"{key} is {field.value}, but it should be {value}: the {len(names)} files do not belong together",
                    name,
                    field.offset,
                )


# -- splitting --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shard:
    """One file of a model to be split: its metadata and the names of its tensors, in file order."""

    metadata: dict[str, Any]
    tensors: list[str]


def split_tensors(
    fields: Mapping[str, Any],
    infos: Mapping[str, TensorInfo],
    *,
    max_tensors: int | None = None,
    max_bytes: int | None = None,
    no_tensor_first_split: bool = False,
) -> list[Shard]:
    """Divide a model into shards as llama-gguf-split does.

    Parameters
    ----------
    fields, infos : metadata and tensors of the whole model, in file order. Split keys it has are replaced.
    max_tensors : a new file starts after each `max_tensors` tensors.
    max_bytes : a new file starts before the tensors of one exceed it; metadata does not count. A tensor that is
        larger has a file of its own.
    no_tensor_first_split : the first file holds the metadata alone.

    Raises
    ------
    UsageError : not exactly one of the limits is given, or there would be more than 65,535 files.
    """
    if (max_tensors is None) == (max_bytes is None):
        raise UsageError("give either the most tensors or the most bytes of a file")
    full = _by_count(max_tensors) if max_bytes is None else _by_size(max_bytes)
    groups: list[list[str]] = [[], []] if no_tensor_first_split else [[]]
    for info in infos.values():
        if full(info):
            groups.append([])
        groups[-1].append(info.name)
    if len(groups) > MAX_SHARDS:
        raise UsageError(
            f"the model would be split into {len(groups)} files, the limit is {MAX_SHARDS}; allow more in each"
        )
    kept = {key: value for key, value in fields.items() if key not in SPLIT_KEYS}
    return [
        Shard({**({} if i else kept), **_split_fields(i, len(groups), len(infos))}, names)
        for i, names in enumerate(groups)
    ]


def _split_fields(number: int, count: int, tensors: int) -> dict[str, Value]:
    # In the order that llama.cpp leaves: it sets the count when all files are known.
    return {
        SPLIT_NO: Value(ValueType.UINT16, number),
        SPLIT_TENSORS: Value(ValueType.INT32, tensors),
        SPLIT_COUNT: Value(ValueType.UINT16, count),
    }


def merged_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata of the merged file as llama-gguf-split writes them: `split.count` is 0 and at the end."""
    rest = {key: value for key, value in fields.items() if key != SPLIT_COUNT}
    return {**rest, SPLIT_COUNT: Value(ValueType.UINT16, 0)}


def _by_count(most: int | None) -> Callable[[TensorInfo], bool]:
    seen = 0

    def full(info: TensorInfo) -> bool:
        nonlocal seen
        seen += 1
        return seen > 1 and (seen - 1) % (most or 1) == 0

    return full


def _by_size(most: int) -> Callable[[TensorInfo], bool]:
    filled, empty = 0, True

    def full(info: TensorInfo) -> bool:
        nonlocal filled, empty
        size = padded(info.nbytes, _PADDING)
        starts = not empty and filled + size > most
        filled, empty = (size if starts else filled + size), False
        return starts

    return full
