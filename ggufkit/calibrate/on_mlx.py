"""Calibration's matrix products on MLX: nearly all of its work, where there is a GPU.

Their sums are in MLX's order, so that statistics differ in their last bits from those of `products`.
"""

from __future__ import annotations

import numpy as np

from ggufkit.calibrate.products import Multiply
from ggufkit.runtime.backend import backend_named

__all__ = ["multiply_on"]


def multiply_on(backend: str) -> Multiply | None:
    """What makes x wᵀ on a backend; None for the products of the CPU.

    Raises
    ------
    UsageError : there is no such backend.
    MissingDependency : MLX is not installed.
    """
    return _multiply if backend_named(backend) == "mlx" else None


def _multiply(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    import mlx.core as mx

    if not (len(x) and len(w) and x.shape[1]):
        return np.zeros((len(x), len(w)), np.float32)
    return np.array(mx.matmul(mx.array(x), mx.array(w).T))
