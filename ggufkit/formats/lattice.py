"""Weights that lie on the lattice of a block format already, and the blocks that keep them there.

Training for quantization leaves weights that are scale · level of a block, rounded to the 8 digits of bfloat16. An
encoder that picks scales from the largest weight picks another one, and loses what the training gained. Here the scale
is looked for: an interval for each weight, as its rounding allows,

    w = round(d · q)   →   low(w) / q ≤ d ≤ high(w) / q          Q4_1, Q5_1: the same of d · q + m

and a float16 in all of them, with which every weight is found again. All levels that the largest weight may have are
tried, of both signs. A block that has no such scale is not on the lattice.
"""

from __future__ import annotations

import math

import numpy as np

from ggufkit.errors import CodecError
from ggufkit.formats.affine import Affine, join
from ggufkit.formats.codec import encode, frozen
from ggufkit.formats.table import Format
from ggufkit.kernels.jit import helper, kernel

__all__ = ["LATTICES", "encode_lattice", "on_lattice"]

# Format → lowest and highest level, and whether a bias is added.
LATTICES = {
    "Q4_0": (-8, 7, False),
    "Q5_0": (-16, 15, False),
    "Q8_0": (-128, 127, False),
    "Q4_1": (0, 15, True),
    "Q5_1": (0, 31, True),
}

# Source → its digits, and the exponent of its least normal number.
_DIGITS = {"BF16": (8, -126), "F16": (11, -14), "F32": (24, -126)}

# Scales of float16 that are tried in an interval: more than float16 has between two numbers of bfloat16.
_TRIED = 40


def encode_lattice(rows: np.ndarray, format: Format, source: str) -> tuple[np.ndarray, int]:
    """Encode rows with the scales that they were made with; blocks off the lattice as always.

    Parameters
    ----------
    rows : array of shape (rows, cols), float32.
    format : one of `LATTICES`.
    source : the precision that the weights were rounded to: BF16, F16 or F32.

    Returns
    -------
    array of shape (rows, row_bytes), uint8; and how many blocks lie on the lattice

    Raises
    ------
    CodecError : as `codec.encode`.
    """
    lowest, _, offset = LATTICES[format.name]
    out = encode(rows, format, threads=1)
    scales, biases, codes = _found(rows, format, source)
    on = ~np.isnan(scales)
    if on.any():
        d = scales[on].astype(np.float32)[:, None]
        m = biases[on].astype(np.float32)[:, None] if offset else d * np.float32(lowest)
        levels = (codes[on].astype(np.int16) - lowest).astype(np.uint8)
        out.reshape(-1, format.type_size)[on] = join(Affine(levels, d, m), format)
    return out, int(on.sum())


def on_lattice(rows: np.ndarray, format: Format, source: str) -> int:
    """How many blocks of rows, (rows, cols) float32, lie on the lattice of `format`. Those of zeros do not count."""
    scales, biases, _ = _found(rows, format, source)
    return int((~np.isnan(scales) & ((scales != 0) | (biases != 0))).sum())


def _found(rows: np.ndarray, format: Format, source: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each block its scale and bias, NaN where there is none, and levels: (n,) float64 twice, (n, 32) int16."""
    if format.name not in LATTICES or rows.shape[-1] % 32:
        raise CodecError(f"there is no lattice of {format.name} for rows of {rows.shape[-1]} weights")
    lowest, highest, offset = LATTICES[format.name]
    digits, least = _DIGITS[source]
    x = frozen(np.ascontiguousarray(rows, np.float32).reshape(-1, 32))
    found, codes = np.full((len(x), 2), np.nan), np.zeros((len(x), 32), np.int16)
    (offset_lattice if offset else symmetric_lattice)(x, digits, least, lowest, highest, codes, found)
    return found[:, 0], found[:, 1], codes


@helper
def spacing(value, digits, least):
    """Between numbers of so many digits near `value`."""
    _, exponent = math.frexp(value)
    return math.ldexp(1.0, max(exponent - 1, least) - digits + 1)


@helper
def rounded(value, digits, least):
    """`value` to so many digits, ties to even: first to float32, as decoders compute."""
    value = np.float64(np.float32(value))
    if digits == 24 or value == 0.0:
        return value
    step = spacing(value, digits, least)
    return np.rint(value / step) * step


@helper
def low_end(value, digits, least):
    """The least number that may round to `value`."""
    if value == 0.0:
        return 0.0
    half = spacing(value, digits, least) * 0.5
    fraction, exponent = math.frexp(value)
    if fraction == 0.5 and exponent - 1 > least:  # numbers below a power of two lie twice as near
        half *= 0.5
    return value - half


@helper
def high_end(value, digits, least):
    """The largest number that may round to `value`."""
    return -low_end(-value, digits, least)


@helper
def fits(x, block, d, m, numbers, codes):
    """Whether every weight is rounded(d · level + m), with levels put into `codes`.

    numbers: digits, least exponent, lowest and highest level.
    """
    digits, least, lowest, highest = numbers
    for i in range(32):
        w = np.float64(x[block, i])
        level = np.rint((w - m) / d)
        if level < lowest or level > highest or rounded(d * level + m, digits, least) != w:
            return False
        codes[block, i] = np.int16(level)
    return True


@helper
def scale_of(x, block, low, high, likely, numbers, codes):
    """A scale from low to high, of one sign, that fits, `likely` first; 0 where there is none. No bias."""
    digits, least, lowest, highest = numbers
    # What fits lies in every interval that is found below, which takes longer.
    step = spacing(likely, 11, -14)
    d = np.rint(likely / step) * step
    if low <= d <= high and d != 0.0 and abs(d) <= 65504.0 and fits(x, block, d, 0.0, numbers, codes):
        return d
    for _ in range(4):  # weights whose level is certain narrow the interval, and make others certain
        before = high - low
        for i in range(32):
            w = np.float64(x[block, i])
            if w == 0.0:
                continue
            first, last = w / low, w / high
            level = np.rint(first)
            if level != np.rint(last) or abs(first - level) > 0.45 or abs(last - level) > 0.45:
                continue
            if level == 0.0 or level < lowest or level > highest:
                return 0.0
            a, b = low_end(w, digits, least) / level, high_end(w, digits, least) / level
            low, high = max(low, min(a, b)), min(high, max(a, b))
            if low > high:
                return 0.0
        if high - low == before:
            break
    step = spacing(low, 11, -14)
    d = np.ceil(low / step) * step
    for _ in range(_TRIED):
        if d > high or abs(d) > 65504.0:
            return 0.0
        if d != 0.0 and fits(x, block, d, 0.0, numbers, codes):
            return d
        d += spacing(d, 11, -14)
    return 0.0


@kernel
def symmetric_lattice(x, digits, least, lowest, highest, codes, found):
    """w = d · q. x: (n, 32); codes: (n, 32); found: (n, 2), the scale and 0 where there is one."""
    numbers = (digits, least, lowest, highest)
    for block in range(x.shape[0]):
        top = np.float64(x[block, 0])
        for i in range(1, 32):
            if abs(x[block, i]) > abs(top):
                top = np.float64(x[block, i])
        if not np.isfinite(top):
            continue
        if top == 0.0:
            found[block, 0], found[block, 1] = 0.0, 0.0
            continue
        a, b = low_end(top, digits, least), high_end(top, digits, least)
        for size in range(-lowest, 0, -1):
            for sign in range(2):
                level = np.float64(size if (sign == 0) == (top > 0.0) else -size)
                if level > highest:
                    continue
                low, high = min(a / level, b / level), max(a / level, b / level)
                d = scale_of(x, block, low, high, top / level, numbers, codes)
                if d != 0.0:
                    found[block, 0], found[block, 1] = d, 0.0
                    break
            if not np.isnan(found[block, 0]):
                break


@helper
def bias_of(x, block, d, numbers, codes):
    """A bias that fits with the scale `d`; NaN where there is none. The smallest level is 0 first, then 1, …"""
    digits, least, _, highest = numbers
    bottom = np.float64(x[block, 0])
    for i in range(1, 32):
        bottom = min(bottom, np.float64(x[block, i]))
    low, high, most = -np.inf, np.inf, 0.0
    for i in range(32):
        w = np.float64(x[block, i])
        level = np.rint((w - bottom) / d)
        if level > highest:
            return np.nan
        most = max(most, level)
        low = max(low, low_end(w, digits, least) - d * level)
        high = min(high, high_end(w, digits, least) - d * level)
        if low > high:
            return np.nan
    for shift in range(int(highest - most) + 1):
        centre = (low + high) * 0.5 - d * shift
        step = spacing(centre, 11, -14) if centre != 0.0 else 2.0**-24
        m = np.rint(centre / step) * step
        for nudge in range(3):
            bias = m + step * (0.0, 1.0, -1.0)[nudge]
            inside = abs(bias) <= 65504.0 and low - d * shift <= bias <= high - d * shift
            if inside and fits(x, block, d, bias, numbers, codes):
                return bias
    return np.nan


@kernel
def offset_lattice(x, digits, least, lowest, highest, codes, found):
    """w = d · q + m, d > 0. x: (n, 32); codes: (n, 32); found: (n, 2), scale and bias where there are any."""
    numbers = (digits, least, lowest, highest)
    for block in range(x.shape[0]):
        bottom = top = np.float64(x[block, 0])
        for i in range(1, 32):
            bottom, top = min(bottom, np.float64(x[block, i])), max(top, np.float64(x[block, i]))
        if not (np.isfinite(bottom) and np.isfinite(top)):
            continue
        if bottom == top:  # one number: the bias alone
            step = spacing(top, 11, -14) if top != 0.0 else 1.0
            m = np.rint(top / step) * step
            if abs(m) <= 65504.0 and rounded(m, digits, least) == top:
                found[block, 0], found[block, 1] = 0.0, m
                for i in range(32):
                    codes[block, i] = 0
            continue
        widest = high_end(top, digits, least) - low_end(bottom, digits, least)
        narrowest = low_end(top, digits, least) - high_end(bottom, digits, least)
        for span in range(highest, 0, -1):
            low, high = max(narrowest, 0.0) / span, widest / span
            step = spacing(low, 11, -14) if low != 0.0 else 2.0**-24
            d = np.ceil(low / step) * step
            for _ in range(_TRIED):
                if d > high or d > 65504.0:
                    break
                if d > 0.0:
                    m = bias_of(x, block, d, numbers, codes)
                    if not np.isnan(m):
                        found[block, 0], found[block, 1] = d, m
                        break
                d += spacing(d, 11, -14) if d != 0.0 else 2.0**-24
            if not np.isnan(found[block, 0]):
                break
