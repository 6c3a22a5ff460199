"""A GGUF vocabulary of SentencePiece's kind as its own file, tokenizer.model: with the scores that merges go by.

    ModelProto   1 piece {1 text, 2 score, 3 type}   2 trainer {3 kind, 4 size, 35 byte fallback, 40 … 43 ids}
                 3 normalizer {1 name, 3 dummy prefix, 4 extra white space removed, 5 white space escaped}

Source: sentencepiece_model.proto of google/sentencepiece.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from ggufkit.tokenizer.run.vocab import BYTE, CONTROL, UNKNOWN, UNUSED, USER_DEFINED

if TYPE_CHECKING:
    from ggufkit.tokenizer.run.vocab import Vocab

__all__ = ["sentencepiece_file"]

# Attribute → SentencePiece's type; 1 is a token like any other.
_TYPES = ((UNKNOWN, 2), (CONTROL, 3), (USER_DEFINED, 4), (UNUSED, 5), (BYTE, 6))

# Wire types of protobuf.
_VARINT, _BYTES, _FIXED = 0, 2, 5

_BPE = 2


def sentencepiece_file(vocab: Vocab) -> bytes:
    """`tokenizer.model` of a vocabulary."""
    pieces = (
        _field(1, _BYTES, text.encode("utf-8", "surrogateescape"))
        + _field(2, _FIXED, struct.pack("<f", score))
        + _number(3, next((kind for flag, kind in _TYPES if attribute & flag), 1))
        for text, score, attribute in zip(vocab.texts, vocab.scores, vocab.attributes, strict=True)
    )
    bytes_too = any(attribute & BYTE for attribute in vocab.attributes)
    trainer = _number(3, _BPE) + _number(4, len(vocab.texts)) + _number(35, bytes_too)
    for place, token in ((40, vocab.unk), (41, vocab.bos), (42, vocab.eos), (43, vocab.pad)):
        trainer += _number(place, -1 if token is None else token)
    normalizer = _field(1, _BYTES, b"identity") + _number(3, vocab.add_space_prefix) + _number(4, 0) + _number(5, 1)
    return (
        b"".join(_field(1, _BYTES, piece) for piece in pieces)
        + _field(2, _BYTES, trainer)
        + _field(3, _BYTES, normalizer)
    )


def _field(number: int, kind: int, payload: bytes) -> bytes:
    size = _varint(len(payload)) if kind == _BYTES else b""
    return _varint(number << 3 | kind) + size + payload


def _number(field: int, value: int) -> bytes:
    return _field(field, _VARINT, _varint(int(value) & (1 << 64) - 1))


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes((*out, number))
