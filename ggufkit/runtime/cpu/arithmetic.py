"""Sums, differences, products and quotients of arrays, whose shapes are brought together as NumPy does.

    layout = lay_out(x, y)                                   # arrays that broadcast to one shape
    KERNELS["add"](*layout, out)                             # out flat, as many numbers as that shape has

Each number is rounded once, as IEEE 754 has it: the bits are NumPy's.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided

from ggufkit.kernels.jit import inlined, kernel, specialised
from ggufkit.kernels.lanes import load, multiply_add, splat, sum_lanes

__all__ = ["KERNELS", "copy_columns", "inner", "lay_out"]

_DIMENSIONS = 4
ZERO = np.float32(0)


def lay_out(x: np.ndarray, y: np.ndarray) -> tuple[Any, ...] | None:
    """What kernels take of two arrays: x flat, its strides, y flat, its strides, the shape of both together.

    Dimensions along which all lies evenly are made one; None if more than four are left.
    """
    shape = np.broadcast_shapes(x.shape, y.shape)
    strides = [[stride // array.itemsize for stride in np.broadcast_to(array, shape).strides] for array in (x, y)]
    sizes: list[int] = []
    steps: list[tuple[int, int]] = []
    for size, *step in zip(shape, *strides, strict=True):
        if size == 1:
            continue
        if steps and all(before == now * size for before, now in zip(steps[-1], step, strict=True)):
            sizes[-1], steps[-1] = sizes[-1] * size, (step[0], step[1])
        else:
            sizes.append(size)
            steps.append((step[0], step[1]))
    if len(sizes) > _DIMENSIONS:
        return None
    missing = _DIMENSIONS - len(sizes)
    sizes, steps = [1] * missing + sizes, [(0, 0)] * missing + steps
    found: list[Any] = []
    for which, array in enumerate((x, y)):
        own = tuple(step[which] for step in steps)
        extent = 1 + sum((size - 1) * step for size, step in zip(sizes, own, strict=True))
        found += [as_strided(array, (extent,), (array.itemsize,), writeable=False), own]
    return (*found, tuple(sizes))


apply: Any  # another one in each kernel


def _combine(x, x_strides, y, y_strides, shape, out):
    at, step, other = 0, x_strides[3], y_strides[3]
    for a in range(shape[0]):
        for b in range(shape[1]):
            for c in range(shape[2]):
                i = a * x_strides[0] + b * x_strides[1] + c * x_strides[2]
                j = a * y_strides[0] + b * y_strides[1] + c * y_strides[2]
                if step == 1 and other == 1:
                    for d in range(shape[3]):
                        out[at + d] = apply(x[i + d], y[j + d])  # noqa: F821
                elif step == 1 and other == 0:
                    for d in range(shape[3]):
                        out[at + d] = apply(x[i + d], y[j])  # noqa: F821
                else:
                    for d in range(shape[3]):
                        out[at + d] = apply(x[i + d * step], y[j + d * other])  # noqa: F821
                at += shape[3]


@inlined
def _sum(x, y):
    return x + y


@inlined
def _difference(x, y):
    return x - y


@inlined
def _product(x, y):
    return x * y


@inlined
def _quotient(x, y):
    return x / y


# NumPy's name → kernel.
KERNELS = {
    "add": specialised(_combine, "add", __file__, apply=_sum),
    "subtract": specialised(_combine, "subtract", __file__, apply=_difference),
    "multiply": specialised(_combine, "multiply", __file__, apply=_product),
    "divide": specialised(_combine, "divide", __file__, apply=_quotient),
}


@kernel
def copy_columns(x, x_width, start, out, out_width, out_start, columns):
    """Columns `start …` of rows of `x_width` numbers to columns `out_start …` of rows of `out_width`; both flat."""
    for row in range(x.shape[0] // x_width):
        i, j = row * x_width + start, row * out_width + out_start
        for k in range(columns):
            out[j + k] = x[i + k]


@kernel
def inner(x, y, size, out):
    """Σ x y over each run of `size` numbers; flat arrays."""
    whole = size // 16 * 16
    for row in range(out.shape[0]):
        base = row * size
        total, rest = splat(ZERO), ZERO
        for i in range(0, whole, 16):
            total = multiply_add(load(x, base + i), load(y, base + i), total)
        for i in range(whole, size):
            rest += x[base + i] * y[base + i]
        out[row] = sum_lanes(total) + rest
