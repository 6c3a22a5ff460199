"""Four-bit floats with an eight-bit float scale: MXFP4 (32 weights) and NVFP4 (4 times 16 weights).

    level   SEEM    E2M1: 0 0.5 1 1.5 2 3 4 6 and their negatives, doubled to integers here and in GGML
    e       EEEEEEEE    MXFP4's scale, E8M0: 2 to the (e - 127)
    d       0EEEEMMM    NVFP4's scales, UE4M3, at most 448; real files multiply a scale for the tensor on top

llama.cpp does not use importance for them. Source: quantize_row_mxfp4_ref and quantize_row_nvfp4_ref of
ggml-quants.c, ggml_e8m0_to_fp32_half and ggml_fp32_to_ue4m3 of ggml-impl.h.
"""

from __future__ import annotations

import numpy as np

from ggufkit.kernels.blocks import read_long
from ggufkit.kernels.jit import helper, kernel
from ggufkit.kernels.lanes import (
    bytes_i32,
    f32_bits,
    fabs,
    flat,
    highest,
    lane,
    load,
    maximum,
    permute,
    select,
    splat,
    store,
    store_out,
    view,
)

ZERO = np.float32(0)

# Twice the value of each level.
DOUBLED = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.float32)


def _scales_of_ue4m3() -> np.ndarray:
    """Half the value of each UE4M3 byte (levels are doubled); 0x7F, a NaN, counts as 0."""
    bytes_ = np.arange(256)
    exponent, mantissa = (bytes_ >> 3) & 15, bytes_ & 7
    values = np.where(exponent > 0, (8 + mantissa) * np.exp2(exponent - 10.0), mantissa * 2.0**-9)
    values[0x7F] = 0
    return (values / 2).astype(np.float32)


def _floats_rounded_up() -> np.ndarray:
    """How many of the largest floats below 2**k have a float32 logarithm of k; entry k + 149."""
    k = np.arange(-149, 129)[:, None]
    logarithm = k + np.log2(1 - np.arange(1, 65) * 2.0**-24)
    return (logarithm.astype(np.float32) == k).sum(1).astype(np.int32)


HALF_E8M0 = np.exp2(np.arange(256) - 128.0).astype(np.float32)
UE4M3 = _scales_of_ue4m3()
ROUNDED_UP = _floats_rounded_up()


@helper
def nearest_levels(v, d):
    """The level of each of 16 weights for scale `d`; of two equally near ones the smaller.

    Distances are compared as the reference does, in float32, so weights far beyond 12 d come out the same, too.
    """
    magnitude = fabs(v)
    level, nearest = splat(np.int32(0)), magnitude
    for i in range(1, 8):
        distance = fabs(splat(DOUBLED[i] * d) - magnitude)
        closer = distance < nearest
        nearest = select(closer, distance, nearest)
        level = select(closer, splat(np.int32(i)), level)
    negative = (v < splat(ZERO)) & (level > splat(np.int32(0)))
    return select(negative, level | splat(np.int32(8)), level)


# ---- MXFP4 ------------------------------------------------------------------------------------------------------


@helper
def e8m0_of(bits):
    """⌊log2f(w)⌋ + 125 in a byte, for the bits of w = max |w| > 0; log2f rounds up just below powers of two."""
    exponent, mantissa = (bits >> 23) - 127, bits & 0x7FFFFF
    if exponent > -127:
        mantissa |= 0x800000
    else:
        exponent = -126
        while mantissa < 0x800000:  # a subnormal
            mantissa, exponent = 2 * mantissa, exponent - 1
    if 0x1000000 - mantissa <= ROUNDED_UP[exponent + 150]:
        exponent += 1
    return (exponent + 125) & 255


@kernel
def mxfp4_encode(x, out):
    """e = ⌊log2 max |w|⌋ - 2, so that the largest weight is between 4 and 8 times the scale.

    For a largest weight around 2⁻¹²⁶ the reference writes e = 255, a NaN that its own check refuses, and levels 0;
    here e is 0 then. Everything else, wrapped exponents of subnormals included, is the reference's.

    qs[j]   BBBBAAAA    A = level of weight j, B = level of weight j + 16
    """
    values, data = flat(x), flat(out)
    for block in range(values.size // 32):
        at, to = block * 32, block * 17
        low, high = load(values, at), load(values, at + 16)
        bits = highest(f32_bits(maximum(fabs(low), fabs(high))))
        e = e8m0_of(np.int64(bits)) if bits > 0 else 0
        d = HALF_E8M0[e]
        data[to] = e if e < 255 else 0
        store(data, to + 1, nearest_levels(low, d) | (nearest_levels(high, d) << splat(np.int32(4))))


@kernel
def mxfp4_decode(blocks, out):
    """blocks: (n, 17) uint8; out: (n, 32) float32."""
    data, values = flat(blocks), flat(out)
    table = load(DOUBLED, 0)
    for block in range(blocks.shape[0]):
        at, to = block * 17, block * 32
        d = splat(HALF_E8M0[data[at]])
        pairs = load(data, at + 1)
        store_out(values, to, permute(table, pairs & splat(np.int32(15))) * d)
        store_out(values, to + 16, permute(table, pairs >> splat(np.int32(4))) * d)


# ---- NVFP4 ------------------------------------------------------------------------------------------------------


@helper
def ue4m3_of(value, bits):
    """The UE4M3 nearest to `value`, whose bits are given; ties up. From 248 on the reference takes the largest, 448."""
    exponent = (bits >> 23) - 120
    if exponent <= 0:
        return min(int(value * np.float32(512) + np.float32(0.5)), 7)
    rounded = (exponent << 3) + ((((bits >> 19) & 15) + 1) >> 1)
    return rounded if rounded < 0x78 else 0x7E


@kernel
def nvfp4_encode(x, out):
    """Scale s = max |w| / 6 of weights 16 s to 16 s + 15.

    qs[8 s + j]   BBBBAAAA    A = level of weight 16 s + j, B = level of weight 16 s + j + 8
    """
    values, data = flat(x), flat(out)
    levels, packed = np.empty(64, np.uint8), np.empty(32, np.uint8)
    eights, words = view(levels, np.uint64), view(packed, np.uint64)
    for block in range(values.size // 64):
        at, to = block * 64, block * 36
        for s in range(4):
            v = load(values, at + 16 * s)
            scale = splat(highest(fabs(v)) / np.float32(6))
            e = ue4m3_of(lane(scale, 0), np.int64(lane(f32_bits(scale), 0)))
            data[to + s] = e
            store(levels, 16 * s, nearest_levels(v, UE4M3[e]))
        for s in range(4):
            words[s] = eights[2 * s] | eights[2 * s + 1] << np.uint64(4)
        store(data, to + 4, load(packed, 0))
        store(data, to + 20, load(packed, 16))


@kernel
def nvfp4_decode(blocks, out):
    """blocks: (n, 36) uint8; out: (n, 64) float32."""
    data, values = flat(blocks), flat(out)
    table, nibble = load(DOUBLED, 0), np.uint64(0x0F0F0F0F0F0F0F0F)
    for block in range(blocks.shape[0]):
        at, to = block * 36, block * 64
        for s in range(4):
            pairs = read_long(data, at + 4 + 8 * s)
            levels = bytes_i32(pairs & nibble, (pairs >> np.uint64(4)) & nibble)
            store_out(values, to + 16 * s, permute(table, levels) * splat(UE4M3[data[at + s]]))
