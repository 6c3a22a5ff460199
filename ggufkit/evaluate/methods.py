"""What methods of quantization do to one block of 32 weights: `ggufkit simulate` in Python, with the same digits.

    from ggufkit.evaluate.methods import Situation, measure

    measure("NF4", Situation(weights)).rms          # weights: (256,) float32, of which the first 32 are the block

Formats of GGUF, FP8 and TurboQuant are those of `formats`, `numbers` and `turboquant`; the others (uniform steps, NF4,
AWQ, GPTQ, a rotation before uniform steps) are written out here as plainly as they can be. Sums go through the weights
in their order, so that a page in JavaScript gets the same bits. A situation may be many blocks at a time.

Source: Dettmers et al., QLoRA, arXiv:2305.14314 (NF4); Lin et al., AWQ, arXiv:2306.00978; Frantar et al., GPTQ,
arXiv:2210.17323; Ashkboos et al., QuaRot, arXiv:2404.00456.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from ggufkit.errors import UsageError

if TYPE_CHECKING:
    from ggufkit.arrays import FloatArray

__all__ = ["BLOCK", "METHODS", "Measured", "Situation", "measure"]

BLOCK = 32

NF4 = np.array(
    [
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
        -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
        0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ],
    np.float32,
)  # fmt: skip


def _ones() -> np.ndarray:
    return np.ones(BLOCK)


@dataclass(frozen=True)
class Situation:
    """A block, and what meets it.

    Attributes
    ----------
    weights : array of shape (256,) or (blocks, 256), float32: the block's 32 weights, then those that share a
        super-block with it.
    activations : array of shape (32,): magnitudes of the activations that meet the block.
    rho : how much of a neighbour's activation one has in common, 0 … 1.
    alpha : AWQ's exponent in sixteenths, 0 … 16.
    scale : TurboQuant's scale, ``"matched"`` or ``"norm"``.
    """

    weights: FloatArray
    activations: np.ndarray = field(default_factory=_ones)
    rho: float = 0.0
    alpha: int = 8
    scale: str = "matched"

    @property
    def rows(self) -> FloatArray:
        """(blocks, 256) float32"""
        return np.ascontiguousarray(self.weights, np.float32).reshape(-1, 256)

    @property
    def importance(self) -> FloatArray:
        """(256,) float32: squares of the activations; the neighbours' are 1."""
        squares: FloatArray = np.ones(256, np.float32)
        squares[:BLOCK] = np.asarray(self.activations, np.float64) ** 2
        return squares

    @property
    def block(self) -> FloatArray:
        """(blocks, 32) float32"""
        return np.ascontiguousarray(self.rows[:, :BLOCK])


@dataclass(frozen=True)
class Measured:
    """What became of the blocks, and how far it is from what they were.

    Attributes
    ----------
    values : array of shape (blocks, 32), float32.
    rms, weighted, largest : arrays of shape (blocks,): root mean square error of the weights, the same with errors
        weighing the squares of the activations, and the largest error.
    output, relative : root mean square error of the output, and that over the output's.
    """

    values: FloatArray
    rms: np.ndarray
    weighted: np.ndarray
    largest: np.ndarray
    output: np.ndarray
    relative: np.ndarray


def measure(name: str, situation: Situation) -> Measured:
    """What the method called `name` in `METHODS` does.

    Raises
    ------
    UsageError : there is no such method.
    """
    if name not in METHODS:
        raise UsageError(f"there is no method {name!r}; there are {', '.join(METHODS)}")
    values = METHODS[name](situation)
    x = situation.block.astype(np.float64)
    errors = values.astype(np.float64) - x
    a2 = situation.activations * situation.activations
    H = hessian(situation)
    output, whole = np.sqrt(np.maximum(_energy(errors, H), 0)), np.sqrt(np.maximum(_energy(x, H), 0))
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = np.where(whole > 0, output / whole, 0.0)
    return Measured(
        values,
        np.sqrt(_in_order(errors * errors) / BLOCK),
        np.sqrt(_in_order(a2 * (errors * errors)) / _in_order(a2)),
        np.abs(errors).max(-1),
        output,
        relative,
    )


def _in_order(x: np.ndarray) -> np.ndarray:
    """Sums of the last axis, one after the other."""
    result: np.ndarray = np.cumsum(x, -1)[..., -1]
    return result


def hessian(situation: Situation) -> np.ndarray:
    """How the activations of two places go together: H[i, j] = a_i a_j ρ^|i − j|, (32, 32)."""
    powers = np.cumprod(np.concatenate([[1.0], np.full(BLOCK - 1, situation.rho)]))
    i = np.arange(BLOCK)
    a = np.asarray(situation.activations, np.float64)
    result: np.ndarray = a[:, None] * a * powers[abs(i[:, None] - i)]
    return result


def _energy(e: np.ndarray, H: np.ndarray) -> np.ndarray:
    """Σ Σ e_i H_ij e_j, rows first. e: (blocks, 32)."""
    total = np.zeros(len(e))
    for i in range(BLOCK):
        total += e[:, i] * _in_order(H[i] * e)
    return total


# ---- Uniform steps ------------------------------------------------------------------------------------------------


def _step(top: np.ndarray) -> np.ndarray:
    """The step of levels −7 … 7, a float16, as float32. top: (blocks,) float32."""
    with np.errstate(over="ignore"):
        return (top / np.float32(7)).astype(np.float16).astype(np.float32)


def _uniform(x: np.ndarray, top: np.ndarray) -> np.ndarray:
    """(blocks, 32) float32, rounded to levels −7 … 7."""
    d = _step(top)[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        levels = np.where(d == 0, np.float32(0), np.clip(np.rint(x / d), -7, 7))
    result: np.ndarray = levels.astype(np.float32) * d
    return result


def _absmax(x: np.ndarray) -> np.ndarray:
    result: np.ndarray = _uniform(x, np.abs(x).max(1))
    return result


def _clipped(s: Situation) -> np.ndarray:
    """Of 25 places to clip at, quarters of the largest magnitude and up, the one of least squared error."""
    x = s.block
    largest = np.abs(x).max(1)
    best = _absmax(x)
    least = _in_order((best.astype(np.float64) - x) ** 2)
    for i in range(31, 7, -1):
        values = _uniform(x, largest * np.float32(i / 32))
        error = _in_order((values.astype(np.float64) - x) ** 2)
        best[error < least] = values[error < least]
        least = np.minimum(error, least)
    return best


# ---- Formats, floats, TurboQuant ----------------------------------------------------------------------------------


def _format(name: str, size: int, weighted: bool = False) -> Callable[[Situation], np.ndarray]:
    def run(s: Situation) -> np.ndarray:
        from ggufkit.formats.codec import decode, encode

        blocks = encode(np.ascontiguousarray(s.rows[:, :size]), name, s.importance[:size] if weighted else None)
        result: np.ndarray = decode(blocks, name)[:, :BLOCK]
        return result

    return run


def _float(kind: str, scaled: bool) -> Callable[[Situation], np.ndarray]:
    def run(s: Situation) -> np.ndarray:
        from ggufkit.numbers.floats import decode, encode, float_by_name

        x = s.block
        scale = np.abs(x).max(1, keepdims=True) / np.float32(float_by_name(kind).largest)
        scale = np.where(scale > 0, scale, np.float32(1)) if scaled else np.float32(1)
        result: np.ndarray = decode(encode(x / scale, kind), kind) * scale
        return result

    return run


def _nf4(s: Situation) -> np.ndarray:
    """bitsandbytes: 64 weights share a float32 scale, their largest magnitude."""
    x = np.ascontiguousarray(s.rows[:, :64])
    largest = np.abs(x).max(1, keepdims=True)
    borders = (NF4[1:] + NF4[:-1]) / np.float32(2)
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        codes = ((x * (np.float32(1) / largest))[..., None] > borders).sum(-1)
    codes[largest[:, 0] == 0] = 7
    result: np.ndarray = (NF4[codes] * largest)[:, :BLOCK]
    return result


def _rotated(s: Situation) -> np.ndarray:
    from ggufkit.turboquant import Hadamard

    rotation = Hadamard(BLOCK)
    return rotation.back(_absmax(rotation.forward(s.block)))


def _turboquant(bits: int) -> Callable[[Situation], np.ndarray]:
    def run(s: Situation) -> np.ndarray:
        from ggufkit import turboquant

        return turboquant.decode(turboquant.encode(s.block, bits, scale=s.scale))

    return run


# ---- Methods that look at activations -------------------------------------------------------------------------------


def _power16(a: np.ndarray, k: int) -> np.ndarray:
    """a to the power k / 16, by square roots alone, which every machine rounds alike."""
    if k >= 16:
        return a
    result, root = np.ones_like(a), a
    for bit in (8, 4, 2, 1):
        root = np.sqrt(root)
        if k & bit:
            result = result * root
    return result


def _awq(s: Situation) -> np.ndarray:
    """Weights grow by aᵅ before they are rounded, and shrink after; the activations do the opposite."""
    powers = _power16(np.asarray(s.activations, np.float64), s.alpha)
    scale = (powers / np.sqrt(powers.max() * powers.min())).astype(np.float32)
    result: np.ndarray = _absmax(s.block * scale) / scale
    return result


def _gptq(s: Situation) -> np.ndarray:
    """Round from left to right; the weights that are left make up for each error."""
    H = hessian(s)
    H[np.diag_indices(BLOCK)] += 0.01 * _in_order(np.diag(H)) / BLOCK
    left = _inverted(H)
    d = _step(np.abs(s.block).max(1)).astype(np.float64)
    work = s.block.astype(np.float64)
    values = np.empty(work.shape, np.float32)
    for i in range(BLOCK):
        with np.errstate(divide="ignore", invalid="ignore"):
            q = np.where(d == 0, 0.0, np.clip(np.rint(work[:, i] / d), -7, 7))
        values[:, i] = q * d
        error = (work[:, i] - q * d) / left[i, i]
        work[:, i + 1 :] -= error[:, None] * left[i, i + 1 :]
        # What is left of the inverse once weight i is fixed.
        left[i + 1 :, i + 1 :] -= (left[i + 1 :, i] / left[i, i])[:, None] * left[i, i + 1 :]
    return values


def _inverted(matrix: np.ndarray) -> np.ndarray:
    """The inverse of a positive definite matrix, by elimination in an order that JavaScript can follow."""
    work, result = matrix.copy(), np.eye(BLOCK)
    for k in range(BLOCK):
        pivot = work[k, k]
        work[k] /= pivot
        result[k] /= pivot
        factors = work[:, k].copy()
        factors[k] = 0
        work -= factors[:, None] * work[k]
        result -= factors[:, None] * result[k]
    return result


METHODS: dict[str, Callable[[Situation], np.ndarray]] = {
    "INT4 absmax": lambda s: _absmax(s.block),
    "INT4 clipped": _clipped,
    "Q4_0": _format("Q4_0", 32),
    "Q4_0 imatrix": _format("Q4_0", 32, weighted=True),
    "Q4_1": _format("Q4_1", 32),
    "Q4_K": _format("Q4_K", 256),
    "Q4_K imatrix": _format("Q4_K", 256, weighted=True),
    "IQ4_NL": _format("IQ4_NL", 32),
    "IQ4_NL imatrix": _format("IQ4_NL", 32, weighted=True),
    "Q8_0": _format("Q8_0", 32),
    "NF4": _nf4,
    "MXFP4": _format("MXFP4", 32),
    "NVFP4": _format("NVFP4", 64),
    "E4M3": _float("E4M3", scaled=False),
    "E4M3 scaled": _float("E4M3", scaled=True),
    "E5M2": _float("E5M2", scaled=False),
    "E5M2 scaled": _float("E5M2", scaled=True),
    "TQ2_0": _format("TQ2_0", 256),
    "AWQ": _awq,
    "GPTQ": _gptq,
    "Rotated INT4": _rotated,
    "TurboQuant 2": _turboquant(2),
    "TurboQuant 3": _turboquant(3),
    "TurboQuant 4": _turboquant(4),
}
