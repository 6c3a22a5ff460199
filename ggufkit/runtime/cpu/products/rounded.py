"""F16 and BF16 the way GGML multiplies them: activations rounded to the weights' type, sums in its order.

`floats` keeps activations float32, which is nearer to what the model means. Where numbers are compared with
llama.cpp's, though, one activation that is rounded to the other side moves all that follow: importance matrices of a
BF16 model differ by more than 10⁻⁴ between its own builds for different CPUs. These products add as the build for
AVX-512 does, on any CPU: of every 32 columns, lane k of a sum takes two,

    F16     k, then 16 + k
    BF16    2 k + 1, then 2 k          as vdpbf16ps does

each with one rounding, and at the end halves are added to halves. Activations lie in that order (see `rounded`).

Source: tinyBLAS in ggml/src/ggml-cpu/llamafile/sgemm.cpp.
"""

from __future__ import annotations

import numpy as np

from ggufkit.kernels.jit import inlined, specialised
from ggufkit.kernels.lanes import LANES, bits_f32, fma, load, load_half, splat, sum_lanes
from ggufkit.kernels.shares import take
from ggufkit.runtime.cpu.products import Product

__all__ = ["COLUMNS", "PRODUCTS"]

COLUMNS = 32  # taken together: rows must be a multiple long

_CACHED = 1 << 17  # weights that stay in a core's cache while all activations pass by
_ZERO = np.float32(0)

# Bound by each format.
DTYPE = np.uint16
pair_at = load


def matrix(turn, data, rows, x, out):
    """out[t, r] = row r · x[t]. data: flat bytes; x: (tokens, cols) float32, tokens a multiple of 4; out: (n, rows).

    Four tokens meet two rows of weights.
    """
    weights, values, cols = data.view(DTYPE), x.reshape(-1), x.shape[1]
    grain = max(_CACHED // cols, 2) // 2 * 2
    first = take(turn, grain)
    while first < rows:
        for t in range(0, x.shape[0], 4):
            for r in range(first, min(first + grain, rows), 2):
                s = min(r + 1, rows - 1)
                a = b = c = d = splat(_ZERO), splat(_ZERO)
                for i in range(0, cols, COLUMNS):
                    p, q = pair_at(weights, r * cols + i), pair_at(weights, s * cols + i)
                    a = _add(a, p, q, values, t * cols + i)
                    b = _add(b, p, q, values, (t + 1) * cols + i)
                    c = _add(c, p, q, values, (t + 2) * cols + i)
                    d = _add(d, p, q, values, (t + 3) * cols + i)
                for k, sums in enumerate((a, b, c, d)):
                    if t + k < out.shape[0]:
                        out[t + k, r], out[t + k, s] = sum_lanes(sums[0]), sum_lanes(sums[1])
        first = take(turn, grain)


@inlined
def _add(sums, p, q, values, at):
    """Add the products of 32 activations with those of two rows."""
    x, y = load(values, at), load(values, at + LANES)
    return fma(p[1], y, fma(p[0], x, sums[0])), fma(q[1], y, fma(q[0], x, sums[1]))


@inlined
def _f16_pair(weights, at):
    return load_half(weights, at), load_half(weights, at + LANES)


@inlined
def _bf16_pair(weights, at):
    both = load(weights, at >> 1)
    return bits_f32(both & splat(np.int32(-65536))), bits_f32(both << splat(np.int32(16)))


def _product_of(name: str, dtype: type, pair: object) -> Product:
    run = specialised(matrix, f"{name.lower()}_matrix", __file__, DTYPE=dtype, pair_at=pair)
    return Product(run, run, run, name)


PRODUCTS = {
    "F16": _product_of("F16", np.uint16, _f16_pair),
    "BF16": _product_of("BF16", np.int32, _bf16_pair),  # two at a time
}
