"""How far numbers are from what they stand for, in decibels: 20 log10 of rms over rms error.

    ggufkit formats --numbers

A mantissa of three bits gives 31.5 dB whatever the scale; INT8 depends on how far the largest number of those that
share a scale stands out. So with a scale per row, weights lose less in INT8 (10 dB) and in Q8_0 (14 dB) than in E4M3,
and with one scale for activations that have outliers INT8 loses the ordinary channels altogether.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from ggufkit.numbers.floats import decode, encode, float_by_name
from ggufkit.numbers.integers import quantize_int8

if TYPE_CHECKING:
    import numpy as np

__all__ = ["DATA", "NUMBERS", "decibels", "noise_table", "round_trip"]

_SHAPE = (512, 4096)


def decibels(x: np.ndarray, rounded: np.ndarray) -> float:
    """Signal over error; infinite without error, NaN where `rounded` is not finite."""
    import numpy as np

    error = float(np.square(np.asarray(x, np.float64) - rounded).sum())
    signal = float(np.square(x, dtype=np.float64).sum())
    if not error:
        return math.inf
    if not math.isfinite(error):
        return math.nan
    return 10 * math.log10(signal / error) if signal else -math.inf


def _scaled_float(kind: str, granularity: str) -> Callable[[np.ndarray], np.ndarray]:
    """Scaled so that the largest of those that share a scale becomes the kind's largest."""

    def rounded(x: np.ndarray) -> np.ndarray:
        import numpy as np

        if granularity == "none":
            return decode(encode(x, kind, saturate=False), kind)
        shape = {"tensor": (1, -1), "row": (len(x), -1), "block": (-1, 32)}[granularity]
        parts = x.reshape(shape)
        scale = np.abs(parts).max(1, keepdims=True) / np.float32(float_by_name(kind).largest)
        scale = np.where(scale > 0, scale, np.float32(1))
        return (decode(encode(parts / scale, kind), kind) * scale).reshape(x.shape)

    return rounded


def _int8(granularity: str) -> Callable[[np.ndarray], np.ndarray]:
    return lambda x: quantize_int8(x, granularity).decode()


def _q8_0(x: np.ndarray) -> np.ndarray:
    from ggufkit.formats import codec

    return codec.decode(codec.encode(x, "Q8_0"), "Q8_0")


# Name → rounding of a matrix (rows, cols), and bits per number with scales of 16 bits where they count.
NUMBERS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "E4M3 unscaled": _scaled_float("E4M3", "none"),
    "E4M3 per tensor": _scaled_float("E4M3", "tensor"),
    "E4M3 per row": _scaled_float("E4M3", "row"),
    "E4M3 per 32": _scaled_float("E4M3", "block"),
    "INT8 per tensor": _int8("tensor"),
    "INT8 per row": _int8("row"),
    "Q8_0": _q8_0,
    "E5M2 per row": _scaled_float("E5M2", "row"),
    "E3M4 per row": _scaled_float("E3M4", "row"),
}


def round_trip(x: np.ndarray, name: str) -> np.ndarray:
    """A matrix (rows, cols), float32, as it comes back from the numbers called `name` in `NUMBERS`."""
    return NUMBERS[name](x)


def _activations(rng: np.random.Generator) -> np.ndarray:
    """Six channels sixty times as large as the others, one token forty times."""
    import numpy as np

    x = rng.standard_normal(_SHAPE).astype(np.float32)
    x[:, rng.choice(_SHAPE[1], 6, replace=False)] *= 60
    x[rng.integers(_SHAPE[0])] *= 40
    return x


DATA: dict[str, Callable[[np.random.Generator], np.ndarray]] = {
    "Gaussian weights": lambda rng: rng.standard_normal(_SHAPE) * 0.02,
    "Laplace": lambda rng: rng.laplace(size=_SHAPE) * 0.02,
    "Student t, 4 degrees": lambda rng: rng.standard_t(4, _SHAPE) * 0.02,
    "activations, 6 channels × 60, a token × 40": _activations,
}


def noise_table(seed: int = 0) -> dict[str, dict[str, float]]:
    """Data → numbers → decibels; for the activations also of the ordinary channels and tokens alone."""
    import numpy as np

    table: dict[str, dict[str, float]] = {}
    for what, make in DATA.items():
        x = np.ascontiguousarray(make(np.random.default_rng(seed)), np.float32)
        results = {name: rounded(x) for name, rounded in NUMBERS.items()}
        table[what] = {name: decibels(x, y) for name, y in results.items()}
        if make is _activations:
            plain = np.sqrt(np.square(x).mean(0)) < 10
            usual = np.sqrt(np.square(x[:, plain]).mean(1)) < 10
            part = np.ix_(usual, plain)
            table["… of these, the ordinary ones"] = {name: decibels(x[part], y[part]) for name, y in results.items()}
    return table
