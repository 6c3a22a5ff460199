"""What the IQ encoders share: rounding, and the search for the nearest rows of a codebook."""

from __future__ import annotations

import numpy as np

from ggufkit.kernels.jit import kernel
from ggufkit.kernels.lanes import f32_bits, splat


@kernel
def nearest_code(x):
    """GGML's `nearest_int` in lanes, bit for bit: adds 1.5 · 2²³ and reads the mantissa, whatever x is.

    Rounds to nearest, ties to even, for |x| < 2²². Infinities give -2²² and NaN 0, which matters where a scale of
    almost nothing overflows in its inverse.
    """
    bits = f32_bits(x + splat(np.float32(12582912.0)))
    return (bits & splat(np.int32(0x007FFFFF))) - splat(np.int32(0x00400000))
