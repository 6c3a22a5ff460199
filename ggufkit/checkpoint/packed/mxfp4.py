"""Weights published in MXFP4, as gpt-oss has them.

    <name>_blocks   (…, rows, blocks, 16) U8    byte j holds weights 2j (low half) and 2j + 1 of 32
    <name>_scales   (…, rows, blocks) U8        E8M0

Source: `repack_mxfp4` of llama.cpp's conversion/gpt_oss.py; block_mxfp4 of ggml-common.h.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ggufkit.checkpoint.packed.fp4 import Fp4
from ggufkit.checkpoint.packed.stored import Matrix, Reading, Source
from ggufkit.errors import CheckpointError, printable
from ggufkit.formats.table import FORMATS
from ggufkit.tensors.tensor import Tensor

if TYPE_CHECKING:
    import numpy as np

__all__ = ["read"]

_MXFP4 = FORMATS["MXFP4"]


def read(source: Source) -> Reading | None:
    """Names that have `_blocks` and `_scales`; these come before all other tensors."""
    reading = Reading("MXFP4", first=True)
    tensors = source.tensors
    for name in [name.removesuffix("_scales") for name in tensors if name.endswith("_scales")]:
        if f"{name}_blocks" in tensors:
            matrix = _matrix(f"{name}.weight", tensors[f"{name}_blocks"], tensors[f"{name}_scales"])
            reading.add(f"{name}_blocks", matrix, [f"{name}_scales"])
    return reading if reading.matrices else None


def _matrix(name: str, blocks: Tensor, scales: Tensor) -> Matrix:
    if (
        blocks.format.name != "U8"
        or scales.format.name != "U8"
        or not scales.shape
        or blocks.shape != (*scales.shape, _MXFP4.dtype["qs"].shape[0])
    ):
        raise CheckpointError(
            f"{printable(blocks.name)} is {blocks.format.name} {list(blocks.shape)} and its scales are "
            f"{scales.format.name} {list(scales.shape)}; MXFP4 has 16 bytes of U8 for each scale"
        )
    per_row = scales.cols

    def codes(lo: int, hi: int) -> np.ndarray:
        import numpy as np

        pairs = blocks.read(lo * per_row, hi * per_row).reshape(hi - lo, per_row * 16)
        found = np.empty((hi - lo, per_row * 32), np.uint8)
        found[:, 0::2], found[:, 1::2] = pairs & 15, pairs >> 4
        return found

    shape = (*scales.shape[:-1], per_row * _MXFP4.block_size)
    return Matrix(name, "MXFP4", Fp4(shape, codes, scales.read, _MXFP4))
