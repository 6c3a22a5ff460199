"""Norms and rope: each row, or head, by itself.

Arrays are C-contiguous float32.
"""

from __future__ import annotations

import numpy as np

from ggufkit.kernels.jit import kernel
from ggufkit.kernels.lanes import load, multiply_add, splat, store, swap_neighbours

__all__ = ["layer_norm", "rms_norm", "rope_neox", "rope_norm", "unit_length"]

ZERO, ONE = np.float32(0), np.float32(1)


@kernel
def rms_norm(x, weight, epsilon, out):
    """x / √(mean x² + ε) × weight; x and out (rows, size), weight (1 or heads, size) for row r in its row r % heads."""
    rows, size = x.shape
    heads = weight.shape[0]
    whole = size // 16 * 16
    flat, flat_weight, flat_out = x.reshape(-1), weight.reshape(-1), out.reshape(-1)
    for row in range(rows):
        base, weights = row * size, row % heads * size
        square = 0.0  # as in GGML: float32 squares, a float64 sum
        for i in range(size):
            square += flat[base + i] * flat[base + i]
        factor = ONE / np.sqrt(np.float32(square / size) + epsilon)
        factors = splat(factor)
        for i in range(0, whole, 16):
            store(flat_out, base + i, load(flat, base + i) * factors * load(flat_weight, weights + i))
        for i in range(whole, size):
            flat_out[base + i] = flat[base + i] * factor * flat_weight[weights + i]


@kernel
def layer_norm(x, weight, bias, epsilon, out):
    """(x − mean) / √(variance + ε) × weight + bias; shapes as in `rms_norm`, bias of one row or as weight, or none."""
    rows, size = x.shape
    heads = weight.shape[0]
    shifts = bias.shape[0]
    for row in range(rows):
        total = 0.0
        for i in range(size):
            total += x[row, i]
        mean = np.float32(total / size)
        square = 0.0
        for i in range(size):
            v = x[row, i] - mean
            out[row, i] = v
            square += v * v
        factor = ONE / np.sqrt(np.float32(square / size) + epsilon)
        for i in range(size):
            v = out[row, i] * factor * weight[row % heads, i]
            out[row, i] = v + bias[row % shifts, i] if shifts else v


@kernel
def unit_length(x, least, out):
    """x / max(√Σ x², least); x and out (rows, size)."""
    rows, size = x.shape
    for row in range(rows):
        square = 0.0  # as in GGML: float32 squares, a float64 sum
        for i in range(size):
            square += x[row, i] * x[row, i]
        factor = ONE / max(np.float32(np.sqrt(square)), least)
        for i in range(size):
            out[row, i] = x[row, i] * factor


@kernel
def rope_norm(x, heads, cos, sin):
    """Turn neighbours: x (n, heads × size) in place, cos and sin (n, pairs).

    In lanes that is x × (c₀ c₀ c₁ c₁ …) + x with neighbours exchanged × (−s₀ s₀ −s₁ s₁ …).
    """
    n, width = x.shape
    size, pairs = width // heads, cos.shape[1]
    whole = 2 * pairs // 16 * 16
    flat = x.reshape(-1)
    both, signed = np.empty(2 * pairs, np.float32), np.empty(2 * pairs, np.float32)
    for token in range(n):
        for i in range(pairs):
            both[2 * i], both[2 * i + 1] = cos[token, i], cos[token, i]
            signed[2 * i], signed[2 * i + 1] = -sin[token, i], sin[token, i]
        for head in range(heads):
            base = token * width + head * size
            for i in range(0, whole, 16):
                v = load(flat, base + i)
                store(flat, base + i, multiply_add(v, load(both, i), swap_neighbours(v) * load(signed, i)))
            for i in range(base + whole, base + 2 * pairs, 2):
                a, b, k = flat[i], flat[i + 1], i - base
                flat[i] = a * both[k] + b * signed[k]
                flat[i + 1] = b * both[k] + a * signed[k + 1]


@kernel
def rope_neox(x, heads, cos, sin):
    """Turn numbers half the turned part apart: x (n, heads × size) in place, cos and sin (n, pairs)."""
    n, width = x.shape
    size, pairs = width // heads, cos.shape[1]
    whole = pairs // 16 * 16
    flat, flat_cos, flat_sin = x.reshape(-1), cos.reshape(-1), sin.reshape(-1)
    for token in range(n):
        row = token * pairs
        for head in range(heads):
            base = token * width + head * size
            for i in range(0, whole, 16):
                a, b = load(flat, base + i), load(flat, base + pairs + i)
                c, s = load(flat_cos, row + i), load(flat_sin, row + i)
                store(flat, base + i, a * c - b * s)
                store(flat, base + pairs + i, multiply_add(a, s, b * c))
            for i in range(whole, pairs):
                a, b = flat[base + i], flat[base + pairs + i]
                flat[base + i] = a * cos[token, i] - b * sin[token, i]
                flat[base + pairs + i] = a * sin[token, i] + b * cos[token, i]
