"""Floats of eight bits, as weights and as scales.

SEEEEMMM    E4M3: bias 7, no infinities, S1111111 is NaN      FNUZ: bias 8, only 10000000 is NaN
SEEEEEMM    E5M2: bias 15, as IEEE has it                     FNUZ: bias 16, the same
EEEEEEEE    E8M0, of scales: 2 to the (e - 127), 255 is NaN; also stored as U8
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from ggufkit.checkpoint.packed.matrix import Reader

if TYPE_CHECKING:
    import numpy as np

__all__ = ["FP8", "e8m0", "levels_of"]

# Name of the dtype → bits of the mantissa, bias of the exponent.
FP8 = {"F8_E4M3": (3, 7), "F8_E5M2": (2, 15), "F8_E4M3FNUZ": (3, 8), "F8_E5M2FNUZ": (2, 16)}


def e8m0(read: Reader) -> Reader:
    """Scales of bytes that are exponents, as float32; 255 is NaN."""

    def scales(lo: int, hi: int) -> np.ndarray:
        import numpy as np

        bytes_ = read(lo, hi)
        return np.where(bytes_ == 255, np.float32(np.nan), np.ldexp(np.float32(1), bytes_.astype(np.int32) - 127))

    return scales


@cache
def levels_of(dtype: str) -> np.ndarray:
    """What each of the 256 bytes means: array of shape (256,), float32, read-only."""
    import numpy as np

    mantissa_bits, bias = FP8[dtype]
    bytes_ = np.arange(256)
    exponent, mantissa = (bytes_ & 127) >> mantissa_bits, bytes_ & (1 << mantissa_bits) - 1
    whole = 1 << mantissa_bits
    fraction = np.where(exponent > 0, whole + mantissa, mantissa) / whole
    values: np.ndarray = np.ldexp(fraction, np.maximum(exponent, 1) - bias)
    if dtype == "F8_E4M3":
        values[(bytes_ & 127) == 127] = np.nan
    elif dtype == "F8_E5M2":
        values[exponent == 31] = np.where(mantissa[exponent == 31] == 0, np.inf, np.nan)
    values = np.where(bytes_ < 128, values, -values).astype(np.float32)
    if dtype.endswith("FNUZ"):
        values[128] = np.nan
    values.flags.writeable = False
    return values
