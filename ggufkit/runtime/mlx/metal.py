"""Metal kernels for the block formats that MLX has no arrays for: codebooks, and scales for groups of 16.

The weights stay GGML blocks in memory. Two kernels per format, rendered around its decoder (`formats.*.metal`):

    multiply     one simdgroup a row of the matrix; lane t takes the eights t, t + 32, … of the row, keeps a sum for
                 each row of x, and `simd_sum` adds the 32 lanes up. For a few rows of x.
    dequantize   one thread for eight weights. For many rows of x, followed by a matrix product.

MLX compiles the source when a kernel is first called. Everything here but the last call works without a GPU.
"""

from __future__ import annotations

import zlib
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from ggufkit.formats.table import FORMATS, Format

if TYPE_CHECKING:
    import mlx.core as mx

__all__ = ["MAX_ROWS", "METAL_FORMATS", "decoder", "dequantize", "header", "multiply", "multiply_source", "tables"]

# Rows of x that `multiply` takes at once: as many sums per thread keeps in registers.
MAX_ROWS = 8

_HELPERS = """
inline float half_of(uint bits) { return (float)as_type<half>((ushort)bits); }
"""

# Also C, like the decoders.
LOADS = """
inline uint load_u16(device const uchar* b) { return (uint)b[0] | (uint)b[1] << 8; }
inline float load_half(device const uchar* b) { return half_of(load_u16(b)); }
"""


@cache
def _decoders() -> dict[str, str]:
    from ggufkit.formats.iquants import metal as iquants
    from ggufkit.formats.kquants import metal as kquants

    return {**kquants.DECODE, **iquants.DECODE}


METAL_FORMATS = tuple(_decoders())


def decoder(name: str) -> str:
    """Source of ``<format>_decode``: eight weights of a block."""
    return _decoders()[name]


@cache
def tables(name: str) -> str:
    """The codebook of a format as constants of Metal, or nothing where it has none."""
    from ggufkit.formats.iquants.grids import codebook
    from ggufkit.formats.iquants.iq4 import LEVELS
    from ggufkit.formats.iquants.metal import CODEBOOKS

    if name.startswith("IQ4"):
        return _table("iq4_values", LEVELS)
    if (book := CODEBOOKS.get(name)) is None:
        return ""
    return _table(f"grid_{book.lower()}", codebook(book).reshape(-1))


def _table(name: str, values: np.ndarray) -> str:
    numbers = ", ".join(str(int(v)) for v in values)
    return f"constant char {name}[{len(values)}] = {{{numbers}}};\n"


@cache
def header(name: str) -> str:
    """Everything that a kernel of the format calls."""
    return _HELPERS + LOADS + tables(name) + decoder(name)


@cache
def multiply_source(name: str, cols: int, rows: int, n: int) -> str:
    """Body of the kernel for x of `n` rows times a matrix of shape (rows, cols), transposed.

    Inputs ``blocks`` (rows · row_bytes) uchar and ``x`` (n, cols) float; output ``out`` (n, rows) float.
    """
    format = FORMATS[name]
    return f"""
    uint row = thread_position_in_grid.y, lane = thread_position_in_grid.x;
    if (row >= {rows}u) return;
    device const uchar* b = blocks + (size_t)row * {format.row_bytes(cols)}u;
    float sums[{n}] = {{0}};
    float w[8];
    for (uint i = 8 * lane; i < {cols}u; i += 256) {{
        {name.lower()}_decode(b + i / {format.block_size}u * {format.type_size}u, (int)(i % {format.block_size}u), w);
        for (int r = 0; r < {n}; ++r) {{
            device const float* v = x + (size_t)r * {cols}u + i;
            float s = sums[r];
            for (int k = 0; k < 8; ++k) s += w[k] * v[k];
            sums[r] = s;
        }}
    }}
    for (int r = 0; r < {n}; ++r) {{
        float s = simd_sum(sums[r]);
        if (lane == 0) out[(size_t)r * {rows}u + row] = s;
    }}
"""


@cache
def dequantize_source(name: str) -> str:
    """Body of the kernel that decodes eight weights: ``blocks`` uchar → ``out`` float."""
    format = FORMATS[name]
    return f"""
    size_t i = (size_t)thread_position_in_grid.x * 8;
    float w[8];
    {name.lower()}_decode(blocks + i / {format.block_size}u * {format.type_size}u, (int)(i % {format.block_size}u), w);
    for (int k = 0; k < 8; ++k) out[i + k] = w[k];
"""


@cache
def _kernel(name: str, inputs: tuple[str, ...], source: str) -> Any:
    import mlx.core as mx

    return mx.fast.metal_kernel(
        name=f"ggufkit_{name.lower()}_{zlib.crc32(source.encode()):08x}",
        input_names=list(inputs),
        output_names=["out"],
        source=source,
        header=header(name),
    )


def multiply(x: mx.array, blocks: mx.array, format: Format) -> mx.array:
    """x (n, cols) float32, n ≤ `MAX_ROWS`; blocks (rows, row_bytes) uint8 → (n, rows) float32."""
    import mlx.core as mx

    n, cols = x.shape
    rows = blocks.shape[0]
    kernel = _kernel(format.name, ("blocks", "x"), multiply_source(format.name, cols, rows, n))
    (out,) = kernel(
        inputs=[blocks, x],
        grid=(32, rows, 1),
        threadgroup=(32, min(8, rows), 1),
        output_shapes=[(n, rows)],
        output_dtypes=[mx.float32],
    )
    return out


def dequantize(blocks: mx.array, format: Format) -> mx.array:
    """blocks (rows, row_bytes) uint8 → (rows, cols) float32."""
    import mlx.core as mx

    rows, cols = blocks.shape[0], blocks.shape[1] // format.type_size * format.block_size
    eights = rows * cols // 8
    kernel = _kernel(format.name, ("blocks",), dequantize_source(format.name))
    (out,) = kernel(
        inputs=[blocks],
        grid=(eights, 1, 1),
        threadgroup=(min(256, eights), 1, 1),
        output_shapes=[(rows, cols)],
        output_dtypes=[mx.float32],
    )
    return out
