"""Functions of single numbers and rows, and their derivatives: the same bits on every CPU.

NumPy's exp and tanh differ in the last bit from one CPU to the next; all here is made of the lanes' exponential.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from ggufkit.kernels.jit import kernel
from ggufkit.kernels.lane_math import exp as lane_exp
from ggufkit.kernels.lanes import flat, load, store

__all__ = ["ACTIVATION_GRADIENTS", "Gradients", "exp", "gelu", "sigmoid", "softmax", "tanh"]

Gradients = Callable[[np.ndarray | None, np.ndarray], tuple[np.ndarray | None, np.ndarray]]


def exp(x: np.ndarray) -> np.ndarray:
    """eˣ, between e^-87 and e^88."""
    padded = np.zeros(-(-x.size // 16) * 16, np.float32)
    padded[: x.size] = x.reshape(-1)
    _exp(padded)
    return padded[: x.size].reshape(x.shape)


@kernel
def _exp(x):
    values = flat(x)
    for i in range(0, values.shape[0], 16):
        store(values, i, lane_exp(load(values, i)))


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + exp(-x))


def tanh(x: np.ndarray) -> np.ndarray:
    return 1 - 2 / (exp(2 * x) + 1)


def softmax(x: np.ndarray) -> np.ndarray:
    """Of each row (n, k)."""
    e = exp(x - x.max(-1, keepdims=True))
    result: np.ndarray = e / e.sum(-1, keepdims=True)
    return result


# ---- Activations: the derivatives of `Ops.activate`'s result by gate and by up ------------------------------------


def _gated(value: Callable, slope: Callable) -> Gradients:
    """Of f(gate) × up, or f(up)."""

    def gradients(gate: np.ndarray | None, up: np.ndarray) -> tuple[np.ndarray | None, np.ndarray]:
        if gate is None:
            return None, slope(up)
        return slope(gate) * up, value(gate)

    return gradients


def _alone(slope: Callable) -> Gradients:
    """Of f(up), which never has a gate."""
    return lambda gate, up: (None, slope(up))


def _silu_slope(x: np.ndarray) -> np.ndarray:
    s = sigmoid(x)
    result: np.ndarray = s * (1 + x * (1 - s))
    return result


_GELU, _CUBE = np.float32(0.7978845608028654), np.float32(0.044715)


def gelu(x: np.ndarray) -> np.ndarray:
    result: np.ndarray = np.float32(0.5) * x * (1 + tanh(_GELU * (x + _CUBE * x * x * x)))
    return result


def _gelu_slope(x: np.ndarray) -> np.ndarray:
    t = tanh(_GELU * (x + _CUBE * x * x * x))
    result: np.ndarray = np.float32(0.5) * (1 + t + x * (1 - t * t) * _GELU * (1 + 3 * _CUBE * x * x))
    return result


def _erf(x: np.ndarray) -> np.ndarray:
    found = np.array([math.erf(v) for v in x.reshape(-1).tolist()], np.float32)
    return found.reshape(x.shape)


_ROOT = np.float32(math.sqrt(0.5))


def _gelu_erf(x: np.ndarray) -> np.ndarray:
    result: np.ndarray = np.float32(0.5) * x * (1 + _erf(x * _ROOT))
    return result


def _gelu_erf_slope(x: np.ndarray) -> np.ndarray:
    density = exp(np.float32(-0.5) * x * x) * np.float32(1 / math.sqrt(2 * math.pi))
    result: np.ndarray = np.float32(0.5) * (1 + _erf(x * _ROOT)) + x * density
    return result


def _relu(x: np.ndarray) -> np.ndarray:
    result: np.ndarray = np.maximum(x, 0)
    return result


def _swiglu_oai(gate: np.ndarray | None, up: np.ndarray) -> tuple[np.ndarray | None, np.ndarray]:
    """min(gate, 7) σ(1.702 gate) (clip(up, ±7) + 1)."""
    assert gate is not None
    x, u = np.minimum(gate, np.float32(7)), np.clip(up, np.float32(-7), np.float32(7))
    s = sigmoid(np.float32(1.702) * x)
    slope = s * (1 + np.float32(1.702) * x * (1 - s))
    return slope * (u + 1) * (gate <= 7), x * s * (np.abs(up) <= 7)


ACTIVATION_GRADIENTS: dict[str, Gradients] = {
    "silu": _gated(lambda x: x * sigmoid(x), _silu_slope),
    "gelu": _gated(gelu, _gelu_slope),
    "gelu_erf": _gated(_gelu_erf, _gelu_erf_slope),
    "sigmoid": _alone(lambda x: sigmoid(x) * (1 - sigmoid(x))),
    "softplus": _alone(sigmoid),
    "relu": _gated(_relu, lambda x: (x > 0).astype(np.float32)),
    "relu_squared": _gated(lambda x: _relu(x) ** 2, lambda x: 2 * _relu(x)),
    "swiglu_oai": _swiglu_oai,
}
