"""INT8: a code −127 … 127 times a scale, shared by a tensor, a row, a token or a block.

    symmetric    x ≈ s · q            s = max|x| / 127                 −128 is not used
    affine       x ≈ s · (q − z)      s = (max − min) / 255, z such that 0 is exact

    tensor   one scale; static where it comes from calibration, and what lies beyond is clipped
    row      one per row of a weight matrix: per output channel
    token    one per row of activations, found when they are known: dynamic, nothing is ever clipped
    block    one per 32 (or any number of) neighbours in a row: Q8_0 is that with scales of float16

Which number of a calibration is the scale's: the maximum; a percentile of the magnitudes; or the one of least squared
error among 100 fractions of the maximum.

Source: Jacob et al., arXiv:1712.05877 (affine); Wu et al., arXiv:2004.09602 (calibration).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ggufkit.errors import CodecError, UsageError

if TYPE_CHECKING:
    import numpy as np

__all__ = ["GRANULARITIES", "METHODS", "Int8", "quantize_int8", "static_scale"]

GRANULARITIES = ("tensor", "row", "token", "block")
METHODS = ("max", "percentile", "mse")

_FRACTIONS = 100  # of the maximum that "mse" tries


@dataclass(frozen=True)
class Int8:
    """Quantized numbers.

    Attributes
    ----------
    codes : array of shape (rows, cols), int8.
    scales : array of shape (1, 1), (rows, 1) or (rows, blocks), float32.
    zeros : of the same shape, int32: the code of 0; None where it is 0.
    clipped : how many numbers lay beyond what the codes reach.
    """

    codes: np.ndarray
    scales: np.ndarray
    zeros: np.ndarray | None = None
    clipped: int = 0

    @property
    def nbytes(self) -> int:
        """Bytes of codes, scales as float32, and zeros as bytes."""
        return self.codes.nbytes + self.scales.nbytes + (0 if self.zeros is None else self.zeros.size)

    def decode(self) -> np.ndarray:
        """The numbers: array of shape (rows, cols), float32."""
        import numpy as np

        wide = self.codes.shape[1] // self.scales.shape[1]  # columns that share a scale
        codes = self.codes.astype(np.int32)
        if self.zeros is not None:
            codes -= np.repeat(self.zeros, wide, axis=1)
        result: np.ndarray = codes.astype(np.float32) * np.repeat(self.scales, wide, axis=1)
        return result


def quantize_int8(
    x: np.ndarray,
    granularity: str = "row",
    *,
    block: int = 32,
    affine: bool = False,
    method: str = "max",
    percentile: float = 99.99,
    scale: float | None = None,
) -> Int8:
    """Quantize the rows of a matrix.

    Parameters
    ----------
    x : array of shape (rows, cols), as float32.
    granularity : ``"tensor"``, ``"row"`` (or ``"token"``, the same of activations) or ``"block"``.
    block : columns that share a scale, a divisor of cols.
    affine : with zero points; else symmetric.
    method : how the scale of a tensor is found where none is given: ``"max"``, ``"percentile"``, ``"mse"``.
    percentile : of the magnitudes.
    scale : of a tensor, static: what calibration found (`static_scale`).

    Raises
    ------
    CodecError : a number is not finite, or the blocks do not divide the columns.
    UsageError : there is no such granularity or method, or they do not go together.
    """
    import numpy as np

    rows = np.asarray(x, np.float32)
    if granularity not in GRANULARITIES:
        raise UsageError(f"a scale can be one per {', '.join(GRANULARITIES)}, not per {granularity}")
    if granularity != "tensor" and (scale is not None or method != "max"):
        raise UsageError(f"a calibrated scale is one of a whole tensor, not one per {granularity}")
    if affine and (scale is not None or method != "max"):
        raise UsageError("codes with a zero point take the range of the numbers; a calibrated scale is symmetric")
    if rows.ndim != 2:
        raise CodecError(f"a matrix is quantized; this array has the shape {list(rows.shape)}")
    if not np.isfinite(rows).all():
        r, c = np.argwhere(~np.isfinite(rows))[0]
        raise CodecError(f"the number in row {r}, column {c} is not finite")
    if granularity == "block" and (block < 1 or rows.shape[1] % block):
        raise CodecError(f"rows of {rows.shape[1]} numbers are not a multiple of blocks of {block}")
    if granularity == "block":
        parts = rows.reshape(len(rows), rows.shape[1] // block, block)
    elif granularity == "tensor":
        parts = rows.reshape(1, 1, -1)
    else:
        parts = rows[:, None]
    if affine:
        scales, zeros = _affine(parts)
        codes = np.clip(np.rint(parts / scales[..., None]) + zeros[..., None], -128, 127)
        return Int8(codes.astype(np.int8).reshape(rows.shape), scales, zeros)
    if granularity == "tensor":
        chosen = static_scale(rows, method, percentile=percentile) if scale is None else scale
        if not np.isfinite(chosen) or chosen < 0:
            raise CodecError(f"a scale is a number of at least 0, not {chosen}")
        scales = np.array([[chosen]], np.float32)
    else:
        scales = np.abs(parts).max(2, initial=0) / np.float32(127)
    raw = np.rint(np.divide(parts, scales[..., None], out=np.zeros_like(parts), where=scales[..., None] > 0))
    codes = np.clip(raw, -127, 127)
    clipped = int(np.count_nonzero(np.abs(raw) > 127))
    return Int8(codes.astype(np.int8).reshape(rows.shape), scales, clipped=clipped)


def _affine(parts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scales and zero points of (rows, parts, n): 0 is always within and exact."""
    import numpy as np

    low, high = parts.min(2, initial=0), parts.max(2, initial=0)
    scales = (high.astype(np.float64) - low) / 255
    scales = np.where(scales > 0, scales, 1)
    zeros = np.clip(np.rint(-128 - low / scales), -128, 127).astype(np.int32)
    return scales.astype(np.float32), zeros


def static_scale(x: np.ndarray, method: str = "max", *, percentile: float = 99.99) -> float:
    """The symmetric scale of a whole tensor, from the numbers that calibration saw.

    Raises
    ------
    UsageError : there is no such method, or the percentile is not in 0 … 100.
    """
    import numpy as np

    if method not in METHODS:
        raise UsageError(f"a scale is found by {', '.join(METHODS)}, not by {method}")
    magnitudes = np.abs(np.asarray(x, np.float32)).reshape(-1)
    if not magnitudes.size:
        return 0.0
    most = float(magnitudes.max())
    if method == "max" or most == 0:
        return most / 127
    if method == "percentile":
        if not 0 <= percentile <= 100:
            raise UsageError(f"a percentile is a number from 0 to 100, not {percentile}")
        return float(np.percentile(magnitudes, percentile)) / 127
    candidates = most * np.arange(1, _FRACTIONS + 1) / _FRACTIONS / 127
    errors = [
        float(np.square(magnitudes - np.minimum(np.rint(magnitudes / s), 127) * s, dtype=np.float64).sum())
        for s in candidates
    ]
    return float(candidates[int(np.argmin(errors))])
