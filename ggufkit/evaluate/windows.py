"""A long text cut into windows of equal length, as llama-perplexity and llama-imatrix cut it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from ggufkit.errors import Hint, UsageError

if TYPE_CHECKING:
    from ggufkit.tokenizer.run.tokenizer import Tokenizer

__all__ = ["Windows", "bos_of", "text_windows"]


class Windows:
    """Consecutive windows of a text's tokens; the model sees each by itself.

    Parameters
    ----------
    tokens : (n,) of the whole text.
    length : tokens per window.
    count : at most so many; None for all that are full.
    bos : takes the place of each window's first token; None to leave it.

    Raises
    ------
    UsageError : the text fills no two windows, or the numbers are out of range.
    """

    def __init__(self, tokens: np.ndarray, length: int, count: int | None = None, bos: int | None = None):
        if length < 2:
            raise UsageError(f"windows must have at least 2 tokens, not {length}")
        if count is not None and count < 1:
            raise UsageError(f"at least 1 window must be looked at, not {count}")
        if len(tokens) < 2 * length:
            raise UsageError(
                f"the text has {len(tokens)} tokens; windows of {length} need at least {2 * length}",
                Hint("give a longer text", "shorter windows with {context}"),
            )
        full = len(tokens) // length
        self.length = length
        self.count = full if count is None else min(count, full)
        self.bos = bos
        self.tokens = np.asarray(tokens[: self.count * length], np.int32).reshape(self.count, length)

    def part(self, lo: int, hi: int) -> Windows:
        """Some of the windows."""
        found = copy.copy(self)
        found.tokens = self.tokens[lo:hi]
        found.count = len(found.tokens)
        return found

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(what the model sees, the text's own tokens) of each window: (length,) int32 each."""
        for window in self.tokens:
            seen = window.copy()
            if self.bos is not None:
                seen[0] = self.bos
            yield seen, window


def bos_of(tokenizer: Tokenizer) -> int | None:
    """The token that begins every window, or None for vocabularies that add none."""
    return tokenizer.vocab.bos if tokenizer.vocab.add_bos else None


def text_windows(
    tokenizer: Tokenizer, text: str, length: int, count: int | None = None, *, parse_special: bool = False
) -> Windows:
    """Windows of a text; see `Windows`.

    Parameters
    ----------
    parse_special : read control tokens in the text as what they are.
    """
    tokens = np.array(tokenizer.encode(text, parse_special=parse_special), np.int32)
    return Windows(tokens, length, count, bos_of(tokenizer))
