"""The greatest numbers of each row, and of equal ones those that C++'s `std::partial_sort` would give.

Scores of an index are sums of relu: many are exactly 0, so which of equal keys are seen matters. A heap holds the
best so far, the worst of them on top; what is better than it takes its place.

Source: `__heap_select` and `__adjust_heap` of libstdc++; `ggml_compute_forward_top_k` of ggml.
"""

from __future__ import annotations

import numpy as np

from ggufkit.kernels.jit import helper, kernel

__all__ = ["best_of"]


@kernel
def best_of_rows(scores, count, heap, seen):
    """Set `seen` (n, tokens) where scores (n, tokens) float32 are among their row's `count` best.

    Parameters
    ----------
    count : less than the tokens.
    heap : room for so many int64.
    """
    for t in range(scores.shape[0]):
        row = scores[t]
        for i in range(count):
            heap[i] = i
        for top in range((count - 2) // 2, -1, -1):
            _sink(row, heap, count, top, heap[top])
        for i in range(count, scores.shape[1]):
            if row[i] > row[heap[0]]:
                _sink(row, heap, count, 0, i)
        for i in range(count):
            seen[t, heap[i]] = True


@helper
def _sink(row, heap, count, top, value):
    """Put `value` where the hole at `top` is: down to a leaf along the worse children, then up to its place."""
    hole = child = top
    while child < (count - 1) // 2:
        child = 2 * (child + 1)
        if row[heap[child]] > row[heap[child - 1]]:
            child -= 1
        heap[hole] = heap[child]
        hole = child
    if count % 2 == 0 and child == (count - 2) // 2:
        child = 2 * (child + 1)
        heap[hole] = heap[child - 1]
        hole = child - 1
    parent = (hole - 1) // 2
    while hole > top and row[heap[parent]] > row[value]:
        heap[hole] = heap[parent]
        hole, parent = parent, (parent - 1) // 2
    heap[hole] = value


def best_of(scores: np.ndarray, count: int) -> np.ndarray:
    """(n, tokens) bool: the `count` best of each row."""
    seen = np.zeros(scores.shape, np.bool_)
    best_of_rows(np.ascontiguousarray(scores, np.float32), count, np.empty(count, np.int64), seen)
    return seen
