"""Weights published in MXFP4 keep their bits: their blocks are only laid out anew.

A checkpoint holds `<name>_blocks` (…, rows, blocks, 16) and `<name>_scales` (…, rows, blocks), both bytes. A byte of
theirs has two neighbours, a byte of GGML's two that lie 16 apart:

    checkpoint   byte j     w[2j + 1] w[2j]        and the scales in a tensor of their own
    GGML         byte j     w[j + 16] w[j]         behind their block's scale, 17 bytes in all

Source: `repack_mxfp4` of llama.cpp's conversion/gpt_oss.py; block_mxfp4 of ggml-common.h.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from ggufkit.checkpoint.config import Config
from ggufkit.errors import CheckpointError, printable
from ggufkit.formats.table import FORMATS
from ggufkit.tensors.tensor import Tensor

if TYPE_CHECKING:
    import numpy as np

__all__ = ["mxfp4_blocks"]

_MXFP4 = FORMATS["MXFP4"]


def mxfp4_blocks(tensors: Iterable[Tensor], config: Config) -> Iterator[Tensor]:
    """Join `<name>_blocks` and `<name>_scales` to an MXFP4 tensor `<name>.weight`; these come before all others."""
    by_name = {tensor.name: tensor for tensor in tensors}
    names = [name.removesuffix("_scales") for name in by_name if name.endswith("_scales")]
    for name in [name for name in names if f"{name}_blocks" in by_name]:
        yield _joined(f"{name}.weight", by_name.pop(f"{name}_blocks"), by_name.pop(f"{name}_scales"))
    yield from by_name.values()


def _joined(name: str, blocks: Tensor, scales: Tensor) -> Tensor:
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

    def read(lo: int, hi: int) -> np.ndarray:
        import numpy as np

        pairs = blocks.read(lo * per_row, hi * per_row).reshape(hi - lo, per_row, 16)
        levels = np.empty((hi - lo, per_row, 32), np.uint8)
        levels[..., 0::2] = pairs & 15
        levels[..., 1::2] = pairs >> 4
        records = np.empty((hi - lo, per_row), _MXFP4.dtype)
        records["e"] = scales.read(lo, hi)
        records["qs"] = levels[..., :16] | levels[..., 16:] << 4
        return records.view(np.uint8)

    return Tensor(name, (*scales.shape[:-1], per_row * _MXFP4.block_size), _MXFP4, read)
