"""Functions of single numbers: each gives the same bits wherever in an array it stands.

Kernels take flat C-contiguous float32 arrays.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ggufkit.kernels.jit import inlined, kernel, specialised
from ggufkit.kernels.lane_math import exp as _exp
from ggufkit.kernels.lane_math import tanh as _tanh
from ggufkit.kernels.lanes import fabs, lane, load, maximum, minimum, multiply_add, splat, store

__all__ = ["clamp", "exp", "sigmoid", "softplus", "tanh"]

ZERO, ONE, TWO = np.float32(0), np.float32(1), np.float32(2)


@inlined
def _sigmoid(x):
    return splat(ONE) / (splat(ONE) + _exp(-x))


@inlined
def _softplus(x):
    """max(x, 0) + ln(1 + e), e = e^−|x|; the logarithm is 2 artanh(e / (2 + e)), whose series ends soon at a third."""
    e = _exp(-fabs(x))
    s = e / (splat(TWO) + e)
    square = s * s
    series = splat(np.float32(1 / 15))
    series = multiply_add(series, square, splat(np.float32(1 / 13)))
    series = multiply_add(series, square, splat(np.float32(1 / 11)))
    series = multiply_add(series, square, splat(np.float32(1 / 9)))
    series = multiply_add(series, square, splat(np.float32(1 / 7)))
    series = multiply_add(series, square, splat(np.float32(1 / 5)))
    series = multiply_add(series, square, splat(np.float32(1 / 3)))
    series = multiply_add(series, square, splat(ONE))
    return maximum(x, splat(ZERO)) + splat(TWO) * s * series


apply: Any  # another one in each kernel


def _numbers(x, out):
    size = x.shape[0]
    whole = size // 16 * 16
    for i in range(0, whole, 16):
        store(out, i, apply(load(x, i)))  # noqa: F821
    for i in range(whole, size):
        out[i] = lane(apply(splat(x[i])), 0)  # noqa: F821


exp = specialised(_numbers, "exp", __file__, apply=_exp)
sigmoid = specialised(_numbers, "sigmoid", __file__, apply=_sigmoid)
softplus = specialised(_numbers, "softplus", __file__, apply=_softplus)
tanh = specialised(_numbers, "tanh", __file__, apply=_tanh)


@kernel
def clamp(x, low, high, out):
    """x kept within low … high."""
    whole = x.shape[0] // 16 * 16
    for i in range(0, whole, 16):
        store(out, i, minimum(maximum(load(x, i), splat(low)), splat(high)))
    for i in range(whole, x.shape[0]):
        out[i] = min(max(x[i], low), high)
