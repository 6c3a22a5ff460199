"""GGUF blocks as MLX's quantized arrays, and as float32 where MLX has none.

    mode     bits  group   formats                                  w in MLX
    affine   4     32      Q4_0 Q4_1 Q4_K                           scale · code + bias
    affine   5     32      Q5_0 Q5_1 Q5_K
    affine   8     32      Q8_0
    affine   2     64      Q2_0
    affine   2     128     TQ1_0 TQ2_0 Q1_0
    mxfp4    4     32      MXFP4                                    2^(scale - 127) · e2m1
    nvfp4    4     16      NVFP4                                    e4m3 scale · e2m1

Nothing is rounded when scales and biases are float32: then MLX's numbers are GGML's, bit for bit. Formats whose scales
are float16 in the file (all affine ones but Q4_K and Q5_K) keep them exactly in float16 as well, unless a bias such as
-8 d overflows; MLX then rounds each weight to float16 where it decodes into that type. bfloat16 has 8 bits of
mantissa and keeps none of them exactly.

Q2_K, Q3_K, Q6_K and the IQ formats have scales for groups of 16 or codebooks, for which MLX has no arrays: they stay
blocks (see `metal`, and `decode` for devices without Metal).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ggufkit.formats.affine import AFFINE, pack_codes, split
from ggufkit.formats.table import Format

__all__ = ["QUANTIZED", "Quantized", "quantize_mode", "repack"]

# format → MLX's (mode, bits, group size)
QUANTIZED: dict[str, tuple[str, int, int]] = {
    **{name: ("affine", bits, group) for name, (bits, group) in AFFINE.items()},
    "MXFP4": ("mxfp4", 4, 32),
    "NVFP4": ("nvfp4", 4, 16),
}

# NVFP4: the e4m3 code that GGML reads as 480 and MLX as NaN.
_E4M3_NAN = 0x7F


@dataclass(frozen=True)
class Quantized:
    """A matrix as MLX has it.

    Attributes
    ----------
    mode : ``"affine"``, ``"mxfp4"`` or ``"nvfp4"``.
    bits : a code.
    group_size : weights a scale.
    codes : array of shape (rows, cols · bits / 32), uint32.
    scales : array of shape (rows, cols / group_size); float16 or float32, for mxfp4 and nvfp4 uint8.
    biases : the same shape and type; None unless affine.
    """

    mode: str
    bits: int
    group_size: int
    codes: np.ndarray
    scales: np.ndarray
    biases: np.ndarray | None


def quantize_mode(format: Format) -> tuple[str, int, int] | None:
    """MLX's (mode, bits, group size) for a format, or None where it has no arrays for it."""
    return QUANTIZED.get(format.name)


def repack(blocks: np.ndarray, format: Format, *, exact: bool = True) -> Quantized | None:
    """Rows of blocks as MLX's arrays; None where an NVFP4 scale is 480, which MLX's have no code for.

    Parameters
    ----------
    blocks : array of shape (rows, row_bytes), uint8.
    format : one of `QUANTIZED`.
    exact : float32 scales always; otherwise float16 where it holds all of them exactly.
    """
    mode, bits, group = QUANTIZED[format.name]
    rows = len(blocks)
    if mode == "affine":
        affine = split(blocks, format)
        cols = affine.codes.size // max(rows, 1)
        scales, biases = affine.scales.reshape(rows, -1), affine.biases.reshape(rows, -1)
        if not exact and (halves := _as_halves(scales, biases)) is not None:
            scales, biases = halves
        return Quantized(mode, bits, group, pack_codes(affine.codes.reshape(rows, cols), bits), scales, biases)
    records = np.ascontiguousarray(blocks).view(format.dtype)  # (rows, blocks per row)
    if mode == "mxfp4":
        scales, qs = records["e"], records["qs"]  # a byte holds weights i and i + 16 of 32
    else:
        scales = records["d"].reshape(rows, -1) & _E4M3_NAN  # GGML's have no sign
        if (scales == _E4M3_NAN).any():
            return None
        qs = records["qs"].reshape(rows, -1, 8)  # weights i and i + 8 of 16
    codes = np.concatenate((qs & 15, qs >> 4), axis=-1).reshape(rows, -1)
    return Quantized(mode, bits, group, pack_codes(codes, bits), np.ascontiguousarray(scales), None)


def _as_halves(*arrays: np.ndarray) -> tuple[np.ndarray, ...] | None:
    """The arrays as float16 if that holds all of them exactly."""
    with np.errstate(over="ignore"):
        halves = tuple(a.astype(np.float16) for a in arrays)
    if all(np.array_equal(a, h.astype(np.float32)) for a, h in zip(arrays, halves, strict=True)):
        return halves
    return None
