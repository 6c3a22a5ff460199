"""Merging neighbours, the best pair first: what SentencePiece's BPE and GPT-2's have in common.

l o w e r      ranks: (l, o) 3   (lo, w) 1   (e, r) 2
l o w er       (e, r) is the best pair there is
lo  w er       (l, o)
low   er       (lo, w) exists only now
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heapify, heappop, heappush

__all__ = ["merge"]


def merge(symbols: list[str], rank: Callable[[str, str], float | None]) -> list[str]:
    """The symbols after all merges.

    Parameters
    ----------
    symbols : the parts to start from, usually characters; the list is used up.
    rank : of two neighbours; the lowest merges first, of equal ones the leftmost. None: they do not merge.
    """
    n = len(symbols)
    if n < 2:
        return symbols
    before = list(range(-1, n - 1))  # linked list: the neighbours of each symbol
    after = [*range(1, n), -1]
    heap: list[tuple[float, int, int]] = []  # (rank, left symbol, length of both when the pair was seen)
    for i in range(n - 1):
        if (r := rank(symbols[i], symbols[i + 1])) is not None:
            heap.append((r, i, len(symbols[i]) + len(symbols[i + 1])))
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
        if after[left] >= 0:
            before[after[left]] = left
            if (r := rank(symbols[left], symbols[after[left]])) is not None:
                heappush(heap, (r, left, length + len(symbols[after[left]])))
        if before[left] >= 0 and (r := rank(symbols[before[left]], symbols[left])) is not None:
            heappush(heap, (r, before[left], length + len(symbols[before[left]])))
    return [symbol for symbol in symbols if symbol]
