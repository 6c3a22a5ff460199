"""Metal kernels: what each renders to, and whether its decoder has the numbers of ours.

No Metal is needed: the decoders stay within C, so a C compiler stands in for the GPU where there is one.
"""

from __future__ import annotations

import ctypes
import mmap
import shutil
import subprocess

import numpy as np
import pytest

from ggufkit.formats.codec import decode
from ggufkit.formats.table import FORMATS
from ggufkit.runtime.mlx import metal

# What Metal has and C lacks.
C_PRELUDE = """
#include <stddef.h>
#include <math.h>
typedef unsigned int uint;
typedef unsigned char uchar;
#define device
#define thread
#define constant static const
static float half_of(uint h) {
    int e = h >> 10 & 31, m = h & 1023;
    float x = e == 0 ? ldexpf(m, -24) : e == 31 ? (m ? NAN : INFINITY) : ldexpf(m | 1024, e - 25);
    return h >> 15 & 1 ? -x : x;
}
"""

# A simdgroup's lanes one after the other, from the last to the first, which writes the sums.
C_MAIN = """
typedef struct { uint x, y, z; } uint3;
static float totals[%(n)d];
static int asked;
static float simd_sum(float x) { return totals[asked++] += x; }
static void multiply_one(uint3 thread_position_in_grid, const uchar* blocks, const float* x, float* out) {%(multiply)s}
static void dequantize_one(uint3 thread_position_in_grid, const uchar* blocks, float* out) {%(dequantize)s}
void multiply(const uchar* blocks, const float* x, float* out, uint rows) {
    for (uint row = 0; row < rows; ++row) {
        for (int r = 0; r < %(n)d; ++r) totals[r] = 0;
        for (uint lane = 32; lane-- > 0;) {
            asked = 0;
            multiply_one((uint3){lane, row, 0}, blocks, x, out);
        }
    }
}
void dequantize(const uchar* blocks, float* out, uint eights) {
    for (uint i = 0; i < eights; ++i) dequantize_one((uint3){i, 0, 0}, blocks, out);
}
"""
ROWS, N = 3, 5


def columns_of(format) -> int:
    """Some for all lanes and some for a few."""
    return 3 * 256 if format.block_size == 256 else 9 * max(32, format.block_size)


class Guarded:
    """A copy of an array, at the very end of pages after which nothing may be read or written."""

    def __init__(self, array: np.ndarray):
        page = mmap.PAGESIZE
        size = -(-array.nbytes // page) * page
        self.memory = mmap.mmap(-1, size + page)
        self.whole = np.frombuffer(self.memory, np.uint8)
        start = self.whole.ctypes.data
        assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(start + size), ctypes.c_size_t(page), 0) == 0
        self.array = self.whole[size - array.nbytes : size].view(array.dtype).reshape(array.shape)
        self.array[...] = array
        self.pointer = ctypes.c_void_p(start + size - array.nbytes)


@pytest.fixture(scope="module")
def compiler() -> str:
    found = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if found is None:
        pytest.skip("no C compiler here to stand in for Metal's")
    return found


@pytest.mark.parametrize("name", metal.METAL_FORMATS)
def test_metal_kernels_have_the_numbers_of_decode_and_stay_within_their_arrays(name, compiler, tmp_path):
    format = FORMATS[name]
    cols = columns_of(format)
    bodies = {
        "n": N,
        "multiply": metal.multiply_source(name, cols, ROWS, N),
        "dequantize": metal.dequantize_source(name),
    }
    source = tmp_path / "kernels.c"
    text = C_PRELUDE + metal.LOADS + metal.tables(name) + metal.decoder(name) + C_MAIN % bodies
    source.write_text(text.replace("inline", "static inline"))
    library = tmp_path / "kernels.so"
    # Without contraction, as IEEE says; x86's char is Metal's.
    flags = ["-O1", "-ffp-contract=off", "-fsigned-char", "-Wall", "-Werror", "-shared", "-fPIC"]
    subprocess.run([compiler, *flags, source, "-o", library, "-lm"], check=True)
    kernels, rng = ctypes.CDLL(str(library)), np.random.default_rng(1)

    blocks = Guarded(rng.integers(0, 256, (3000, format.type_size), np.uint8))
    found = Guarded(np.full((3000, format.block_size), 7, np.float32))
    kernels.dequantize(blocks.pointer, found.pointer, ctypes.c_uint(found.array.size // 8))
    np.testing.assert_array_equal(decode(blocks.array.copy(), format), found.array)

    # Without their second bits float16 are finite.
    blocks = Guarded(rng.integers(0, 256, (ROWS, format.row_bytes(cols)), np.uint8) & 0xBF)
    x = Guarded(rng.standard_normal((N, cols)).astype(np.float32))
    found = Guarded(np.full((N, ROWS), 7, np.float32))
    kernels.multiply(blocks.pointer, x.pointer, found.pointer, ctypes.c_uint(ROWS))
    w, values = decode(blocks.array.copy(), format).astype(np.float64), x.array.astype(np.float64)
    assert np.isfinite(w).all()
    assert (np.abs(found.array - values @ w.T) <= 1e-6 * (np.abs(values) @ np.abs(w).T)).all()


@pytest.mark.parametrize("name", metal.METAL_FORMATS)
@pytest.mark.parametrize(("rows", "cols", "n"), [(1, 256, 1), (4096, 2048, 1), (3, 768, 8)])
def test_metal_multiply_is_rendered_for_its_shape(name, rows, cols, n):
    source = metal.multiply_source(name, cols, rows, n)
    assert f"row * {FORMATS[name].row_bytes(cols)}u" in source
    assert f"{name.lower()}_decode(" in source
    assert f"float sums[{n}]" in source
    assert source.count("{") == source.count("}")
    header = metal.header(name)
    assert f"inline void {name.lower()}_decode(" in header
    assert header.count("{") == header.count("}")


@pytest.mark.apple
@pytest.mark.parametrize("name", metal.METAL_FORMATS)
def test_metal_kernels_agree_with_decode(name):
    mx = pytest.importorskip("mlx.core")
    if not mx.metal.is_available():
        pytest.skip("needs Metal")
    from ggufkit.formats.codec import encode

    format, rng = FORMATS[name], np.random.default_rng(2)
    weights = rng.standard_normal((48, 512)).astype(np.float32)
    blocks = encode(weights, format, np.ones(512, np.float32))
    expected = decode(blocks, format)
    np.testing.assert_array_equal(expected, np.array(metal.dequantize(mx.array(blocks), format)))
    x = rng.standard_normal((3, 512)).astype(np.float32)
    found = np.array(metal.multiply(mx.array(x), mx.array(blocks), format))
    np.testing.assert_allclose(x @ expected.T, found, rtol=1e-4, atol=1e-4)
