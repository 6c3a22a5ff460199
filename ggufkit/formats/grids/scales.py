"""Scales out of blocks, and blocks out of scales and units: the way between a grid's numbers and the file's bytes.

    scales_of(blocks, "Q4_K")     d, dmin, scales, mins of blocks that an encoder made
    pack(numbers, "Q4_K")         blocks that decode to step · unit − offset, bit for bit

Bytes are drawn beside each packer: AAAA is the part of the first weight named.

Source: the structs of ggml-common.h and dequantize_row_* of ggml-quants.c.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ggufkit.formats.grids import GRIDS
from ggufkit.formats.table import FORMATS

__all__ = ["Numbers", "pack", "scales_of"]


@dataclass
class Numbers:
    """What n blocks say.

    Attributes
    ----------
    d, dmin : (n,) float32.
    scales, mins : (n, sub-blocks) int32.
    units : (n, weights) float32; not needed to pack a codebook's blocks.
    rows : (n, weights / dims) int32: rows of the codebook.
    signs : (n, weights / 8) int32: bit i is set where weight i of eight is negative.
    """

    d: np.ndarray
    dmin: np.ndarray
    scales: np.ndarray
    mins: np.ndarray
    units: np.ndarray | None = None
    rows: np.ndarray | None = None
    signs: np.ndarray | None = None


# ---- Scales -----------------------------------------------------------------------------------------------------


def scales_of(blocks: np.ndarray, name: str) -> Numbers:
    """d, dmin, scales and mins of blocks, one a row: array of shape (n, type_size), uint8."""
    records = np.ascontiguousarray(blocks).view(FORMATS[name].dtype).reshape(-1)
    fields, n = records.dtype.names or (), len(records)
    ones, zeros = np.ones((n, 1), np.int32), np.zeros((n, 1), np.int32)
    if name in _SCALES:
        scales, mins = _SCALES[name](records)
    else:
        scales, mins = ones, ones if "m" in fields else zeros
    d = np.ones(n, np.float32) if GRIDS[name].fixed else records["d"].astype(np.float32)
    dmin = np.zeros(n, np.float32)
    if "dmin" in fields:
        dmin = records["dmin"].astype(np.float32)
    elif "m" in fields:
        dmin = -records["m"].astype(np.float32)
    return Numbers(d, dmin, scales.astype(np.int32), np.broadcast_to(mins, scales.shape).astype(np.int32))


def _six_bits(r: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Q4_K's 12 bytes.    0 … 3   hhAAAAAA    4 … 7   HHaaaaaa    8 … 11   bbbbBBBB    h B: scale 4 …; H b: min 4 …"""
    s = r["scales"].astype(np.int32)
    first, second, third = s[:, :4], s[:, 4:8], s[:, 8:]
    scales = np.concatenate([first & 63, third & 15 | first >> 6 << 4], 1)
    return scales, np.concatenate([second & 63, third >> 4 | second >> 6 << 4], 1)


def _q3_scales(r: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Q3_K's 12 bytes.    0 … 7   BBBBAAAA of scales j, 8 + j    8 … 11   ddccbbaa of scales j, 4 + j, 8 + j, 12 + j"""
    s = r["scales"].astype(np.int32)
    low = np.concatenate([s[:, :8] & 15, s[:, :8] >> 4], 1)
    high = np.concatenate([s[:, 8:] >> shift & 3 for shift in (0, 2, 4, 6)], 1)
    return (low | high << 4) - 32, _NO_MINS


def _iq4_scales(r: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    high = r["scales_h"].astype(np.int32)[:, None] >> 2 * np.arange(8) & 3
    return (_unpaired(r["scales_l"]) | high << 4) - 32, _NO_MINS


def _unpaired(bytes_: np.ndarray) -> np.ndarray:
    """BBBBAAAA → A, B: (n, m) → (n, 2 m)."""
    both = np.stack([bytes_ & 15, bytes_ >> 4], 2).astype(np.int32)
    return both.reshape(len(bytes_), -1)


def _top_bits(words: np.ndarray) -> np.ndarray:
    """The highest four bits of little-endian 32-bit words of bytes (n, 4 m)."""
    return np.ascontiguousarray(words).view("<u4") >> 28


_NO_MINS = np.zeros((1, 1), np.int32)

_SCALES: dict[str, Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]] = {
    "Q2_K": lambda r: (r["scales"] & 15, r["scales"] >> 4),
    "Q3_K": _q3_scales,
    "Q4_K": _six_bits,
    "Q5_K": _six_bits,
    "Q6_K": lambda r: (r["scales"], _NO_MINS),
    "IQ4_XS": _iq4_scales,
    "IQ3_S": lambda r: (_unpaired(r["scales"]), _NO_MINS),
    "IQ3_XXS": lambda r: (_top_bits(r["qs"][:, 64:]), _NO_MINS),
    "IQ2_S": lambda r: (_unpaired(r["scales"]), _NO_MINS),
    "IQ2_XS": lambda r: (_unpaired(r["scales"]), _NO_MINS),
    "IQ2_XXS": lambda r: (np.ascontiguousarray(r["qs"]).view("<u4")[:, 1::2] >> 28, _NO_MINS),
    "MXFP4": lambda r: (r["e"][:, None], _NO_MINS),
    "NVFP4": lambda r: (r["d"], _NO_MINS),
}


# ---- Packing ----------------------------------------------------------------------------------------------------


def pack(numbers: Numbers, name: str) -> np.ndarray:
    """Blocks, one a row: array of shape (n, type_size), uint8."""
    format, grid = FORMATS[name], GRIDS[name]
    out = np.zeros(len(numbers.d), format.dtype)
    fields = out.dtype.names or ()
    if not grid.fixed:
        out["d"] = numbers.d
    if "dmin" in fields:
        out["dmin"] = numbers.dmin
    if "m" in fields:
        out["m"] = -numbers.dmin
    _PACKERS[name](out, numbers, name)
    return out.view(np.uint8).reshape(len(out), format.type_size)


def _levels(numbers: Numbers, name: str) -> np.ndarray:
    return GRIDS[name].level_of(numbers.units).astype(np.uint8)


def _halves(levels: np.ndarray, width: int) -> np.ndarray:
    """Of each 2 · width levels, byte j is BBBBAAAA of levels j and j + width."""
    parts = levels.reshape(len(levels), -1, 2, width)
    return (parts[:, :, 0] & 15 | (parts[:, :, 1] & 15) << 4).reshape(len(levels), -1)


def _planes(levels: np.ndarray) -> np.ndarray:
    """Of each 128 levels, byte j is DDCCBBAA of levels j, j + 32, j + 64, j + 96."""
    parts = (levels & 3).reshape(len(levels), -1, 4, 32)
    return sum(parts[:, :, n] << 2 * n for n in range(4)).reshape(len(levels), -1).astype(np.uint8)


def _columns(bits: np.ndarray) -> np.ndarray:
    """Byte j has in bit b the bit of weight 32 b + j: (n, 256) → (n, 32)."""
    return np.packbits(bits.reshape(len(bits), 8, 32), axis=1, bitorder="little")[:, 0]


def _paired(values: np.ndarray) -> np.ndarray:
    """BBBBAAAA of neighbours."""
    return values[:, 0::2] & 15 | (values[:, 1::2] & 15) << 4


def _strings(values: np.ndarray, bits: int, count: int) -> np.ndarray:
    """`count` neighbours of so many bits, the first lowest, in one number: (n, m) → (n, m / count)."""
    groups = values.astype(np.int64).reshape(len(values), -1, count)
    return (groups << bits * np.arange(count)).sum(2)


def _q4(out: np.ndarray, q: Numbers, name: str) -> None:
    out["qs"] = _halves(_levels(q, name), 16)


def _q5(out: np.ndarray, q: Numbers, name: str) -> None:
    levels = _levels(q, name)
    out["qs"] = _halves(levels, 16)
    out["qh"] = np.packbits(levels >> 4, axis=1, bitorder="little")


def _q8_0(out: np.ndarray, q: Numbers, name: str) -> None:
    out["qs"] = q.units


def _q1_0(out: np.ndarray, q: Numbers, name: str) -> None:
    out["qs"] = np.packbits(_levels(q, name), axis=1, bitorder="little")


def _q2_0(out: np.ndarray, q: Numbers, name: str) -> None:
    out["qs"] = _strings(_levels(q, name), 2, 4)


def _tq1_0(out: np.ndarray, q: Numbers, name: str) -> None:
    """A byte is five trits as a fraction of 3⁵, the first the highest, rounded up to 256ths."""
    trits = _levels(q, name).astype(np.int32)

    def fraction(parts: np.ndarray) -> np.ndarray:  # (n, 4 or 5, bytes)
        number = sum(parts[:, k] * 3 ** (4 - k) for k in range(parts.shape[1]))
        return (number * 256 + 242) // 243

    n = len(trits)
    out["qs"][:, :32] = fraction(trits[:, :160].reshape(n, 5, 32))
    out["qs"][:, 32:] = fraction(trits[:, 160:240].reshape(n, 5, 16))
    out["qh"] = fraction(trits[:, 240:].reshape(n, 4, 4))


def _tq2_0(out: np.ndarray, q: Numbers, name: str) -> None:
    out["qs"] = _planes(_levels(q, name))


def _e2m1(q: Numbers) -> np.ndarray:
    """SEEM of units, doubled as they are."""
    magnitudes = np.array([0, 1, 2, 3, 4, 6, 8, 12], np.float32)
    return (np.searchsorted(magnitudes, np.abs(q.units)) | np.where(q.units < 0, 8, 0)).astype(np.uint8)


def _mxfp4(out: np.ndarray, q: Numbers, name: str) -> None:
    out["e"], out["qs"] = q.scales[:, 0], _halves(_e2m1(q), 16)


def _nvfp4(out: np.ndarray, q: Numbers, name: str) -> None:
    out["d"], out["qs"] = q.scales, _halves(_e2m1(q), 8)


def _q2_k(out: np.ndarray, q: Numbers, name: str) -> None:
    out["scales"], out["qs"] = q.scales | q.mins << 4, _planes(_levels(q, name))


def _q3_k(out: np.ndarray, q: Numbers, name: str) -> None:
    levels, scales = _levels(q, name), q.scales + 32
    out["qs"], out["hmask"] = _planes(levels), _columns(levels >> 2)
    out["scales"][:, :8] = scales[:, :8] & 15 | (scales[:, 8:] & 15) << 4
    out["scales"][:, 8:] = sum((scales >> 4)[:, 4 * n : 4 * n + 4] << 2 * n for n in range(4))


def _q45_k(out: np.ndarray, q: Numbers, name: str) -> None:
    levels, s, m = _levels(q, name), q.scales, q.mins
    out["scales"][:, :4] = s[:, :4] | s[:, 4:] >> 4 << 6
    out["scales"][:, 4:8] = m[:, :4] | m[:, 4:] >> 4 << 6
    out["scales"][:, 8:] = s[:, 4:] & 15 | (m[:, 4:] & 15) << 4
    out["qs"] = _halves(levels, 32)
    if name == "Q5_K":
        out["qh"] = _columns(levels >> 4)


def _q6_k(out: np.ndarray, q: Numbers, name: str) -> None:
    """Of each 128 levels, ql[j] is CCCCAAAA and ql[32 + j] DDDDBBBB of levels j, j + 32, j + 64, j + 96."""
    levels = _levels(q, name)
    out["scales"], out["qh"] = q.scales, _planes(levels >> 4)
    quarters = (levels & 15).reshape(-1, 2, 4, 32)
    out["ql"] = (quarters[:, :, :2] | quarters[:, :, 2:] << 4).reshape(-1, 128)


def _iq4_xs(out: np.ndarray, q: Numbers, name: str) -> None:
    scales = q.scales + 32
    out["qs"], out["scales_l"] = _halves(_levels(q, name), 16), _paired(scales)
    out["scales_h"] = _strings(scales >> 4, 2, 8)[:, 0]


def _iq3_s(out: np.ndarray, q: Numbers, name: str) -> None:
    out["qs"], out["qh"] = q.rows & 255, _strings(q.rows >> 8, 1, 8)
    out["signs"], out["scales"] = q.signs, _paired(q.scales)


def _signs_and_scale(q: Numbers) -> np.ndarray:
    """A word for each 32 weights: four times seven signs, and the scale in the highest four bits: (n, 32) uint8."""
    words = _strings(q.signs & 127, 7, 4) | q.scales.astype(np.int64) << 28
    return np.ascontiguousarray(words.astype("<u4")).view(np.uint8)


def _iq3_xxs(out: np.ndarray, q: Numbers, name: str) -> None:
    out["qs"][:, :64], out["qs"][:, 64:] = q.rows, _signs_and_scale(q)


def _iq2_s(out: np.ndarray, q: Numbers, name: str) -> None:
    out["qs"][:, :32], out["qs"][:, 32:] = q.rows & 255, q.signs
    out["qh"], out["scales"] = _strings(q.rows >> 8, 2, 4), _paired(q.scales)


def _iq2_xs(out: np.ndarray, q: Numbers, name: str) -> None:
    out["qs"], out["scales"] = q.rows | (q.signs & 127) << 9, _paired(q.scales)


def _iq2_xxs(out: np.ndarray, q: Numbers, name: str) -> None:
    """For each 32 weights four bytes of rows, then the word of signs and scale."""
    n = len(out)
    parts = [q.rows.astype(np.uint8).reshape(n, 8, 4), _signs_and_scale(q).reshape(n, 8, 4)]
    out["qs"] = np.ascontiguousarray(np.concatenate(parts, 2).reshape(n, 64)).view("<u2")


_PACKERS: dict[str, Callable[[np.ndarray, Numbers, str], None]] = {
    "Q4_0": _q4,
    "Q4_1": _q4,
    "Q5_0": _q5,
    "Q5_1": _q5,
    "Q8_0": _q8_0,
    "IQ4_NL": _q4,
    "Q1_0": _q1_0,
    "Q2_0": _q2_0,
    "TQ1_0": _tq1_0,
    "TQ2_0": _tq2_0,
    "MXFP4": _mxfp4,
    "NVFP4": _nvfp4,
    "Q2_K": _q2_k,
    "Q3_K": _q3_k,
    "Q4_K": _q45_k,
    "Q5_K": _q45_k,
    "Q6_K": _q6_k,
    "IQ4_XS": _iq4_xs,
    "IQ3_S": _iq3_s,
    "IQ3_XXS": _iq3_xxs,
    "IQ2_S": _iq2_s,
    "IQ2_XS": _iq2_xs,
    "IQ2_XXS": _iq2_xxs,
}
