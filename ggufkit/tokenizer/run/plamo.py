"""PLaMo 2's and 3's tokenizers: of all ways to cut a text into tokens the one of the best score, from the end.

A character that no token covers costs 1000 and becomes its bytes. PLaMo 3 first cuts around ``<|plamo:…|>`` and around
runs of one character.

Source: `llm_tokenizer_plamo2` of llama-vocab.cpp.
"""

from __future__ import annotations

import math
import re
from itertools import pairwise

from ggufkit.errors import GGUFError
from ggufkit.tokenizer.run.bpe import without_escapes
from ggufkit.tokenizer.run.unicode import is_space, utf8
from ggufkit.tokenizer.run.vocab import BYTE, Vocab

__all__ = ["Plamo"]

_UNKNOWN, _INVALID = -10_000_000, -20_000_000  # scores times 10,000
_BYTE = re.compile("<0x([0-9A-Fa-f]{2})>")
_BOUNDARY = "\uee00"  # stands between segments, and is none of their text
_PREFIX, _LONGEST_NAME = "<|plamo:", 64


class Plamo:
    """The tokenizer of such a vocabulary.

    Raises
    ------
    GGUFError : a byte has no token.
    """

    def __init__(self, vocab: Vocab):
        self.vocab = vocab
        self.bytes = [0] * 256
        # Text → score and token; ends of tokens that are none themselves have no score.
        self.known: dict[str, tuple[int, int]] = {}
        for token, text in enumerate(vocab.texts):
            if vocab.attributes[token] & BYTE:
                if (match := _BYTE.fullmatch(text)) is not None:
                    self.bytes[int(match[1], 16)] = token
                continue
            self.known[text] = (_score(vocab.scores[token]), vocab.ids[text])
        for text in list(self.known):
            for start in range(1, len(text)):
                self.known.setdefault(text[start:], (_INVALID, -1))
        if 0 in self.bytes:
            raise GGUFError(f"the tokenizer has no token for the byte 0x{self.bytes.index(0):02X}")

    def encode(self, text: str, first: bool = True) -> list[int]:
        """Token ids of a text without special tokens."""
        text = without_escapes(text)
        if self.vocab.kind == "plamo2":
            return self._segment(text.removeprefix("\ufeff"))
        return [token for segment in _segments(text) for token in self._segment(segment)]

    def _segment(self, text: str) -> list[int]:
        length = len(text)
        costs, steps = [0] * (length + 1), [(1, -1)] * length
        longest = 0  # of what is known and begins one character further
        for at in range(length - 1, -1, -1):
            longest = self._longer(text, at, longest)
            costs[at], steps[at] = self._best(text, at, longest, costs)
        tokens, at = [], 0
        while at < length:
            size, token = steps[at]
            tokens += [token] if token >= 0 else [self.bytes[byte] for byte in utf8(text[at])]
            at += size
        return tokens

    def _longer(self, text: str, at: int, longest: int) -> int:
        """Characters of the longest known text that begins `at`, from that of the next place."""
        for length in range(longest, 0, -1):
            shorter = self.known.get(text[at + 1 : at + 1 + length])
            if shorter is None:
                continue
            if text[at : at + 1 + length] in self.known:
                return length + 1
            if shorter[0] == _UNKNOWN:  # as the reference, which takes it for the end of its list
                return 0
        return int(text[at] in self.known)

    def _best(self, text: str, at: int, longest: int, costs: list[int]) -> tuple[int, tuple[int, int]]:
        """(cost of the rest of the text, (characters, token)) of the best first token."""
        best, step = 1 << 60, (1, -1)
        for length in range(longest, 0, -1):
            score, token = self.known.get(text[at : at + length], (_INVALID, -1))
            if score > _INVALID and costs[at + length] - score < best:
                best, step = costs[at + length] - score, (length, token)
            if score == _UNKNOWN:
                return best, step
        if costs[at + 1] - _UNKNOWN < best:
            best, step = costs[at + 1] - _UNKNOWN, (1, -1)
        return best, step

    def piece(self, token: int) -> bytes:
        """The bytes of a token."""
        text = self.vocab.texts[token]
        if self.vocab.attributes[token] & BYTE and (match := _BYTE.fullmatch(text)) is not None:
            return bytes([int(match[1], 16)])
        return utf8(text)


def _score(score: float) -> int:
    """Ten thousand times a score, half away from zero."""
    if not math.isfinite(score):
        return _INVALID
    return int(math.copysign(math.floor(abs(score) * 1e4 + 0.5), score))


def _segments(text: str) -> list[str]:
    """A text cut as PLaMo 3 does it."""
    cuts = {0, len(text)}
    at = text.find(_PREFIX)
    while at >= 0:
        end = at + len(_PREFIX)
        most = end + _LONGEST_NAME
        while end < min(len(text), most) and text[end] != "|" and not _is_space(text[end]):
            end += 1
        named = text.startswith("|>", end)
        if named:
            cuts |= {at, end + 2}
        at = text.find(_PREFIX, end + 2 if named else at + 1)
    start = 0
    while start < len(text):
        end = start + 1
        while end < len(text) and text[end] == text[start] and end not in cuts:
            end += 1
        if (text[start] != "\n" and end - start >= 4) or (text[start] == " " and end - start >= 2):
            cuts |= {start, end}
        start = end
    places = sorted(cuts)
    parts = [text[a:b] for a, b in pairwise(places)]
    return [segment for part in parts for segment in part.split(_BOUNDARY) if segment]


def _is_space(character: str) -> bool:
    return is_space(ord(character)) or "\x1c" <= character <= "\x1f"
