"""Metal kernels: what each renders to, and whether its decoder has the numbers of ours.

No Metal is needed: the decoders stay within C, so a C compiler stands in for the GPU where there is one.
"""

from __future__ import annotations

import ctypes
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

C_MAIN = """
void dequantize(const uchar* blocks, float* out, size_t eights, int block_size, int type_size) {
    for (size_t i = 0; i < 8 * eights; i += 8)
        %s_decode(blocks + i / block_size * type_size, i %% block_size, out + i);
}
"""


@pytest.fixture(scope="module")
def compiler() -> str:
    found = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if found is None:
        pytest.skip("no C compiler here to stand in for Metal's")
    return found


@pytest.mark.parametrize("name", metal.METAL_FORMATS)
def test_metal_decoder_has_the_numbers_of_decode(name, compiler, tmp_path):
    source = tmp_path / "decoder.c"
    text = C_PRELUDE + metal.LOADS + metal.tables(name) + metal.decoder(name) + C_MAIN % name.lower()
    source.write_text(text.replace("inline", "static inline"))
    library = tmp_path / "decoder.so"
    # Without contraction, as IEEE says; x86's char is Metal's.
    flags = ["-O1", "-ffp-contract=off", "-fsigned-char", "-Wall", "-Werror", "-shared", "-fPIC"]
    subprocess.run([compiler, *flags, source, "-o", library, "-lm"], check=True)

    format = FORMATS[name]
    blocks = np.random.default_rng(1).integers(0, 256, (3000, format.type_size), np.uint8)
    found = np.empty((3000, format.block_size), np.float32)
    ctypes.CDLL(str(library)).dequantize(
        ctypes.c_void_p(blocks.ctypes.data),
        ctypes.c_void_p(found.ctypes.data),
        ctypes.c_size_t(found.size // 8),
        format.block_size,
        format.type_size,
    )
    np.testing.assert_array_equal(decode(blocks, format), found)


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
