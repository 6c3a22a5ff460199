"""SentencePiece's unigram model (T5, XLM-RoBERTa): of all ways to cut a text the one with the highest total score.

The text is normalized first, by the compiled rules that the file carries: a double array that maps the longest
prefix it knows to a replacement.

    bit  31      30 … 10          9      8     7 … 0
         value   BASE (or value)  shift  leaf  label        one u32 a node; the child for byte c is BASE ^ c

Source: `llm_tokenizer_ugm_session` of llama-vocab.cpp; S. Kanda, "Space- and Time-Efficient String Dictionaries"
(2018).
"""

from __future__ import annotations

import math
import re
import struct
from collections import defaultdict
from collections.abc import Iterable
from itertools import chain

from ggufkit.errors import GGUFError
from ggufkit.tokenizer.run.merge import remembered
from ggufkit.tokenizer.run.spm import SPACE, WIDTHS, cutter, sentencepiece_piece
from ggufkit.tokenizer.run.unicode import utf8
from ggufkit.tokenizer.run.vocab import NORMAL, UNUSED, USER_DEFINED, Vocab

__all__ = ["Unigram"]

UNKNOWN_PENALTY = 10.0
_LABEL = 0x800000FF


class Unigram:
    """The tokenizer of a unigram vocabulary."""

    def __init__(self, vocab: Vocab):
        self.vocab = vocab
        self.unk = vocab.unk if vocab.unk is not None else -1
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
        self.rules = _Rules(vocab.charsmap, user_defined)
        (self.unknown,) = struct.unpack("f", struct.pack("f", lowest - UNKNOWN_PENALTY))
        self.exact = _exact([*(score for _, score in self.scores.values()), self.unknown])
        self.cut = cutter(vocab.texts)
        self.word = remembered(self._word)

    def encode(self, text: str, first: bool = True) -> list[int]:
        """Token ids of a text without special tokens."""
        data = self._spaced(self.rules.apply(utf8(text)))
        if len(data) > self.exact:
            tokens = self._best(data)
        else:
            words = self.cut(data.decode("utf-8", "surrogateescape"))
            tokens = list(chain.from_iterable(map(self.word, words)))
        # Neighbours that are unknown become one.
        unk = self.unk
        if unk in tokens:
            return [t for t, before in zip(tokens, [None, *tokens], strict=False) if t != unk or before != unk]
        return tokens

    def _spaced(self, text: bytes) -> bytes:
        """Spaces as SentencePiece writes them, and one in front if the vocabulary wants it."""
        vocab = self.vocab
        space = SPACE.encode() if vocab.escape_spaces else b" "
        if vocab.remove_extra_spaces:
            return b"".join(space + word for word in text.split(b" ") if word)
        words = text.lstrip(b" ")
        prefix = space if vocab.add_space_prefix and words else b""
        return space * (len(text) - len(words)) + prefix + words.replace(b" ", space)

    def _word(self, word: str) -> tuple[int, ...]:
        return tuple(self._best(word.encode("utf-8", "surrogateescape")))

    def _best(self, text: bytes) -> list[int]:
        """Viterbi: the best way to each place, from the left; ties go to the one that was found first."""
        n = len(text)
        if n == 0:
            return []
        best: list[tuple[float, int, int]] = [(float("-inf"), self.unk, 0)] * (n + 1)  # (score, last token, its start)
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
        tokens: list[int] = []
        while at > 0:
            _, token, at = best[at]
            tokens.append(token)
        tokens.reverse()
        return tokens

    def piece(self, token: int) -> bytes:
        return sentencepiece_piece(self.vocab, token)


def _exact(scores: Iterable[float]) -> float:
    """How many bytes may be cut into words.

    Totals are sums of float32 in float64. As long as they are below 2^53 units of the smallest score's last bit they
    are exact, and then a word's best path does not depend on what comes before it.
    """
    sizes = [abs(score) for score in scores if score]
    _, exponent = math.frexp(min(sizes))  # the smallest is below 2^exponent and has 24 bits
    return 2.0 ** (exponent - 24 + 53) / max(sizes)


class _Rules:
    """Compiled normalization rules: bytes of the double array (u32), the array, then replacements that end in NUL.

    Parameters
    ----------
    charsmap : the rules; empty for none.
    kept : beginnings of user-defined tokens, which stay as they are.
    """

    def __init__(self, charsmap: bytes, kept: set[bytes]):
        self.nodes: tuple[int, ...] = ()
        self.replacements = b""
        self.kept = kept
        if charsmap:
            size = int.from_bytes(charsmap[:4], "little")
            if size % 4 or not 4 <= size < len(charsmap) - 4:
                raise GGUFError(f"the normalization rules (precompiled_charsmap) of {len(charsmap)} bytes are damaged")
            self.nodes = struct.unpack_from(f"<{size // 4}I", charsmap, 4)
            self.replacements = charsmap[4 + size :]
        # Runs of ASCII that no rule and no token concerns; what follows one could be part of a rule.
        plain = b"".join(bytes([c]) for c in range(0x80) if bytes([c]) not in kept and self._is_plain(c))
        self.plain = re.compile(rb"(?:[%s](?![\x80-\xff]))+" % re.escape(plain)) if plain else re.compile(rb"(?!)")

    def _is_plain(self, c: int) -> bool:
        """No rule begins with an ASCII character, alone or before another one."""
        if not self.nodes or c == 0:
            return True
        node = _base(self.nodes[0]) ^ c
        if self._node(node) & _LABEL != c:
            return True
        if self._node(node) >> 8 & 1:
            return False
        node ^= _base(self._node(node))
        return all(self._node(node ^ child) & _LABEL != child for child in range(1, 0x80))

    def _node(self, at: int) -> int:
        if at >= len(self.nodes):
            raise GGUFError("the normalization rules (precompiled_charsmap) point outside themselves")
        return self.nodes[at]

    def apply(self, text: bytes) -> bytes:
        """The text normalized."""
        parts: list[bytes] = []
        at = 0
        while at < len(text):
            if run := self.plain.match(text, at):
                parts.append(run[0])
                at = run.end()
                continue
            part, used = self._prefix(text, at)
            parts.append(part)
            at += used
        return b"".join(parts)

    def _prefix(self, text: bytes, at: int) -> tuple[bytes, int]:
        """What the next bytes become, and how many they are."""
        n = 0
        while at + n < len(text) and text[at : at + n + 1] in self.kept:
            n += 1
        if n:
            return text[at : at + n], n
        part, n = self._longest(text, at)
        if n:
            return part, n
        width = WIDTHS[text[at] >> 4]
        character = text[at : at + width]
        # As llama.cpp decodes: surrogates and overlong forms pass, lone continuation bytes do not.
        first_is_good = text[at] < 0x80 if width == 1 else text[at] < 0xF8
        if first_is_good and len(character) == width and all(c & 0xC0 == 0x80 for c in character[1:]):
            return character, width
        return b"\xef\xbf\xbd", 1

    def _longest(self, text: bytes, at: int) -> tuple[bytes, int]:
        """(replacement, length) of the longest prefix of `text[at:]` that has one; length 0 without."""
        if not self.nodes:
            return b"", 0
        length, value = 0, 0
        node = _base(self.nodes[0])
        for end in range(at, len(text)):
            c = text[end]
            node ^= c
            packed = self._node(node)
            if c == 0 or packed & _LABEL != c:
                break
            node ^= _base(packed)
            if packed >> 8 & 1:
                length, value = end + 1 - at, self._node(node) & 0x7FFFFFFF
        if not length:
            return b"", 0
        end = self.replacements.find(b"\0", value)
        if end < 0:
            raise GGUFError("the normalization rules (precompiled_charsmap) have a replacement without an end")
        return self.replacements[value:end], length


def _base(packed: int) -> int:
    return (packed >> 10) << ((packed & 1 << 9) >> 6)
