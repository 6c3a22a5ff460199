"""Special tokens in a text: found first, the longest before the shorter ones, wherever they are.

    "<s>a<|end|> b"    →    <s>   "a"   <|end|>   " b"      (a token with RSTRIP takes the space as well)

Source: `tokenizer_st_partition` of llama-vocab.cpp.
"""

from __future__ import annotations

from ggufkit.tokenizer.run.vocab import CONTROL, LSTRIP, RSTRIP, UNKNOWN, Vocab

__all__ = ["Specials"]

_SPACES = " \t\n\v\f\r"  # C's isspace


class Specials:
    """The special tokens of a vocabulary."""

    def __init__(self, vocab: Vocab):
        self.tokens = [(vocab.texts[i], i, vocab.attributes[i]) for i in vocab.special()]
        # Without `parse`, control tokens are mere text; user-defined ones are found all the same.
        self.plain = [t for t in self.tokens if not t[2] & (CONTROL | UNKNOWN)]

    def partition(self, text: str, parse: bool) -> list[str | int]:
        """Pieces of text, none empty, and token ids between them."""
        parts: list[str | int] = [text] if text else []
        for special, token, attributes in self.tokens if parse else self.plain:
            if special in text:
                parts = [new for part in parts for new in _split(part, special, token, attributes)]
        return parts


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
