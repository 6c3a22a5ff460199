"""The Walsh–Hadamard transform in lanes.

    half 1, 2, 4, 8     within a vector: a lane and the one whose number differs in one bit
    half 16, 32, …      between vectors: sums and differences

Every step is a + b and a − b, so all CPUs and both orders of the steps give the same bits.
"""

from __future__ import annotations

from llvmlite import ir
from numba.extending import intrinsic

from ggufkit.kernels.jit import inlined
from ggufkit.kernels.lanes import LANES, f32x16, load, store

__all__ = ["hadamard16", "transform"]


@intrinsic
def hadamard16(typingctx, x):
    """The transform of sixteen lanes, not scaled."""

    def emit(ctx, b, sig, args):
        value = args[0]
        undefined = ir.Constant(f32x16.llvm, ir.Undefined)
        for half in (1, 2, 4, 8):
            order = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [k ^ half for k in range(LANES)])
            signs = ir.Constant(f32x16.llvm, [-1.0 if k & half else 1.0 for k in range(LANES)])
            value = b.fadd(b.shuffle_vector(value, undefined, order), b.fmul(value, signs))
        return value

    return f32x16(f32x16), emit


@inlined
def _four(x, at, apart):
    """Two steps at once, for the vectors at `at` and three more, `apart` numbers apart."""
    a, b, c, d = load(x, at), load(x, at + apart), load(x, at + 2 * apart), load(x, at + 3 * apart)
    a, b, c, d = a + b, a - b, c + d, c - d
    store(x, at, a + c)
    store(x, at + apart, b + d)
    store(x, at + 2 * apart, a - c)
    store(x, at + 3 * apart, b - d)


@inlined
def transform(x, at, size):
    """Replace `x[at : at + size]` by its transform, not scaled; `size` is a power of two from 16 on."""
    end = at + size
    for i in range(at, end, 16):
        store(x, i, hadamard16(load(x, i)))
    half = 16
    while 4 * half <= size:
        for lo in range(at, end, 4 * half):
            for i in range(lo, lo + half, 16):
                _four(x, i, half)
        half *= 4
    if half < size:
        for i in range(at, at + half, 16):
            a, b = load(x, i), load(x, i + half)
            store(x, i, a + b)
            store(x, i + half, a - b)
