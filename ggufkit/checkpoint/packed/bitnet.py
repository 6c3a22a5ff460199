"""BitNet: weights of -1, 0 and 1 with one scale for a matrix.

    …q_proj.weight         (rows / 4, cols) U8     ddccbbaa    bits 2k of row r: code of row k · rows / 4 + r, level + 1
    …q_proj.weight_scale   (1,)

    linear_class            w                     a bias
    absent or bitlinear     level / scale         as it is
    autobitlinear           level · scale         times scale, too: y = (x W + b) · scale

With `quantization_mode: online` the checkpoint has weights of 16 bits, which the model rounds while it is loaded:
to -1, 0 and 1 times the mean of their magnitudes. Models that were published so before there was this setting are a
matter of their architecture, which calls `rounded_to_ternary`.

Source: transformers/integrations/bitnet.py; `weight_quant` of llama.cpp's conversion/bitnet.py.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ggufkit.checkpoint.packed.integers import Integers
from ggufkit.checkpoint.packed.matrix import Groups, exactly
from ggufkit.checkpoint.packed.stored import Matrix, Reading, Source, require
from ggufkit.errors import CheckpointError, printable
from ggufkit.tensors.tensor import Tensor
from ggufkit.tensors.views import computed

if TYPE_CHECKING:
    import numpy as np

__all__ = ["read", "rounded_to_ternary"]

# Weights read at a time for the mean.
_STEP = 1 << 20


def read(source: Source) -> Reading | None:
    """Modules with bytes of four codes and a `weight_scale`; or, online, all linear ones that are not excluded."""
    if source.method != "bitnet":
        return None
    tensors, settings = source.tensors, source.settings
    multiplies = settings.get("linear_class") == "autobitlinear"
    reading = Reading("BitNet")
    for name in [n for n, t in tensors.items() if t.format.name == "U8" and n.endswith(".weight")]:
        scale = f"{name}_scale"
        reading.add(
            name, _packed(tensors[name], require(tensors, scale, ("BF16", "F16", "F32"), (1,)), multiplies), [scale]
        )
        bias = f"{name.removesuffix('weight')}bias"
        if multiplies and bias in tensors:
            reading.other[bias] = _times(tensors[bias], tensors[scale])
    if settings.get("quantization_mode") == "online" and multiplies:
        for name, tensor in tensors.items():
            if _is_linear(name, tensor, settings) and name not in reading.matrices:
                reading.add(name, _online(tensor), [])
    return reading if reading.matrices else None


def _is_linear(name: str, tensor: Tensor, settings: Mapping[str, Any]) -> bool:
    excluded = settings.get("modules_to_not_convert")
    skipped = excluded if isinstance(excluded, list) else ["lm_head"]
    return (
        len(tensor.shape) == 2
        and name.endswith(".weight")
        and re.search(r"\.(layers|h|blocks)\.\d+\.", name) is not None
        and tensor.format.name in ("F32", "F16", "BF16")
        and not any(isinstance(part, str) and part in name for part in skipped)
    )


def _packed(weight: Tensor, scale: Tensor, multiplies: bool) -> Matrix:
    import numpy as np

    if len(weight.shape) != 2:
        raise CheckpointError(f"{printable(weight.name)} of shape {list(weight.shape)} is no matrix of packed codes")
    (value,) = scale.floats().reshape(-1)
    if not (np.isfinite(value) and value > 0):
        raise CheckpointError(f"{printable(scale.name)} is {value}, and must be a positive number")
    value = value if multiplies else np.float32(1) / value
    quarter, cols = weight.shape
    rows = 4 * quarter

    def codes(lo: int, hi: int) -> np.ndarray:
        found = np.empty((hi - lo, cols), np.uint8)
        for k in range(4):
            begin, end = max(lo, k * quarter), min(hi, (k + 1) * quarter)
            if begin < end:
                found[begin - lo : end - lo] = weight.read(begin - k * quarter, end - k * quarter) >> 2 * k & 3
        if (found == 3).any():
            raise CheckpointError(f"{printable(weight.name)}: the code 3 is none of the levels -1, 0 and 1")
        return found

    def bits(lo: int, hi: int) -> np.ndarray:
        return codes(lo, hi)

    return Matrix(weight.name, "BitNet, ternary", _ternary((rows, cols), bits, value))


def _ternary(shape: tuple[int, ...], codes: Any, value: np.float32) -> Integers:
    """The scale goes into the blocks where float16 holds it, else into a tensor of its own."""
    import numpy as np

    inside = exactly(np.array([value], np.float32), "F16")
    scale = np.array([[value if inside else 1]], np.float32)
    return Integers(
        shape,
        codes,
        2,
        lambda lo, hi: np.broadcast_to(scale, (hi - lo, 1)),
        1,
        Groups.even(shape[-1], shape[-1]),
        ternary=True,
        times=1.0 if inside else float(value),
    )


def _times(bias: Tensor, scale: Tensor) -> Tensor:
    return computed(bias, lambda values: values * scale.floats().reshape(-1)[0])


def _online(tensor: Tensor) -> Matrix:
    import numpy as np

    mean = mean_magnitude(tensor)
    inverse = np.float32(1) / mean

    def codes(lo: int, hi: int) -> np.ndarray:
        levels = np.clip(np.rint(tensor.floats(lo, hi) * inverse), np.float32(-1), np.float32(1))
        result: np.ndarray = (levels + 1).astype(np.uint8)
        return result

    return Matrix(
        tensor.name,
        "BitNet, rounded to ternary as when it is loaded",
        _ternary(tensor.shape, codes, np.float32(1) / inverse),
    )


def rounded_to_ternary(tensor: Tensor) -> Tensor:
    """Each weight as -1, 0 or 1 times the mean of the magnitudes; a tensor that was packed so is that already.

    Notes
    -----
    The mean is summed in float64. The reference sums in float32, in an order that depends on PyTorch's threads and
    vector width; where the sum is exact in both the bytes are the same, else the scale may differ in its last bit.
    """
    if tensor.origin is not None:
        return tensor
    lock = threading.Lock()
    found: list[np.float32] = []

    def scale() -> np.float32:
        with lock:
            if not found:
                found.append(mean_magnitude(tensor))
            return found[0]

    def rounded(weights: np.ndarray) -> np.ndarray:
        import numpy as np

        inverse = np.float32(1) / scale()
        return np.clip(np.rint(weights * inverse), np.float32(-1), np.float32(1)) / inverse

    return computed(tensor, rounded)


def mean_magnitude(tensor: Tensor) -> np.float32:
    """The mean of |w|, at least 1e-5."""
    import numpy as np

    step = max(1, _STEP // max(tensor.cols, 1))
    total = sum(
        float(np.abs(tensor.floats(lo, min(lo + step, tensor.rows))).sum(dtype=np.float64))
        for lo in range(0, tensor.rows, step)
    )
    result: np.float32 = np.maximum(np.float32(total / max(tensor.size, 1)), np.float32(1e-5))
    return result
