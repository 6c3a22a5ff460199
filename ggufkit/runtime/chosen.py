"""Attention to chosen keys: an index scores them, the best are seen; once for all backends.

Source: src/models/deepseek32.cpp of llama.cpp; DeepSeek-AI, "DeepSeek-V3.2", 2025.
"""

from __future__ import annotations

import math
from typing import Any

from ggufkit.runtime.ops import Array

__all__ = ["attend", "scores"]


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


def attend(xp: Any, q: Array, keys: Array, values: Array, seen: Array | None, start: int, scale: float) -> Array:
    """(n, heads, width) of values that queries (n, heads, size) find at their keys and before, where they are seen.

    Parameters
    ----------
    keys, values : (tokens, size), (tokens, width), the same for all heads.
    seen : (n, tokens) bool, or None for all.
    """
    n, heads, size = q.shape
    tokens = len(keys)
    allowed = _before(xp, start, n, tokens)
    if seen is not None:
        allowed = xp.logical_and(allowed, seen)
    each = xp.matmul(q.reshape(n * heads, size), keys.T).reshape(n, heads, tokens) * scale
    each = xp.where(allowed[:, None], each, -math.inf)
    e = xp.exp(each - xp.max(each, axis=-1, keepdims=True))
    e = e / xp.sum(e, axis=-1, keepdims=True)
    return xp.matmul(e.reshape(n * heads, tokens), values).reshape(n, heads, -1)


def _before(xp: Any, start: int, n: int, tokens: int) -> Array:
    """Which tokens are not behind the one at each position."""
    return xp.arange(tokens)[None] <= xp.arange(start, start + n)[:, None]
