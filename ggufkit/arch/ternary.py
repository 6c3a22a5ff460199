"""Weights of models that were trained to run with -1, 0 and 1 and one scale per matrix: BitNet b1.58."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from ggufkit.arch.spec import Transform
from ggufkit.arch.transforms import map_each
from ggufkit.checkpoint.config import Config
from ggufkit.tensors.tensor import Tensor
from ggufkit.tensors.views import computed

if TYPE_CHECKING:
    import numpy as np

__all__ = ["round_to_ternary"]

# Weights read at a time for the mean.
_STEP = 1 << 20


def round_to_ternary(pattern: str) -> Transform:
    """Round each matrix to -1, 0 and 1 times the mean of its absolute weights, as the model does when it runs.

    Notes
    -----
    The mean is summed in float64. The reference sums in float32, in an order that depends on PyTorch's threads and
    vector width; where the sum is exact in both the bytes are the same, else the scale may differ in its last bit.
    Source: `weight_quant` of llama.cpp's conversion/bitnet.py.
    """
    return map_each(pattern, _rounded)


def _rounded(tensor: Tensor, config: Config) -> Tensor:
    lock = threading.Lock()
    found: list[np.float32] = []

    def scale() -> np.float32:
        with lock:
            if not found:
                found.append(_mean_magnitude(tensor))
            return found[0]

    def rounded(weights: np.ndarray) -> np.ndarray:
        import numpy as np

        inverse = np.float32(1) / scale()
        return np.clip(np.rint(weights * inverse), np.float32(-1), np.float32(1)) / inverse

    return computed(tensor, rounded)


def _mean_magnitude(tensor: Tensor) -> np.float32:
    import numpy as np

    step = max(1, _STEP // max(tensor.cols, 1))
    total = sum(
        float(np.abs(tensor.floats(lo, min(lo + step, tensor.rows))).sum(dtype=np.float64))
        for lo in range(0, tensor.rows, step)
    )
    return np.maximum(np.float32(total / max(tensor.size, 1)), np.float32(1e-5))
