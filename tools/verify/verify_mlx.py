#!/usr/bin/env python3
"""Every quantized format in MLX against our decoders, bit for bit, on random blocks.

    python tools/verify/verify_mlx.py [--blocks 1000000] [FORMAT …]

Formats that MLX has arrays for are repacked and dequantized by MLX; the others go through MLX's own operations. Exit
code 1 if a number differs.
"""

from __future__ import annotations

import argparse
import sys

import mlx.core as mx
import numpy as np

from ggufkit.formats.codec import decode
from ggufkit.formats.table import Format, format_by_name, formats
from ggufkit.runtime.mlx.arrays import QUANTIZED, repack
from ggufkit.runtime.mlx.decode import decode as mlx_decode

ROWS, BLOCKS = 256, 64  # of a matrix


def random_blocks(format: Format, n: int, rng: np.random.Generator) -> np.ndarray:
    """Any bytes, but finite scales and, of NVFP4, not the one that MLX has no code for."""
    blocks = rng.integers(0, 256, (n, format.type_size), np.uint8)
    records = blocks.view(format.dtype)[:, 0]
    for field, _, code in format.fields:
        if code == "f2":
            records[field] = (rng.standard_normal(n) * 10.0 ** rng.integers(-7, 3, n)).astype(np.float16)
    if format.name == "IQ1_M":  # its d lies in the top nibbles of four words; this is a bit of the exponent
        records["scales"][:, 7] &= 0xBF
    if format.name == "MXFP4":
        records["e"] = rng.integers(0, 255, n)
    if format.name == "NVFP4":
        records["d"] = rng.integers(0, 127, (n, 4))
    return blocks


def in_mlx(blocks: np.ndarray, format: Format) -> np.ndarray:
    """(rows, row_bytes) uint8 → (rows, cols) float32."""
    if format.name not in QUANTIZED:
        return np.array(mlx_decode(mx.array(blocks), format))
    packed = repack(blocks, format)
    assert packed is not None
    biases = None if packed.biases is None else mx.array(packed.biases)
    how = {"group_size": packed.group_size, "bits": packed.bits, "mode": packed.mode}
    arrays = mx.array(packed.codes), mx.array(packed.scales), biases
    return np.array(mx.dequantize(*arrays, dtype=mx.float32, **how))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("formats", nargs="*", metavar="FORMAT")
    parser.add_argument("--blocks", type=int, default=1_000_000)
    options = parser.parse_args()
    wanted = [format_by_name(name) for name in options.formats] or formats()
    rng = np.random.default_rng(0)
    worst = 0
    for format in (f for f in wanted if f.is_quantized and f.encodable):
        differing = done = 0
        while done < options.blocks:
            blocks = random_blocks(format, ROWS * BLOCKS, rng)
            expected = decode(blocks, format).reshape(ROWS, -1)
            differing += int((expected != in_mlx(blocks.reshape(ROWS, -1), format)).sum())
            done += ROWS * BLOCKS
        print(f"{format.name:<8} {done} blocks, {differing} numbers differ", flush=True)
        worst += differing
    return int(worst > 0)


if __name__ == "__main__":
    sys.exit(main())
