"""The exact GELU and the table of its quick form, for encoders; see `activations`."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from ggufkit.kernels.jit import kernel

__all__ = ["gelu_erf", "gelu_quick_table"]

_HALF, _ROOT = 0.5, math.sqrt(0.5)


@lru_cache(maxsize=1)
def gelu_quick_table() -> np.ndarray:
    """x · sigmoid(1.702 x) of every float16, itself rounded to float16 as in GGML: (65536,), float32, by bits."""
    x = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)
    with np.errstate(all="ignore"):
        table = (x * (1 / (1 + np.exp(np.float32(-1.702) * x)))).astype(np.float16).astype(np.float32)
    table.flags.writeable = False
    return table


@kernel
def gelu_erf(gate, up, out):
    """x (1 + erf(x / √2)) / 2 of the gate × up, or of up."""
    gated = gate.shape[0] > 0
    for i in range(up.shape[0]):
        x = gate[i] if gated else up[i]
        y = np.float32(_HALF * x * (1 + math.erf(x * _ROOT)))
        out[i] = y * up[i] if gated else y
