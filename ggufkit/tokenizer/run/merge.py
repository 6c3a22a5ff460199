"""Merging neighbours, the best pair first: what SentencePiece's BPE and GPT-2's have in common.

    l o w e r      ranks: (l, o) 3   (lo, w) 1   (e, r) 2
    l o w er       (e, r) is the best pair there is
    lo  w er       (l, o)
    low   er       (lo, w) exists only now

Of pairs of equal rank the leftmost merges. A rank is looked up by the two texts with `glue` between them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from heapq import heapify, heappop, heappush
from itertools import pairwise
from math import inf

__all__ = ["merge", "remembered"]

_SHORT = 40  # symbols up to which looking through all pairs beats a heap
# Words whose tokens are remembered: how many, and up to how many characters (a line of Chinese is one word).
_WORDS, _WORD = 1 << 16, 100


def remembered(encode: Callable[[str], tuple[int, ...]]) -> Callable[[str], tuple[int, ...]]:
    """A tokenizer of words that remembers the tokens of words; most texts have few different ones."""
    known = functools.lru_cache(_WORDS)(encode)
    return lambda word: known(word) if len(word) <= _WORD else encode(word)


def merge(symbols: list[str], ranks: Mapping[str, float], glue: str) -> list[str]:
    """The symbols after all merges.

    Parameters
    ----------
    symbols : the parts to start from, usually characters; the list is used up.
    ranks : of left + glue + right; the lowest merges first, pairs without a rank do not.
    """
    return _merge_short(symbols, ranks, glue) if len(symbols) <= _SHORT else _merge_long(symbols, ranks, glue)


def _merge_short(symbols: list[str], ranks: Mapping[str, float], glue: str) -> list[str]:
    """Looks through the ranks of all pairs before each merge."""
    get = ranks.get
    pairs = [get(left + glue + right, inf) for left, right in pairwise(symbols)]
    while pairs and (best := min(pairs)) < inf:
        i = pairs.index(best)
        symbols[i] += symbols[i + 1]
        del symbols[i + 1], pairs[i]
        if i > 0:
            pairs[i - 1] = get(symbols[i - 1] + glue + symbols[i], inf)
        if i < len(pairs):
            pairs[i] = get(symbols[i] + glue + symbols[i + 1], inf)
    return symbols


def _merge_long(symbols: list[str], ranks: Mapping[str, float], glue: str) -> list[str]:
    """Keeps the pairs in a heap, and the symbols in a linked list."""
    get = ranks.get
    n = len(symbols)
    before = list(range(-1, n - 1))
    after = [*range(1, n), -1]
    heap: list[tuple[float, int, int]] = []  # (rank, left symbol, length of both when the pair was seen)

    def push(left: int, right: int) -> None:
        rank = get(symbols[left] + glue + symbols[right], inf)
        if rank < inf:
            heappush(heap, (rank, left, len(symbols[left]) + len(symbols[right])))

    for i in range(n - 1):
        rank = get(symbols[i] + glue + symbols[i + 1], inf)
        if rank < inf:
            heap.append((rank, i, len(symbols[i]) + len(symbols[i + 1])))
    heapify(heap)
    while heap:
        _, left, length = heappop(heap)
        right = after[left]
        # A pair is stale when one of the two has been merged since.
        if not symbols[left] or right < 0 or len(symbols[left]) + len(symbols[right]) != length:
            continue
        symbols[left] += symbols[right]
        symbols[right] = ""
        after[left] = after[right]
        if before[left] >= 0:
            push(before[left], left)
        if after[left] >= 0:
            before[after[left]] = left
            push(left, after[left])
    return [symbol for symbol in symbols if symbol]
