"""What is chosen by scores: keys by an index, experts by a router.

Keys are the greatest numbers of each row, and of equal ones those that C++'s `std::partial_sort` would give. Scores of
an index are sums of relu: many are exactly 0, so which of equal keys are seen matters. A heap holds the best so far,
the worst of them on top; what is better than it takes its place.

Experts are chosen as `runtime.router` does, of equal ones the first.

Source: `__heap_select` and `__adjust_heap` of libstdc++; `ggml_compute_forward_top_k` of ggml.
"""

from __future__ import annotations

import numpy as np

from ggufkit.kernels.jit import helper, kernel
from ggufkit.runtime.router import LEAST_SUM

__all__ = ["SCORES", "add_rows", "best_of", "choose", "scale_rows"]

SCORES = ("softmax", "top", "sigmoid", "sqrt_softplus")  # of `Choice`, by the number that kernels take
_SOFTMAX, _TOP, _SIGMOID = 0, 1, 2

ZERO, ONE = np.float32(0), np.float32(1)
_LEAST = np.float32(LEAST_SUM)


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


@kernel
def choose(scores, bias, kind, normalized, scale, groups, groups_used, stands_for, room, sums, chosen, weights):
    """What `runtime.router.choose` gives.

    Parameters
    ----------
    scores : (n, experts) float32.
    bias : (experts,), or of length 0 for none.
    kind : of scores, in `SCORES`.
    room, sums : (2, experts) and (2, groups) float32 to write to.
    chosen, weights : (n, used) int64 and float32, written.
    """
    count, used = scores.shape[1], chosen.shape[1]
    weight, selection = room[0], room[1]
    for t in range(scores.shape[0]):
        for i in range(count):
            weight[i] = scores[t, i]
        if kind == _SOFTMAX:
            _softmax(weight, count)
        elif kind != _TOP:
            for i in range(count):
                x = weight[i]
                if kind == _SIGMOID:
                    weight[i] = ONE / (ONE + np.exp(-x))
                else:
                    weight[i] = np.sqrt(np.log1p(np.exp(-abs(x))) + max(x, ZERO))
        for i in range(count):
            selection[i] = weight[i] + bias[i] if bias.shape[0] else weight[i]
        if groups > 1:
            _leave_groups(selection, groups, groups_used, sums)
        for k in range(used):
            best = _first_best(selection)
            chosen[t, k] = best // stands_for
            weights[t, k] = weight[best // stands_for]
            selection[best] = np.nan  # not chosen again
        if kind == _TOP:
            _softmax(weights[t], used)
        elif normalized:
            total = ZERO
            for k in range(used):
                total += weights[t, k]
            for k in range(used):
                weights[t, k] /= max(total, _LEAST)
        for k in range(used):
            weights[t, k] *= scale


@helper
def _first_best(x):
    """The first of the greatest numbers; what is not a number only where nothing else is left."""
    best = -1
    for i in range(x.shape[0]):
        if x[i] == x[i] and (best < 0 or x[i] > x[best]):
            best = i
    return max(best, 0)


@helper
def _leave_groups(selection, groups, groups_used, sums):
    """−∞ for experts of groups that are not among those whose best two have the greatest sum."""
    size = selection.shape[0] // groups
    for g in range(groups):
        first = second = np.float32(-np.inf)
        for i in range(g * size, g * size + size):
            x = selection[i]
            if x > first:
                first, second = x, first
            elif x > second:
                second = x
        sums[0, g] = first + second if size > 1 else first
        sums[1, g] = ZERO
    for _ in range(groups_used):
        best = _first_best(sums[0])
        sums[0, best] = np.nan
        sums[1, best] = ONE
    for g in range(groups):
        if sums[1, g] == ZERO:
            for i in range(g * size, g * size + size):
                selection[i] = -np.inf


@helper
def _softmax(x, count):
    greatest = x[0]
    for i in range(1, count):
        greatest = max(greatest, x[i])
    total = ZERO
    for i in range(count):
        x[i] = np.exp(x[i] - greatest)
        total += x[i]
    for i in range(count):
        x[i] /= total


@kernel
def add_rows(x, table, chosen):
    """Row i of x (n, width) and of a table the row `chosen[i]`, added in place."""
    for row in range(x.shape[0]):
        for i in range(x.shape[1]):
            x[row, i] += table[chosen[row], i]


@kernel
def scale_rows(x, table, chosen):
    """Row i of x (n, width) times the number `chosen[i]` of a table (experts, 1), in place."""
    for row in range(x.shape[0]):
        for i in range(x.shape[1]):
            x[row, i] *= table[chosen[row], 0]
