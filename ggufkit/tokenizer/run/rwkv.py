"""RWKV's World vocabulary: from the left the longest token of bytes that there is.

GGUF has the tokens' bytes as Python prints them (``\\xff``, ``\\n``); `bytes_of` undoes that.

Source: `llm_tokenizer_rwkv_session` of llama-vocab.cpp.
"""

from __future__ import annotations

import re

from ggufkit.tokenizer.run.unicode import utf8
from ggufkit.tokenizer.run.vocab import Vocab

__all__ = ["Rwkv", "bytes_of"]

_ESCAPE = re.compile(rb"\\(x[0-9a-f]{2}|.)", re.DOTALL)
_PLAIN = {b"t": b"\t", b"n": b"\n", b"r": b"\r"}


def bytes_of(text: str) -> bytes:
    """The bytes of a token, from what a GGUF has of it."""

    def character(match: re.Match[bytes]) -> bytes:
        escape = match[1]
        return bytes([int(escape[1:], 16)]) if len(escape) == 3 else _PLAIN.get(escape, escape)

    return _ESCAPE.sub(character, utf8(text))


class Rwkv:
    """The tokenizer of a World vocabulary."""

    def __init__(self, vocab: Vocab):
        self.vocab = vocab
        self.pieces = [bytes_of(text) for text in vocab.texts]
        self.ids = {piece: token for token, piece in enumerate(self.pieces) if piece}
        # Lengths that tokens of these first two bytes have, the longest first.
        lengths: dict[bytes, set[int]] = {}
        for piece in self.ids:
            lengths.setdefault(piece[:2], set()).add(len(piece))
        self.lengths = {start: sorted(found, reverse=True) for start, found in lengths.items()}

    def encode(self, text: str, first: bool = True) -> list[int]:
        """Token ids of a text without special tokens."""
        data, at, tokens = utf8(text), 0, []
        unknown = [] if self.vocab.unk is None else [self.vocab.unk]
        while at < len(data):
            for length in self.lengths.get(data[at : at + 2], ()):
                if (token := self.ids.get(data[at : at + length])) is not None:
                    break
            else:
                length, token = 1, self.ids.get(data[at : at + 1])
            tokens += unknown if token is None else [token]
            at += length
        return tokens

    def piece(self, token: int) -> bytes:
        """The bytes of a token."""
        return self.pieces[token]
