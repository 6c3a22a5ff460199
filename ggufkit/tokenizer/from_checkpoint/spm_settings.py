"""What a SentencePiece model file says besides its pieces, read without the protobuf package."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ggufkit.errors import CheckpointError, printable
from ggufkit.storage.regular import read_small

__all__ = ["BPE", "UNIGRAM", "SpmSettings", "read_settings"]

# `model_type`
UNIGRAM, BPE = 1, 2

MAX_MODEL = 200_000_000  # bytes; the largest of today have 5 MB


@dataclass
class SpmSettings:
    """The trainer's and the normalizer's settings; the values are the format's defaults."""

    model_type: int = UNIGRAM
    add_dummy_prefix: bool = True
    remove_extra_whitespaces: bool = True
    precompiled_charsmap: bytes = b""


def read_settings(path: Path) -> SpmSettings:
    """The settings in a model file.

    Raises
    ------
    FileError : it cannot be read.
    CheckpointError : it is truncated or damaged.

    Notes
    -----
    Source: sentencepiece_model.proto (field numbers, defaults).
    """
    data = memoryview(read_small(path, MAX_MODEL))
    settings = SpmSettings()
    try:
        for field, value in _protobuf(data):
            if field == 2 and isinstance(value, memoryview):  # trainer_spec
                settings.model_type = int(dict(_protobuf(value)).get(3, UNIGRAM))
            elif field == 3 and isinstance(value, memoryview):  # normalizer_spec
                found = dict(_protobuf(value))
                settings.precompiled_charsmap = bytes(found.get(2, b""))
                settings.add_dummy_prefix = bool(found.get(3, True))
                settings.remove_extra_whitespaces = bool(found.get(4, True))
    except (IndexError, ValueError, TypeError):
        raise CheckpointError(f"{printable(path)} is no SentencePiece model: it is truncated or damaged") from None
    return settings


def _protobuf(data: memoryview) -> Iterator[tuple[int, Any]]:
    """(field number, value) of a message: an int, or the bytes of a nested message, text or fixed-size number.

    key: varint (number << 3 | wire)    wire 0 varint   1 eight bytes   2 length, bytes   5 four bytes
    """
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        wire = key & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield key >> 3, value
            continue
        if wire == 2:
            size, at = _varint(data, at)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire}")
        if at + size > len(data):
            raise ValueError("truncated")
        yield key >> 3, data[at : at + size]
        at += size


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """(number, place after it); 7 bits per byte, the lowest first, the top bit says that more follow."""
    number = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at
    raise ValueError("varint of more than ten bytes")
