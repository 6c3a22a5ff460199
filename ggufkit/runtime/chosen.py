"""Attention to chosen keys: an index scores them, the best are seen; once for all backends.

Source: src/models/deepseek32.cpp of llama.cpp; DeepSeek-AI, "DeepSeek-V3.2", 2025.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ggufkit.runtime.ops import Array

__all__ = ["attend", "blocks", "pool_scores", "scores", "seen_of_pools"]


def scores(xp: Any, q: Array, keys: Array, weights: Array, start: int) -> Array:
    """What an index thinks of each key, (n, tokens): Σ weight · relu(q · key) over its heads; −∞ for later ones.

    Parameters
    ----------
    xp : NumPy, or a module with its functions.
    q : (n, heads, size), at positions `start …`.
    keys : (tokens, size).
    weights : (n, heads).
    """
    n, heads, size = q.shape
    tokens = len(keys)
    each = xp.maximum(xp.matmul(q.reshape(n * heads, size), keys.T), 0).reshape(n, heads, tokens)
    total = xp.sum(each * weights[..., None], axis=1)
    return xp.where(_before(xp, start, n, tokens), total, -math.inf)


def blocks(q: np.ndarray, keys: np.ndarray, start: int, block: int, count: int, near: int) -> np.ndarray | None:
    """Which keys each query sees, (heads, n, tokens) bool; None for all before it.

    A block's score is that of its best key. Seen are the `count` best blocks: first the `near` last ones, then others;
    of equal ones the earliest.

    Parameters
    ----------
    q : (n, heads, size), at positions `start …`.
    keys : (tokens, size).
    block : tokens of a block.
    """
    n, heads, _ = q.shape
    tokens = len(keys)
    total = -(-tokens // block)
    if total <= count:
        return None
    each = np.full((heads, n, total * block), -np.inf, np.float32)
    scores = np.matmul(q.transpose(1, 0, 2), keys.T)  # (heads, n, tokens)
    each[..., :tokens] = np.where(_before(np, start, n, tokens), scores, -np.inf)
    best = each.reshape(heads, n, total, block).max(-1)
    last = (np.arange(start, start + n) // block)[:, None]  # the block of each query
    number = np.arange(total)
    best = np.where((number <= last) & (number > last - near), np.inf, best)
    order = np.argsort(-best, axis=-1, kind="stable")[..., :count]
    seen = np.zeros((heads, n, total), bool)
    np.put_along_axis(seen, order, True, axis=-1)
    result: np.ndarray = seen.repeat(block, axis=-1)[..., :tokens]
    return result


def pool_scores(xp: Any, q: Array, keys: Array, start: int, size: int) -> Array:
    """What an index thinks of pools of `size` tokens each, (n, pools): Σ relu(q · key); −∞ where one is not complete.

    Parameters
    ----------
    q : (n, heads, width), at positions `start …`.
    keys : (pools, width).
    """
    n, heads, width = q.shape
    pools = len(keys)
    each = xp.maximum(xp.matmul(q.reshape(n * heads, width), keys.T), 0).reshape(n, heads, pools)
    complete = (xp.arange(start, start + n)[:, None] + 1) // size  # pools of each query
    return xp.where(xp.arange(pools)[None] < complete, xp.sum(each, axis=1), -math.inf)


def seen_of_pools(chosen: np.ndarray, start: int, size: int, tokens: int) -> np.ndarray:
    """Which tokens queries see, (n, tokens): those of pools `chosen` (n, pools), and those that make no whole pool."""
    n, pools = chosen.shape
    seen = np.zeros((n, tokens), bool)
    seen[:, : pools * size] = chosen.repeat(size, axis=1)
    complete = (np.arange(start, start + n)[:, None] + 1) // size * size
    result: np.ndarray = seen | (np.arange(tokens) >= complete)
    return result


def attend(
    xp: Any,
    q: Array,
    keys: Array,
    values: Array,
    seen: Array | None,
    start: int,
    scale: float,
    sinks: Array | None = None,
) -> Array:
    """(n, heads, width) of values that queries (n, heads, size) find at their keys and before, where they are seen.

    Parameters
    ----------
    keys, values : (tokens, size), (tokens, width), the same for all heads.
    seen : (n, tokens) bool, or None for all.
    sinks : (heads,), a score that takes part in the softmax and gives nothing; or None.
    """
    n, heads, size = q.shape
    tokens = len(keys)
    allowed = _before(xp, start, n, tokens)
    if seen is not None:
        allowed = xp.logical_and(allowed, seen)
    each = xp.matmul(q.reshape(n * heads, size), keys.T).reshape(n, heads, tokens) * scale
    each = xp.where(allowed[:, None], each, -math.inf)
    most = xp.max(each, axis=-1, keepdims=True)
    if sinks is not None:
        most = xp.maximum(most, sinks[:, None])
    e = xp.exp(each - most)
    total = xp.sum(e, axis=-1, keepdims=True)
    e = e / (total if sinks is None else total + xp.exp(sinks[:, None] - most))
    return xp.matmul(e.reshape(n * heads, tokens), values).reshape(n, heads, -1)


def _before(xp: Any, start: int, n: int, tokens: int) -> Array:
    """Which tokens are not behind the one at each position."""
    return xp.arange(tokens)[None] <= xp.arange(start, start + n)[:, None]
