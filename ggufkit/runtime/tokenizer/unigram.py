"""SentencePiece's unigram model (T5, XLM-RoBERTa): of all ways to cut a text the one with the highest total score.

The text is normalized first, by the compiled rules that the file carries: a double array that maps the longest
prefix it knows to a replacement.

    bit  31      30 … 10          9      8     7 … 0
         value   BASE (or value)  shift  leaf  label        one u32 a node; the child for byte c is BASE ^ c

Source: `llm_tokenizer_ugm_session` of llama-vocab.cpp; S. Kanda, "Space- and Time-Efficient String Dictionaries"
(2018).
"""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Sequence

from ggufkit.errors import GGUFError
from ggufkit.runtime.tokenizer.spm import SPACE, WIDTHS, sentencepiece_piece
from ggufkit.runtime.tokenizer.unicode import utf8
from ggufkit.runtime.tokenizer.vocab import NORMAL, UNUSED, USER_DEFINED, Vocab

__all__ = ["Unigram"]

UNKNOWN_PENALTY = 10.0


class Unigram:
    """The tokenizer of a unigram vocabulary."""

    def __init__(self, vocab: Vocab):
        self.vocab = vocab
        self.unk = vocab.unk if vocab.unk is not None else -1
        self.rules = _Rules(vocab.charsmap)
        self.scores: dict[bytes, tuple[int, float]] = {}  # token → (id, score)
        lengths: defaultdict[int, set[int]] = defaultdict(set)
        lowest = 3.4028234663852886e38  # FLT_MAX
        user_defined: set[bytes] = set()
        for token, (text, attribute) in enumerate(zip(vocab.texts, vocab.attributes, strict=True)):
            if not attribute & (NORMAL | USER_DEFINED | UNUSED):
                continue
            key, score = utf8(text), vocab.scores[token]
            if attribute & NORMAL:
                lowest = min(lowest, score)
            if attribute & USER_DEFINED:
                score = 0.0
                user_defined.update(key[:n] for n in range(1, len(key) + 1))
            self.scores[key] = (token, score)
            lengths[key[0]].add(len(key))
        self.lengths = {first: sorted(n) for first, n in lengths.items()}  # of the tokens that start with a byte
        self.prefixes = user_defined  # of user-defined tokens: they are not normalized
        (self.unknown,) = struct.unpack("f", struct.pack("f", lowest - UNKNOWN_PENALTY))

    def encode(self, text: str, first: bool = True) -> list[int]:
        """Token ids of a text without special tokens."""
        return self._best(self._normalize(utf8(text)))

    # -- normalization ----------------------------------------------------------------------------------------

    def _normalize(self, text: bytes) -> bytes:
        vocab = self.vocab
        space = SPACE.encode() if vocab.escape_spaces else b" "
        out, in_word, started = bytearray(), False, False
        at = 0
        while at < len(text):
            part, used = self._prefix(text, at)
            at += used
            for i in range(len(part)):
                c = part[i : i + 1]
                if c != b" ":
                    if not in_word:
                        in_word = True
                        if (vocab.add_space_prefix and not started) or vocab.remove_extra_spaces:
                            out += space
                            started = True
                    out += c
                else:
                    in_word = False
                    if not vocab.remove_extra_spaces:
                        out += space
        return bytes(out)

    def _prefix(self, text: bytes, at: int) -> tuple[bytes, int]:
        """What the next bytes become, and how many they are."""
        n = 0
        while text[at : at + n + 1] in self.prefixes and at + n < len(text):
            n += 1
        if n:
            return text[at : at + n], n
        part, n = self.rules.longest(text, at)
        if n:
            return part, n
        width = WIDTHS[text[at] >> 4]
        character = text[at : at + width]
        # As llama.cpp decodes: surrogates and overlong forms pass, lone continuation bytes do not.
        first_is_good = text[at] < 0x80 if width == 1 else text[at] < 0xF8
        if first_is_good and len(character) == width and all(c & 0xC0 == 0x80 for c in character[1:]):
            return character, width
        return b"\xef\xbf\xbd", 1

    # -- the best path ----------------------------------------------------------------------------------------

    def _best(self, text: bytes) -> list[int]:
        """Viterbi: the best way to each place, from the left; ties go to the one that was found first."""
        n = len(text)
        if n == 0:
            return []
        lowest = float("-inf")
        best: list[tuple[float, int, int]] = [(lowest, self.unk, 0)] * (n + 1)  # (score, last token, its start)
        best[0] = (0.0, self.unk, 0)
        scores, lengths = self.scores, self.lengths
        at = 0
        while at < n:
            width = min(WIDTHS[text[at] >> 4], n - at)
            total = best[at][0]
            whole = False  # a token covers the character
            for length in lengths.get(text[at], ()):
                end = at + length
                if end > n:
                    break
                found = scores.get(text[at:end])
                if found is not None:
                    whole = whole or length == width
                    if total + found[1] > best[end][0]:
                        best[end] = (total + found[1], found[0], at)
            if not whole and total + self.unknown > best[at + width][0]:
                best[at + width] = (total + self.unknown, self.unk, at)
            at += width
        return self._path(best)

    def _path(self, best: Sequence[tuple[float, int, int]]) -> list[int]:
        """The tokens of the best way to the end; neighbours that are unknown become one."""
        tokens: list[int] = []
        at, previous = len(best) - 1, None
        while True:
            _, token, start = best[at]
            if not (token == self.unk and previous == self.unk):
                tokens.append(token)
            if start == 0:
                break
            at, previous = start, token
        tokens.reverse()
        return tokens

    def piece(self, token: int) -> bytes:
        return sentencepiece_piece(self.vocab, token)


class _Rules:
    """Compiled normalization rules: bytes of the double array (u32), the array, then replacements that end in NUL."""

    def __init__(self, charsmap: bytes):
        self.nodes: tuple[int, ...] = ()
        self.replacements = b""
        if not charsmap:
            return
        size = int.from_bytes(charsmap[:4], "little")
        if len(charsmap) < 4 or size % 4 or 4 + size >= len(charsmap):
            raise GGUFError(f"the normalization rules (precompiled_charsmap) of {len(charsmap)} bytes are damaged")
        self.nodes = struct.unpack_from(f"<{size // 4}I", charsmap, 4)
        self.replacements = charsmap[4 + size :]

    def longest(self, text: bytes, at: int) -> tuple[bytes, int]:
        """(replacement, length) of the longest prefix of `text[at:]` that has one; length 0 without."""
        nodes = self.nodes
        if not nodes:
            return b"", 0
        try:
            length, value = 0, 0
            node = _base(nodes[0])
            for end in range(at, len(text)):
                c = text[end]
                node ^= c
                packed = nodes[node]
                if c == 0 or packed & 0x800000FF != c:
                    break
                node ^= _base(packed)
                if packed >> 8 & 1:
                    length, value = end + 1 - at, nodes[node] & 0x7FFFFFFF
            if not length:
                return b"", 0
            return self.replacements[value : self.replacements.index(b"\0", value)], length
        except (IndexError, ValueError):
            raise GGUFError("the normalization rules (precompiled_charsmap) point outside themselves") from None


def _base(packed: int) -> int:
    return (packed >> 10) << ((packed & 1 << 9) >> 6)
