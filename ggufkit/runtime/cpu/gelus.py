"""The exact GELU and its quick form, of encoders: one number in, one out; see `activations`."""

from __future__ import annotations

import math

import numpy as np

from ggufkit.kernels.jit import kernel
from ggufkit.kernels.lane_math import exp
from ggufkit.kernels.lanes import load, splat, store

__all__ = ["gelu_erf", "gelu_quick"]

ONE = np.float32(1)
_QUICK = np.float32(1.702)
_HALF, _ROOT = 0.5, math.sqrt(0.5)


@kernel
def gelu_quick(gate, up, out):
    """gate × sigmoid(1.702 gate) × up, or up × sigmoid(1.702 up)."""
    size, gated = up.shape[0], gate.shape[0] > 0
    whole = size // 16 * 16
    for i in range(0, whole, 16):
        u = load(up, i)
        x = load(gate, i) if gated else u
        y = x / (splat(ONE) + exp(-(x * splat(_QUICK))))
        store(out, i, y * u if gated else y)
    for i in range(whole, size):
        x = gate[i] if gated else up[i]
        y = x / (ONE + np.exp(-x * _QUICK))
        out[i] = y * up[i] if gated else y


@kernel
def gelu_erf(gate, up, out):
    """x (1 + erf(x / √2)) / 2 of the gate × up, or of up."""
    gated = gate.shape[0] > 0
    for i in range(up.shape[0]):
        x = gate[i] if gated else up[i]
        y = np.float32(_HALF * x * (1 + math.erf(x * _ROOT)))
        out[i] = y * up[i] if gated else y
