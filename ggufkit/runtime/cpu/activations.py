"""Activations of the FFN, soft caps, sums: one number in, one out.

Kernels take flat C-contiguous float32 arrays; a `gate` of length 0 stands for none.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from ggufkit.kernels.jit import inlined, kernel
from ggufkit.kernels.lane_math import exp, tanh
from ggufkit.kernels.lanes import float_to_half, lane, load, maximum, minimum, splat, store

__all__ = ["add", "gelu", "gelu_table", "relu", "scale", "silu", "soft_cap", "swiglu_oai", "weighted_sum"]

ZERO, ONE = np.float32(0), np.float32(1)
_ALPHA, _LIMIT = np.float32(1.702), np.float32(7)


@inlined
def _silu(x):
    return x / (splat(ONE) + exp(-x))


@inlined
def _swiglu_oai(gate, up):
    x = minimum(gate, splat(_LIMIT))
    u = minimum(maximum(up, splat(-_LIMIT)), splat(_LIMIT))
    return x / (splat(ONE) + exp(-(x * splat(_ALPHA)))) * (u + splat(ONE))


# What is left of an array is computed in lanes, too, so that a number's bits do not depend on where it stands.


@kernel
def silu(gate, up, out):
    """gate × sigmoid(gate) × up, or up × sigmoid(up)."""
    size, gated = up.shape[0], gate.shape[0] > 0
    whole = size // 16 * 16
    for i in range(0, whole, 16):
        u = load(up, i)
        y = _silu(load(gate, i) if gated else u)
        store(out, i, y * u if gated else y)
    for i in range(whole, size):
        y = lane(_silu(splat(gate[i] if gated else up[i])), 0)
        out[i] = y * up[i] if gated else y


@kernel
def swiglu_oai(gate, up, out):
    """min(gate, 7) × sigmoid(1.702 gate) × (clip(up, ±7) + 1)."""
    size = up.shape[0]
    whole = size // 16 * 16
    for i in range(0, whole, 16):
        store(out, i, _swiglu_oai(load(gate, i), load(up, i)))
    for i in range(whole, size):
        out[i] = lane(_swiglu_oai(splat(gate[i]), splat(up[i])), 0)


@lru_cache(maxsize=1)
def gelu_table() -> np.ndarray:
    """GELU of every float16, itself rounded to float16 as in GGML: array of shape (65536,), float32, by bits."""
    x = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)
    with np.errstate(all="ignore"):
        inner = np.float32(0.79788456080286535587989211986876) * x * (1 + np.float32(0.044715) * x * x)
        table = (np.float32(0.5) * x * (1 + np.tanh(inner))).astype(np.float16).astype(np.float32)
    table.flags.writeable = False
    return table


@kernel
def gelu(gate, up, table, out):
    """GELU(gate) × up, or GELU(up), by table; beyond ±10 it is x or 0.

    Source: `ggml_vec_gelu_f32` and `ggml_vec_geglu_f32` in ggml/src/ggml-cpu/vec.h.
    """
    gated = gate.shape[0] > 0
    for i in range(up.shape[0]):
        x = gate[i] if gated else up[i]
        if x <= np.float32(-10):
            y = ZERO
        elif x >= np.float32(10):
            y = x
        else:
            y = table[float_to_half(x)]
        out[i] = y * up[i] if gated else y


@kernel
def relu(gate, up, squared, out):
    """max(gate, 0) × up, or max(up, 0); `squared` squares it first."""
    gated = gate.shape[0] > 0
    for i in range(up.shape[0]):
        y = max(gate[i] if gated else up[i], ZERO)
        if squared:
            y = y * y
        out[i] = y * up[i] if gated else y


@kernel
def soft_cap(x, cap):
    """cap × tanh(x / cap), in place."""
    size = x.shape[0]
    whole = size // 16 * 16
    for i in range(0, whole, 16):
        store(x, i, tanh(load(x, i) / splat(cap)) * splat(cap))
    for i in range(whole, size):
        x[i] = lane(tanh(splat(x[i] / cap)), 0) * cap


@kernel
def add(x, y, out):
    """x + y, where `y` may be shorter and repeats."""
    size, period = x.shape[0], y.shape[0]
    if period == size:
        for i in range(size):
            out[i] = x[i] + y[i]
    else:
        for lo in range(0, size, period):
            for i in range(period):
                out[lo + i] = x[lo + i] + y[i]


@kernel
def scale(x, factor):
    """x × factor, in place."""
    for i in range(x.shape[0]):
        x[i] *= factor


@kernel
def weighted_sum(x, weights, out):
    """Σ x × weights over the second dimension: x (n, used, width), weights (n, used), out (n, width)."""
    for row in range(x.shape[0]):
        for i in range(x.shape[2]):
            out[row, i] = x[row, 0, i] * weights[row, 0]
        for k in range(1, x.shape[1]):
            for i in range(x.shape[2]):
                out[row, i] += x[row, k, i] * weights[row, k]
