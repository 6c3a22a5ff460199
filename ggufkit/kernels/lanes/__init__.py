"""Sixteen lanes: SIMD vector types for kernels.

The reference's searches add floats in a fixed order, which no compiler may change, so within one block they run
one weight at a time. Blocks do not depend on one another, though: with block k in lane k of a vector, every lane
performs the very same float32 operations in the very same order, and one instruction does sixteen blocks' work.

    f32x16    <16 x float>    + - * /   < <= > >= == !=   minimum maximum fabs sqrt select highest lowest permute
    i32x16    <16 x i32>      + - *  & | ^ << >>   < <= > >= == !=   minimum maximum select highest lowest total
    mask16    <16 x i1>       & | ~   any_lane all_lanes first_lane mask_bits bits_mask

LLVM splits a vector into what the CPU has (1 zmm, 2 ymm, 4 NEON registers), so one source serves every machine.
Without fast-math flags nothing is reordered or contracted into FMA: each CPU gives the same bits.

Memory is addressed as `array, index`: a C-contiguous array and the index of its element in lane 0.
"""

from __future__ import annotations

from ggufkit.kernels.lanes.across import (
    all_lanes,
    any_lane,
    bits_mask,
    bytes_i32,
    first_bit,
    first_lane,
    highest,
    lane_numbers,
    lowest,
    mask_bits,
    permute,
    sum_lanes,
    swap_neighbours,
    total,
)
from ggufkit.kernels.lanes.arithmetic import (
    bits_f32,
    f32_bits,
    fabs,
    fma,
    lane,
    maximum,
    minimum,
    multiply_add,
    nearest_int,
    rolled,
    round_away,
    select,
    splat,
    sqrt,
    to_f32,
    to_i32,
)
from ggufkit.kernels.lanes.emit import LANES
from ggufkit.kernels.lanes.halves import float_to_half, half_to_float, load_half, splat_half, store_half
from ggufkit.kernels.lanes.memory import (
    flat,
    gather,
    in_rows,
    load,
    store,
    store_out,
    store_past,
    transpose,
    untranspose,
    view,
)
from ggufkit.kernels.lanes.types import f32x16, i32x16, mask16

__all__ = [
    "LANES",
    "all_lanes",
    "any_lane",
    "bits_f32",
    "bits_mask",
    "bytes_i32",
    "f32_bits",
    "f32x16",
    "fabs",
    "first_bit",
    "first_lane",
    "flat",
    "float_to_half",
    "fma",
    "gather",
    "half_to_float",
    "highest",
    "i32x16",
    "in_rows",
    "lane",
    "lane_numbers",
    "load",
    "load_half",
    "lowest",
    "mask16",
    "mask_bits",
    "maximum",
    "minimum",
    "multiply_add",
    "nearest_int",
    "permute",
    "rolled",
    "round_away",
    "select",
    "splat",
    "splat_half",
    "sqrt",
    "store",
    "store_half",
    "store_out",
    "store_past",
    "sum_lanes",
    "swap_neighbours",
    "to_f32",
    "to_i32",
    "total",
    "transpose",
    "untranspose",
    "view",
]
