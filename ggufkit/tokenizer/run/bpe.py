"""Byte-pair encoding over GPT-2's alphabet of bytes, or over UTF-8 with byte tokens (Gemma 4).

    " 世"  →  20 e4 b8 96  →  "Ġ ä ¸ ĸ"  →  merges  →  "Ġä" "¸ĸ"

Source: `llm_tokenizer_bpe_session` of llama-vocab.cpp.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from itertools import chain

from ggufkit.tokenizer.run.merge import merge, remembered
from ggufkit.tokenizer.run.pre import Splitter
from ggufkit.tokenizer.run.spm import SPACE, byte_of, cutter
from ggufkit.tokenizer.run.unicode import utf8
from ggufkit.tokenizer.run.vocab import BYTE, NORMAL, Vocab

__all__ = ["BYTES", "BytePairs", "byte_letters"]


@functools.cache
def byte_letters() -> dict[int, str]:
    """GPT-2's letter for each byte: printable Latin-1 stands for itself, the others get U+0100 and on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    letters = {byte: chr(byte) for byte in printable}
    others = (byte for byte in range(256) if byte not in letters)
    letters.update((byte, chr(256 + i)) for i, byte in enumerate(others))
    return letters


@functools.cache
def BYTES() -> dict[str, int]:  # noqa: N802
    return {letter: byte for byte, letter in byte_letters().items()}


class BytePairs:
    """The tokenizer of a byte-pair vocabulary."""

    def __init__(self, vocab: Vocab):
        self.vocab = vocab
        self.ids = vocab.ids
        # Of a pair that is there twice the first rank counts.
        self.ranks = dict(zip(reversed(vocab.merges), range(len(vocab.merges) - 1, -1, -1), strict=True))
        self.split = Splitter(vocab.pre)
        # Without words of a pre-tokenizer: at word starts that no merge reaches over.
        self.cut = None if vocab.pre.byte_encode else cutter(pair.replace(" ", "", 1) for pair in vocab.merges)
        self.word = remembered(self._word)

    def encode(self, text: str, first: bool = True) -> list[int]:
        """Token ids of a text without special tokens."""
        if self.vocab.escape_spaces:
            text = text.replace(" ", SPACE)
        if not text.isascii():
            text = without_escapes(text)
        words: Iterable[str] = self.split(text)
        if self.cut is not None:
            words = chain.from_iterable(map(self.cut, words))
        return list(chain.from_iterable(map(self.word, words)))

    def _word(self, word: str) -> tuple[int, ...]:
        pre = self.vocab.pre
        if pre.byte_encode:
            word = utf8(word).decode("latin-1").translate(byte_letters())
        if (pre.ignore_merges or (pre.gemma and not word.strip("\n"))) and word in self.ids:
            return (self.ids[word],)
        tokens: list[int] = []
        for symbol in merge(list(word), self.ranks, glue=" "):
            token = self.ids.get(symbol)
            if token is not None:
                tokens.append(token)
            else:
                tokens += self._bytes(symbol)
        return tuple(tokens)

    def _bytes(self, symbol: str) -> list[int]:
        """A symbol that is no token, as byte tokens; bytes without one are dropped."""
        if self.vocab.pre.byte_encode:
            names = [c for c in symbol if c.isascii()]
        else:
            names = [f"<0x{byte:02X}>" for byte in utf8(symbol)]
        return [self.ids[name] for name in names if name in self.ids]

    def piece(self, token: int) -> bytes:
        """The bytes of a normal or byte token."""
        text = self.vocab.texts[token]
        if self.vocab.attributes[token] & NORMAL:
            if self.vocab.escape_spaces:
                return utf8(text.replace(SPACE, " "))
            return decode_letters(text)
        return byte_of(text) if self.vocab.attributes[token] & BYTE else b""


def decode_letters(text: str) -> bytes:
    """The bytes that the letters of a token stand for; others are shown as llama.cpp shows them."""
    bytes_of = BYTES()
    try:
        return bytes([bytes_of[c] for c in text])
    except KeyError:
        raw = utf8(text)
        parts = [
            bytes([bytes_of[c]]) if c in bytes_of else b"[UNK_BYTE_0x" + utf8(c).hex().encode() + raw + b"]"
            for c in text
        ]
        return b"".join(parts)


def without_escapes(text: str) -> str:
    """Bytes that were no UTF-8 (surrogate escapes) as replacement characters."""
    return "".join("\ufffd" if "\udc80" <= c <= "\udcff" else c for c in text)
