"""`mx.fast.metal_kernel` without Metal: sources compiled as C++, the 32 lanes of a simdgroup as coroutines.

Every index into an array is checked. Lanes take turns at each shuffle, so a shuffle that not all of them reach shows as
wrong numbers.
"""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path

import numpy as np

__all__ = ["Kernels"]

_SHIM = """
#include <cmath>
#include <cstddef>
#include <cstdlib>
#include <ucontext.h>
using std::exp;
typedef unsigned int uint;
struct uint3 { uint x, y, z; };

static const uint LANES = 32;
static ucontext_t lanes[LANES], caller;
static uint now;
static float slots[2][LANES];
static uint turns[LANES];
static long beyond;

template <class T> struct Array {
    T* numbers; size_t count; mutable T nowhere;
    T& operator[](size_t i) const { if (i < count) return numbers[i]; ++beyond; return nowhere = T(); }
};

static void yield() {
    uint own = now;
    now = (own + 1) %% LANES;
    swapcontext(&lanes[own], &lanes[now]);
}

static float simd_shuffle_xor(float x, uint mask) {
    uint own = now, turn = turns[own]++ & 1;
    slots[turn][own] = x;
    yield();
    return slots[turn][own ^ mask];
}

static Array<float> arrays[%(count)d];
static int n;
static uint3 thread_position_in_grid_of[LANES];

static void body() {
    const uint3 thread_position_in_grid = thread_position_in_grid_of[now];
%(names)s
    {%(source)s}
    // The last lane to end goes back; the others pass on.
    if (now == LANES - 1) setcontext(&caller);
    ++now;
    setcontext(&lanes[now]);
}

extern "C" long run(float** numbers, const size_t* counts, int tokens, const uint* grid) {
    static char stacks[LANES][1 << 16];
    for (int i = 0; i < %(count)d; ++i) arrays[i] = {numbers[i], counts[i], 0};
    n = tokens;
    beyond = 0;
    for (uint z = 0; z < grid[2]; ++z)
        for (uint y = 0; y < grid[1]; ++y) {
            for (uint l = 0; l < LANES; ++l) {
                getcontext(&lanes[l]);
                lanes[l].uc_stack.ss_sp = stacks[l];
                lanes[l].uc_stack.ss_size = sizeof stacks[l];
                lanes[l].uc_link = &caller;
                turns[l] = 0;
                thread_position_in_grid_of[l] = {l, y, z};
                makecontext(&lanes[l], body, 0);
            }
            now = 0;
            swapcontext(&caller, &lanes[0]);
        }
    return beyond;
}
"""


class Kernels:
    """Makes kernels as MLX does.

    Parameters
    ----------
    compiler : of C++.
    folder : for what it makes.
    """

    def __init__(self, compiler: str, folder: Path):
        self.compiler, self.folder = compiler, folder
        self.calls: list[str] = []

    def __call__(self, *, name: str, input_names: list[str], output_names: list[str], source: str):
        *inputs, tokens = input_names
        assert tokens == "n"
        names = [*inputs, *output_names]
        taken = "\n".join(f"    auto& {name} = arrays[{i}];" for i, name in enumerate(names))
        path = self.folder / f"{name}.cpp"
        path.write_text(_SHIM % {"count": len(names), "names": taken, "source": source})
        flags = ["-O1", "-ffp-contract=off", "-Wall", "-Werror", "-Wno-unused-variable", "-shared", "-fPIC"]
        subprocess.run([self.compiler, *flags, path, "-o", path.with_suffix(".so")], check=True)
        library = ctypes.CDLL(str(path.with_suffix(".so")))
        library.run.restype = ctypes.c_long

        def call(*, inputs, grid, threadgroup, output_shapes, output_dtypes):
            import mlx.core as mx

            *given, tokens = inputs
            assert grid[0] == threadgroup[0] == 32
            assert set(output_dtypes) == {mx.float32}
            self.calls.append(name)
            arrays = [np.ascontiguousarray(np.array(x), np.float32) for x in given]
            # What a kernel does not write is seen.
            arrays += [np.full(shape, np.nan, np.float32) for shape in output_shapes]
            pointers = (ctypes.c_void_p * len(arrays))(*(array.ctypes.data for array in arrays))
            counts = (ctypes.c_size_t * len(arrays))(*(array.size for array in arrays))
            assert library.run(pointers, counts, tokens, (ctypes.c_uint * 3)(*grid)) == 0
            return [mx.array(array) for array in arrays[len(given) :]]

        return call
