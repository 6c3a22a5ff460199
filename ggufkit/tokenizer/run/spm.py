"""SentencePiece's byte-pair encoding with byte fallback, as llama.cpp has it.

Neighbours that make a token merge, the token with the highest score first. A character that is no token becomes its
bytes (`<0x0A>`). llama.cpp merges over the whole text. No merge can cross a place whose two characters stand side by
side in no token, so the text is cut there and the tokens of each part are remembered; that changes no token:

    ▁def▁main(     →    ▁def | ▁main(

Source: `llm_tokenizer_spm_session` of llama-vocab.cpp.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from itertools import chain

from ggufkit.tokenizer.run.merge import merge, remembered
from ggufkit.tokenizer.run.unicode import utf8
from ggufkit.tokenizer.run.vocab import BYTE, CONTROL, NORMAL, UNKNOWN, USER_DEFINED, Vocab

__all__ = ["SPACE", "WIDTHS", "SentencePiece", "byte_of", "cutter", "sentencepiece_piece"]

SPACE = "\u2581"
WIDTHS = bytes([1] * 12 + [2, 2, 3, 4])  # bytes of a character by the high half of its first byte
_BYTE = re.compile("<0x[0-9A-Fa-f]{2}>")
_ESCAPES = re.compile("[\udc80-\udcff]")  # bytes that were no UTF-8 when the text was read


class SentencePiece:
    """The tokenizer of a SentencePiece BPE vocabulary."""

    def __init__(self, vocab: Vocab):
        self.vocab = vocab
        self.ids = vocab.ids
        self.ranks = {text: -score for text, score in zip(vocab.texts, vocab.scores, strict=True)}
        self.cut = cutter(vocab.texts)
        self.word = remembered(self._word)

    def encode(self, text: str, first: bool = True) -> list[int]:
        """Token ids of a text without special tokens; `first`: it starts the text or follows a special token."""
        if first and self.vocab.add_space_prefix:
            text = " " + text
        text = text.replace(" ", SPACE)
        if not text.isascii() and _ESCAPES.search(text):
            return self._merge(raw_characters(utf8(text)))
        return list(chain.from_iterable(map(self.word, self.cut(text))))

    def _word(self, word: str) -> tuple[int, ...]:
        return tuple(self._merge(list(word)))

    def _merge(self, characters: list[str]) -> list[int]:
        tokens: list[int] = []
        for symbol in merge(characters, self.ranks, glue=""):
            token = self.ids.get(symbol)
            if token is not None:
                tokens.append(token)
            else:
                tokens += map(self._byte, utf8(symbol))
        return tokens

    def _byte(self, byte: int) -> int:
        token = self.ids.get(f"<0x{byte:02X}>", self.ids.get(chr(byte)) if byte < 0x80 else None)
        return token if token is not None else self.vocab.unk or 0

    def piece(self, token: int) -> bytes:
        return sentencepiece_piece(self.vocab, token)


def cutter(texts: Iterable[str]) -> Callable[[str], list[str]]:
    """What cuts a text before word starts that no token reaches over."""
    before = {text[at - 1] for text in texts for at in _places(text)}
    return re.compile(f"(?<=[^{re.escape(''.join(sorted(before)))}])(?={SPACE})" if before else f"(?={SPACE})").split


def _places(text: str) -> list[int]:
    """Where a text has a word start, but not at its beginning."""
    return [i for i, c in enumerate(text) if c == SPACE and i] if SPACE in text[1:] else []


def raw_characters(data: bytes) -> list[str]:
    """Bytes that are no UTF-8, cut as llama.cpp cuts them: by what each first byte promises."""
    characters, at = [], 0
    while at < len(data):
        n = WIDTHS[data[at] >> 4]
        characters.append(data[at : at + n].decode("utf-8", "surrogateescape"))
        at += n
    return characters


def sentencepiece_piece(vocab: Vocab, token: int) -> bytes:
    """The bytes of a token whose text has U+2581 for spaces."""
    text, attribute = vocab.texts[token], vocab.attributes[token]
    if attribute & (UNKNOWN | CONTROL | USER_DEFINED):
        return utf8(text)
    if attribute & NORMAL:
        return utf8(text.replace(SPACE, " "))
    return byte_of(text) if attribute & BYTE else b""


def byte_of(text: str) -> bytes:
    """The byte that a byte token like <0x0A> stands for; nothing for another text."""
    return bytes.fromhex(text[3:5]) if _BYTE.fullmatch(text) else b""
