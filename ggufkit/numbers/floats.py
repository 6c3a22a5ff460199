"""Floats of eight bits and fewer, rounded to nearest, ties to even, straight from float32.

    SEEEEMMM    E4M3      bias 7, no infinities, S1111111 is NaN: OCP's, torch's and safetensors' "float8_e4m3fn"
    SEEEEMMM    E4M3FNUZ  bias 8, one zero, 10000000 is NaN: AMD's MI300; the same byte means half the number
    SEEEEEMM    E5M2      bias 15, infinities and NaNs as IEEE 754 has them
    SEEEEEMM    E5M2FNUZ  bias 16, one zero, 10000000 is NaN
    SEEEMMMM    E3M4      bias 3, infinities and NaNs
    EEEEEEEE    E8M0      2^(E − 127), 11111111 is NaN: the scale of MX blocks
    0EEEEMMM    UE4M3     E4M3 without sign: the scale of NVFP4's blocks
        SEEM    E2M1      0 0.5 1 1.5 2 3 4 6 and their opposites: MXFP4 and NVFP4

Saturation: a number beyond the largest becomes the largest, as serving stacks clamp before they round; without it, NaN
in the kinds that have no infinity (above 464 in E4M3) and infinity in the others. NaN stays NaN.

Source: Micikevicius et al., arXiv:2209.05433; OCP 8-bit floating point specification and MX specification, 2023.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from ggufkit.errors import UsageError

if TYPE_CHECKING:
    import numpy as np

__all__ = ["FLOATS", "SmallFloat", "decode", "encode", "float_by_name"]


@dataclass(frozen=True)
class SmallFloat:
    """One kind of small float.

    Attributes
    ----------
    name : as in `FLOATS`.
    dtype : ml_dtypes' name of it.
    bits : of a code.
    largest, least : the largest finite number, the least above 0.
    signed : whether there are numbers below 0; of those without, codes of negative numbers are those of 0, of E8M0 NaN.
    nan : whether it has a NaN; E2M1 has none and refuses what is not a number.
    """

    name: str
    dtype: str
    bits: int
    largest: float
    least: float
    signed: bool = True
    nan: bool = True


FLOATS = {
    kind.name: kind
    for kind in (
        SmallFloat("E4M3", "float8_e4m3fn", 8, 448.0, 2.0**-9),
        SmallFloat("E4M3FNUZ", "float8_e4m3fnuz", 8, 240.0, 2.0**-10),
        SmallFloat("E5M2", "float8_e5m2", 8, 57344.0, 2.0**-16),
        SmallFloat("E5M2FNUZ", "float8_e5m2fnuz", 8, 57344.0, 2.0**-17),
        SmallFloat("E3M4", "float8_e3m4", 8, 15.5, 2.0**-6),
        SmallFloat("E8M0", "float8_e8m0fnu", 8, 2.0**127, 2.0**-127, signed=False),
        SmallFloat("UE4M3", "float8_e4m3fn", 8, 448.0, 2.0**-9, signed=False),
        SmallFloat("E2M1", "float4_e2m1fn", 4, 6.0, 0.5, nan=False),
    )
}


def float_by_name(name: str) -> SmallFloat:
    """The kind called `name`, in any case.

    Raises
    ------
    UsageError : there is none.
    """
    if (kind := FLOATS.get(name.upper())) is None:
        raise UsageError(f"there is no small float {name!r}; there are {', '.join(FLOATS)}")
    return kind


def encode(x: np.ndarray, kind: str, *, saturate: bool = True) -> np.ndarray:
    """The codes of the nearest numbers.

    Parameters
    ----------
    x : array of any shape. Anything but float32 is rounded to float32 first, which changes float64 only.
    kind : a name of `FLOATS`.
    saturate : numbers beyond the largest, infinities too, become it.

    Returns
    -------
    array of the same shape, uint8

    Raises
    ------
    UsageError : there is no such kind, or E2M1 is given NaN.
    """
    import ml_dtypes
    import numpy as np

    form = float_by_name(kind)
    values = np.asarray(x, np.float32)
    if not form.nan and np.isnan(values).any():
        raise UsageError(f"{form.name} has no NaN, and there is one among the numbers")
    if not form.signed and form.name != "E8M0":
        values = np.where(values < 0, np.float32(0), np.abs(values))
    if saturate or not form.nan:
        values = np.clip(values, np.float32(-form.largest), np.float32(form.largest))
    if form.name == "E8M0" and saturate:
        # 2^-127 is the least; 0 and what is negative has no code of its own.
        values = np.where(values == 0, np.float32(form.least), values)
    with np.errstate(over="ignore", invalid="ignore"):
        return values.astype(getattr(ml_dtypes, form.dtype)).view(np.uint8)


def decode(codes: np.ndarray, kind: str) -> np.ndarray:
    """What codes mean: array of the same shape, float32. Bits above the kind's own are left out of account."""
    import numpy as np

    form = float_by_name(kind)
    result: np.ndarray = _numbers(form.name)[np.asarray(codes, np.uint8) & np.uint8((1 << form.bits) - 1)]
    return result


@cache
def _numbers(name: str) -> np.ndarray:
    """What each code means: array of shape (2 ** bits,), float32."""
    import ml_dtypes
    import numpy as np

    form = FLOATS[name]
    codes: np.ndarray = np.arange(1 << form.bits, dtype=np.uint8)
    if name == "UE4M3":
        codes = codes & 127
    with np.errstate(invalid="ignore"):
        table: np.ndarray = codes.view(getattr(ml_dtypes, form.dtype)).astype(np.float32)
    table.flags.writeable = False
    return table
