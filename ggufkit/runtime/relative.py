"""Attention with a bias for how far a key is from its query (T5), by heads and buckets of distances; for all backends.

Near keys have a bucket each, further ones share them, in steps that grow by factors.

Source: `llama_relative_position_bucket` in src/llama-graph.cpp of llama.cpp; Raffel et al., "Exploring the Limits of
Transfer Learning with a Unified Text-to-Text Transformer", 2019.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ggufkit.runtime.ops import Array

__all__ = ["attend", "buckets"]

_FURTHEST = 128  # from here on all have the last bucket


def buckets(queries: np.ndarray, keys: np.ndarray, count: int, two_sided: bool) -> np.ndarray:
    """The bucket of each query and key, from their positions: (n,), (t,) → (n, t)."""
    away = keys[None].astype(np.int64) - queries[:, None]
    first: Any = 0
    if two_sided:
        count //= 2
        first = (away > 0) * count
        away = np.abs(away)
    else:
        away = -np.minimum(away, 0)
    exact = count // 2
    ratio = np.log(np.maximum(away, 1).astype(np.float32) / np.float32(exact)).astype(np.float64)
    far = np.floor((exact + ratio * (count - exact) / math.log(_FURTHEST / exact)).astype(np.float32)).astype(np.int64)
    result: np.ndarray = first + np.where(away < exact, away, np.minimum(far, count - 1))
    return result


def attend(xp: Any, q: Array, keys: Array, values: Array, bias: Array | None) -> Array:
    """softmax(q · keys + bias) values, (n, heads × size): q (n, heads, size), keys and values (t, heads, size).

    Parameters
    ----------
    bias : (heads, n, t), or None.
    """
    scores = xp.matmul(q.swapaxes(0, 1), keys.swapaxes(0, 1).swapaxes(1, 2))  # (heads, n, t)
    if bias is not None:
        scores = scores + bias
    e = xp.exp(scores - xp.max(scores, axis=-1, keepdims=True))
    e = e / xp.sum(e, axis=-1, keepdims=True)
    return xp.matmul(e, values.swapaxes(0, 1)).swapaxes(0, 1).reshape(len(q), -1)
