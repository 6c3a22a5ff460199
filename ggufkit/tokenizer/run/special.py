"""Special tokens in a text: found first, the longest before the shorter ones, wherever they are.

    "<s>a<|end|> b"    →    <s>   "a"   <|end|>   " b"      (a token with RSTRIP takes the space as well)

Source: `tokenizer_st_partition` of llama-vocab.cpp.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator

from ggufkit.tokenizer.run.vocab import CONTROL, LSTRIP, RSTRIP, UNKNOWN, Vocab

__all__ = ["Specials"]

_SPACES = " \t\n\v\f\r"  # C's isspace


class Specials:
    """The special tokens of a vocabulary."""

    def __init__(self, vocab: Vocab):
        ids = vocab.special()
        self.parsed = _Tokens(vocab, ids)
        # Without `parse`, control tokens are mere text; user-defined ones are found all the same.
        self.plain = _Tokens(vocab, [i for i in ids if not vocab.attributes[i] & (CONTROL | UNKNOWN)])

    def partition(self, text: str, parse: bool) -> list[str | int]:
        """Pieces of text, none empty, and token ids between them."""
        parts: list[str | int] = [text] if text else []
        for special, token, attributes in (self.parsed if parse else self.plain).inside(text):
            parts = [new for part in parts for new in _split(part, special, token, attributes)]
        return parts


class _Tokens:
    """Tokens to look for, the first before those after it. Gemma has 6,242."""

    def __init__(self, vocab: Vocab, ids: list[int]):
        self.tokens = [(vocab.texts[i], i, vocab.attributes[i]) for i in ids]
        self.places = {text: place for place, (text, _, _) in reversed(list(enumerate(self.tokens)))}
        self.names = sorted(self.places)

    def inside(self, text: str) -> list[tuple[str, int, int]]:
        """The tokens whose texts are in a text: (text, id, attributes) each."""
        return [self.tokens[place] for place in sorted(self.places[name] for name in names_inside(text, self.names))]


def names_inside(text: str, names: list[str]) -> Iterator[str]:
    """Which of the sorted names are in a text. Where the beginning of one is not, none that begins so is looked for."""
    at = 0
    while at < len(names):
        name = names[at]
        if name in text:
            yield name
            at += 1
            continue
        size = bisect_left(range(len(name)), True, key=lambda n: name[:n] not in text)
        at = bisect_right(names, name[:size], at, key=lambda other: other[:size])


def _split(part: str | int, special: str, token: int, attributes: int) -> list[str | int]:
    if isinstance(part, int) or special not in part:
        return [part]
    pieces = part.split(special)
    if attributes & RSTRIP:
        pieces[1:] = [piece.lstrip(_SPACES) for piece in pieces[1:]]
    if attributes & LSTRIP:
        pieces[:-1] = [piece.rstrip(_SPACES) for piece in pieces[:-1]]
    out: list[str | int] = [pieces[0]]
    for piece in pieces[1:]:
        out += (token, piece)
    return [piece for piece in out if piece != ""]
