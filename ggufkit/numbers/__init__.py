"""Eight-bit numbers as GPUs and checkpoints have them: FP8 in its kinds, INT8 in its granularities.

    from ggufkit import numbers

    codes = numbers.encode(x, "E4M3")                  # uint8, clamped to ±448
    numbers.decode(codes, "E4M3")                      # float32
    w = numbers.quantize_int8(weights, "row")          # codes, scales
    a = numbers.quantize_int8(activations, "token")
    numbers.multiply_int8(a, w)                        # activations @ weights.T, summed in int32

    floats      E4M3, E5M2, their FNUZ kinds, E3M4, E8M0, UE4M3, E2M1: every code, ties, saturation
    integers    INT8: per tensor, row, token or block; symmetric or affine; by maximum, percentile or least error
    product     W8A8
    noise       how far each is from what it stands for, in decibels

GGUF's block formats are in `ggufkit.formats`; these have no place in a GGUF, but Q8_0 is INT8 in blocks of 32.
"""

from ggufkit.numbers.floats import FLOATS, SmallFloat, decode, encode
from ggufkit.numbers.integers import Int8, quantize_int8, static_scale
from ggufkit.numbers.noise import decibels, noise_table
from ggufkit.numbers.product import multiply_int8

__all__ = [
    "FLOATS",
    "Int8",
    "SmallFloat",
    "decibels",
    "decode",
    "encode",
    "multiply_int8",
    "noise_table",
    "quantize_int8",
    "static_scale",
]
