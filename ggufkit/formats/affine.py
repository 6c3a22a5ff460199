"""Blocks as codes with a scale and a bias a group: w = scale · code + bias.

Half of GGML's formats are that behind their packing, and so are the arrays of MLX, GPTQ and AWQ. Here the two sides
meet: `split` takes blocks apart, `join` builds blocks, `pack_codes` writes codes as one stream of bits.

    format   bits  group   scale           bias
    Q4_0     4     32      d               -8 d
    Q4_1     4     32      d               m
    Q5_0     5     32      d               -16 d
    Q5_1     5     32      d               m
    Q8_0     8     32      d               -128 d
    Q4_K     4     32      d · scale       -dmin · min
    Q5_K     5     32      d · scale       -dmin · min
    Q2_0     2     64      d               -d
    TQ1_0    2     128     d               -d
    TQ2_0    2     128     d               -d
    Q1_0     2     128     2 d             -d

Every scale and bias is exact in float32, so scale · code + bias in float32 gives the bits of GGML's own decoder: the
product has at most 24 significant bits, and one rounding is left to the sum.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np

from ggufkit.errors import CodecError
from ggufkit.formats.table import Format

__all__ = ["AFFINE", "Affine", "join", "pack_codes", "split", "unpack_codes"]

# format → (bits a code, weights a group)
AFFINE: dict[str, tuple[int, int]] = {
    "Q4_0": (4, 32),
    "Q4_1": (4, 32),
    "Q5_0": (5, 32),
    "Q5_1": (5, 32),
    "Q8_0": (8, 32),
    "Q4_K": (4, 32),
    "Q5_K": (5, 32),
    "Q2_0": (2, 64),
    "TQ1_0": (2, 128),
    "TQ2_0": (2, 128),
    "Q1_0": (2, 128),
}


@dataclass(frozen=True)
class Affine:
    """Weights as codes.

    Attributes
    ----------
    codes : array of shape (n, groups · group), uint8.
    scales, biases : arrays of shape (n, groups), float32.
    """

    codes: np.ndarray
    scales: np.ndarray
    biases: np.ndarray

    def floats(self) -> np.ndarray:
        """The weights, array of shape (n, groups · group), float32."""
        groups = self.codes.reshape(*self.scales.shape, -1).astype(np.float32)  # (n, groups, group)
        return (self.scales[..., None] * groups + self.biases[..., None]).reshape(self.codes.shape)


def split(blocks: np.ndarray, format: Format) -> Affine:
    """Take blocks apart.

    Parameters
    ----------
    blocks : array of shape (…, bytes), uint8; flattened to n blocks.
    format : one of `AFFINE`.
    """
    records = np.ascontiguousarray(blocks).reshape(-1, format.type_size).view(format.dtype)[:, 0]
    with np.errstate(over="ignore", invalid="ignore"):  # scales of damaged blocks may be infinite
        return _SPLIT[format.name](records)


# -- codes ------------------------------------------------------------------------------------------------


def _nibbles(qs: np.ndarray) -> np.ndarray:
    """(…, 16) bytes → (…, 32): byte i holds weight i in its low half and weight i + 16 in its high half."""
    return np.concatenate((qs & 15, qs >> 4), axis=-1)


def _fifth_bits(qh: np.ndarray) -> np.ndarray:
    """(n, 4) bytes → (n, 32): bit i belongs to weight i; worth 16."""
    return np.unpackbits(qh, axis=-1, bitorder="little") << 4


def _half(field: np.ndarray) -> np.ndarray:
    """(n,) float16 → (n, 1) float32."""
    return field.astype(np.float32)[:, None]


def _symmetric(codes: np.ndarray, d: np.ndarray, zero: int, groups: int = 1) -> Affine:
    d = np.repeat(_half(d), groups, axis=1)
    return Affine(codes, d, d * np.float32(-zero))


def _split_q5(r: np.ndarray) -> np.ndarray:
    return _nibbles(r["qs"]) | _fifth_bits(r["qh"])


def _split_q45_k(r: np.ndarray) -> Affine:
    """Eight sub-blocks of 32; byte i of quarter j holds weight i of sub-blocks 2 j (low half) and 2 j + 1 (high)."""
    n = len(r)
    quarters = r["qs"].reshape(n, 4, 32)
    codes = np.stack((quarters & 15, quarters >> 4), axis=2).reshape(n, 8, 32)
    if "qh" in (r.dtype.names or ()):
        # Bit j of byte i belongs to weight i of sub-block j.
        codes |= np.unpackbits(r["qh"][:, None, :], axis=1, bitorder="little") << 4
    # scales:  j < 4   00ssssss of byte j          00mmmmmm of byte j + 4
    #          j ≥ 4   mmmmssss of byte j + 4, and the top two bits of the bytes above
    b = r["scales"].reshape(n, 3, 4)
    high = b[:, :2] >> 6 << 4
    scales = np.concatenate((b[:, 0] & 63, b[:, 2] & 15 | high[:, 0]), axis=1).astype(np.float32)
    mins = np.concatenate((b[:, 1] & 63, b[:, 2] >> 4 | high[:, 1]), axis=1).astype(np.float32)
    return Affine(codes.reshape(n, 256), _half(r["d"]) * scales, -(_half(r["dmin"]) * mins))


def _split_tq1_0(r: np.ndarray) -> Affine:
    """Base 3: a byte's digits are the tops of byte · 3^k, five for `qs`, four for `qh`."""

    def digits(field: np.ndarray, runs: tuple[int, ...], count: int) -> list[np.ndarray]:
        found, at = [], 0
        for run in runs:
            for k in range(count):
                part = field[:, at : at + run] * np.uint8(3**k)
                found.append((part.astype(np.uint16) * 3 >> 8).astype(np.uint8))
            at += run
        return found

    codes = np.concatenate(digits(r["qs"], (32, 16), 5) + digits(r["qh"], (4,), 4), axis=1)
    return _symmetric(codes, r["d"], 1, groups=2)


def _split_tq2_0(r: np.ndarray) -> Affine:
    """Two bits per weight; byte i of each half holds weights i, i + 32, i + 64, i + 96 of its 128."""
    halves = r["qs"].reshape(-1, 2, 1, 32)
    codes = halves >> np.array([0, 2, 4, 6], np.uint8)[:, None] & 3
    return _symmetric(codes.reshape(-1, 256), r["d"], 1, groups=2)


def _split_q2_0(r: np.ndarray) -> Affine:
    codes = r["qs"][:, :, None] >> np.array([0, 2, 4, 6], np.uint8) & 3
    return _symmetric(codes.reshape(-1, 64), r["d"], 1)


def _split_q1_0(r: np.ndarray) -> Affine:
    d = _half(r["d"])
    return Affine(np.unpackbits(r["qs"], axis=1, bitorder="little"), d + d, -d)


_SPLIT = {
    "Q4_0": lambda r: _symmetric(_nibbles(r["qs"]), r["d"], 8),
    "Q4_1": lambda r: Affine(_nibbles(r["qs"]), _half(r["d"]), _half(r["m"])),
    "Q5_0": lambda r: _symmetric(_split_q5(r), r["d"], 16),
    "Q5_1": lambda r: Affine(_split_q5(r), _half(r["d"]), _half(r["m"])),
    "Q8_0": lambda r: _symmetric(r["qs"].view(np.uint8) ^ 0x80, r["d"], 128),
    "Q4_K": _split_q45_k,
    "Q5_K": _split_q45_k,
    "Q2_0": _split_q2_0,
    "TQ1_0": _split_tq1_0,
    "TQ2_0": _split_tq2_0,
    "Q1_0": _split_q1_0,
}


# -- blocks -----------------------------------------------------------------------------------------------


def join(weights: Affine, format: Format) -> np.ndarray:
    """Build blocks of Q4_1, Q5_1, or, where every bias is the format's zero times the scale, of Q4_0, Q5_0, Q8_0.

    Parameters
    ----------
    weights : groups of 32.

    Returns
    -------
    array of shape (n, type_size), uint8; n counts groups

    Raises
    ------
    CodecError : a code, scale or bias does not fit; nothing is rounded.
    """
    bits = AFFINE[format.name][0]
    codes = weights.codes.reshape(-1, 32)
    if codes.size and codes.max() >> bits:
        raise CodecError(f"the code {codes.max()} does not fit {format.name}'s {bits} bits")
    records = np.zeros(len(codes), format.dtype)
    records["d"] = _exact_half(weights.scales.reshape(-1), format, "scale")
    if "m" in (format.dtype.names or ()):
        records["m"] = _exact_half(weights.biases.reshape(-1), format, "bias")
    elif not np.array_equal(weights.biases, weights.scales * np.float32(-(1 << (bits - 1)))):
        raise CodecError(f"{format.name} has no place for a bias other than {-(1 << (bits - 1))} scales")
    if bits == 8:
        records["qs"] = (codes ^ 0x80).view(np.int8)
    else:
        records["qs"] = codes[:, :16] & 15 | codes[:, 16:] << 4
    if bits == 5:
        records["qh"] = np.packbits(codes >> 4, axis=1, bitorder="little")
    return records.view(np.uint8).reshape(-1, format.type_size)


def _exact_half(values: np.ndarray, format: Format, what: str) -> np.ndarray:
    with np.errstate(over="ignore"):
        half = values.astype(np.float16)
    if (bad := np.flatnonzero(half.astype(np.float32) != values)).size:
        raise CodecError(f"the {what} {values[bad[0]]:g} is not exact in {format.name}'s float16")
    return half


# -- streams of bits --------------------------------------------------------------------------------------


def pack_codes(codes: np.ndarray, bits: int) -> np.ndarray:
    """Codes as one stream of bits, the first in the lowest bits: MLX's order.

    Parameters
    ----------
    codes : array of shape (…, cols), uint8; cols a multiple of 32.

    Returns
    -------
    array of shape (…, cols · bits / 32), uint32
    """
    shape = (*codes.shape[:-1], codes.shape[-1] * bits // 32)
    if bits == 8:
        return np.ascontiguousarray(codes).view("<u4").reshape(shape)
    if bits == 4:
        return np.ascontiguousarray(codes[..., 0::2] | codes[..., 1::2] << 4).view("<u4").reshape(shape)
    eights = np.zeros(codes.size // 8, "<u8")  # eight codes fill `bits` bytes
    for i in range(8):
        eights |= codes.reshape(-1, 8)[:, i].astype(np.uint64) << np.uint64(i * bits)
    return np.ascontiguousarray(eights.view(np.uint8).reshape(-1, 8)[:, :bits]).reshape(-1).view("<u4").reshape(shape)


def unpack_codes(packed: np.ndarray, bits: int) -> np.ndarray:
    """The inverse of `pack_codes`: array of shape (…, words), uint32 → (…, words · 32 / bits), uint8."""
    shape = (*packed.shape[:-1], packed.shape[-1] * packed.itemsize * 8 // bits)
    data = np.ascontiguousarray(packed).view(np.uint8)
    if bits == 8 or not data.size:
        return data.reshape(shape)
    from ggufkit.formats.codec import frozen
    from ggufkit.formats.streams import unpack_stream

    codes = np.empty((1, prod(shape)), np.uint8)
    unpack_stream(frozen(data.reshape(1, -1)), bits, codes)
    return codes.reshape(shape)
