"""What FP8 and INT8 would do to a model: to its weights, and to what meets them when it reads a text.

Activations are measured as a server would quantize them: one static scale per matrix, found on the first half of the
text, or one per token. What the second half has beyond a static scale is clipped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np

from ggufkit.evaluate.format_error import sample
from ggufkit.evaluate.windows import Windows
from ggufkit.numbers.floats import decode, encode, float_by_name
from ggufkit.numbers.integers import quantize_int8, static_scale
from ggufkit.numbers.noise import NUMBERS
from ggufkit.runtime.model import Model
from ggufkit.runtime.observe import observed
from ggufkit.tensors.tensor import Tensor

__all__ = ["ACTIVATIONS", "Noise", "activation_noise", "weight_noise"]


@dataclass
class Noise:
    """Sums over numbers, and which tensor fares worst.

    Attributes
    ----------
    count, clipped : numbers, and those beyond a static scale.
    squares, errors : Σ x², Σ (x' − x)².
    by_name : tensor → its Σ x² and Σ (x' − x)².
    """

    count: int = 0
    clipped: int = 0
    squares: float = 0.0
    errors: float = 0.0
    by_name: dict[str, list[float]] = field(default_factory=dict)

    def add(self, name: str, x: np.ndarray, rounded: np.ndarray, clipped: int = 0) -> None:
        """Count numbers and what became of them."""
        squares = float(np.square(x, dtype=np.float64).sum())
        errors = float(np.square(rounded.astype(np.float64) - x).sum())
        self.count, self.clipped = self.count + x.size, self.clipped + clipped
        self.squares, self.errors = self.squares + squares, self.errors + errors
        mine = self.by_name.setdefault(name, [0.0, 0.0])
        mine[0], mine[1] = mine[0] + squares, mine[1] + errors

    @property
    def decibels(self) -> float:
        """Signal over error of all numbers; infinite without error, NaN where one did not stay finite."""
        return _decibels(self.squares, self.errors)

    @property
    def worst(self) -> tuple[str, float]:
        """The tensor with the fewest decibels, and these."""
        found = {name: _decibels(*sums) for name, sums in self.by_name.items() if sums[0]}
        name = min(found, key=lambda n: -math.inf if math.isnan(found[n]) else found[n], default="")
        return name, found.get(name, math.inf)


def _decibels(squares: float, errors: float) -> float:
    if not math.isfinite(errors):
        return math.nan
    if not errors:
        return math.inf
    return 10 * math.log10(squares / errors) if squares else -math.inf


def weight_noise(tensors: Iterable[Tensor], rows: int = 0) -> dict[str, Noise]:
    """Every kind of `numbers.noise.NUMBERS` → its noise over tensors; a scale of a tensor is one of the rows looked at.

    Parameters
    ----------
    rows : rows of each tensor to look at, evenly spread; 0 for all. Only rows of a multiple of 32 count.
    """
    found = {name: Noise() for name in NUMBERS}
    for tensor in tensors:
        if tensor.cols % 32:
            continue
        x = np.concatenate([part for _, part in sample(tensor, rows)])
        for name, rounded in NUMBERS.items():
            found[name].add(tensor.name, x, rounded(x))
    return found


class _Static:
    """Largest magnitude of what met each matrix during calibration."""

    def __init__(self) -> None:
        self.largest: dict[str, float] = {}

    def see(self, name: str, x: np.ndarray, experts: np.ndarray | None) -> None:
        self.largest[name] = max(self.largest.get(name, 0.0), static_scale(x) * 127)


def _int8_static(x: np.ndarray, most: float) -> tuple[np.ndarray, int]:
    found = quantize_int8(x, "tensor", scale=most / 127)
    return found.decode(), found.clipped


def _int8_token(x: np.ndarray, most: float) -> tuple[np.ndarray, int]:
    return quantize_int8(x, "token").decode(), 0


def _e4m3_static(x: np.ndarray, most: float) -> tuple[np.ndarray, int]:
    scale = np.float32(most / float_by_name("E4M3").largest) if most else np.float32(1)
    return decode(encode(x / scale, "E4M3"), "E4M3") * scale, int((np.abs(x) > most).sum())


def _e4m3_token(x: np.ndarray, most: float) -> tuple[np.ndarray, int]:
    return NUMBERS["E4M3 per row"](x), 0


def _blocks(x: np.ndarray, most: float) -> tuple[np.ndarray, int]:
    return quantize_int8(x, "block").decode() if x.shape[1] % 32 == 0 else x, 0


# Name → (rows as they come back, how many numbers were clipped), given the largest magnitude of the calibration.
ACTIVATIONS: dict[str, Callable[[np.ndarray, float], tuple[np.ndarray, int]]] = {
    "INT8 static": _int8_static,
    "INT8 per token": _int8_token,
    "INT8 per 32": _blocks,
    "E4M3 static": _e4m3_static,
    "E4M3 per token": _e4m3_token,
}


def activation_noise(
    model: Model, windows: Windows, report: Callable[[int], None] = lambda tokens: None
) -> dict[str, Noise]:
    """Every kind of `ACTIVATIONS` → its noise over what meets the matrices.

    The first half of the windows, at least one, finds the static scales; the others are measured.
    """
    static, found = _Static(), {name: Noise() for name in ACTIVATIONS}

    def see(name: str, x: np.ndarray, experts: np.ndarray | None) -> None:
        rows = np.ascontiguousarray(x, np.float32)
        for kind, rounded in ACTIVATIONS.items():
            y, clipped = rounded(rows, static.largest.get(name, 0.0))
            found[kind].add(name, rows, y, clipped)

    cache = model.new_cache(windows.length)
    calibrating = max(1, len(windows) // 2)
    for number, (seen, _) in enumerate(windows):
        cache.truncate(0)
        with observed(model, static.see if number < calibrating else see):
            model.forward(seen, cache, None)
        report(windows.length)
    return found
