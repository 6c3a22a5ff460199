"""Stacks of experts in MXFP4 as the arrays of gpt-oss, bit for bit.

    …experts.down_proj_blocks   (experts, rows, blocks, 16) U8   byte j: weights 2j (low half) and 2j + 1 of 32
    …experts.down_proj_scales   (experts, rows, blocks) U8       E8M0

GGML's byte j holds weights j and j + 16.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ggufkit.jobs.checkpoint_folder import Part, Repacked
from ggufkit.jobs.pack_quantized import Scheme
from ggufkit.tensors.tensor import Tensor

if TYPE_CHECKING:
    import numpy as np

__all__ = ["packed", "quantization_config", "schemes"]

_SCHEME = Scheme(4, 32, True)

# What of the model is not quantized, in gpt-oss's own words.
_OTHERS = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]


def schemes(tensors: Mapping[str, Tensor]) -> dict[str, Scheme]:
    """The stacks that stay as they are: all, or none where one has another type."""
    stacks = [tensor for tensor in tensors.values() if len(tensor.shape) == 3]
    return {tensor.name: _SCHEME for tensor in stacks} if all(t.format.name == "MXFP4" for t in stacks) else {}


def packed(tensor: Tensor, scheme: Scheme) -> Repacked:
    """The arrays of a stack."""
    base, per_row = tensor.name.removesuffix(".weight"), tensor.cols // 32
    parts = (
        Part(f"{base}_blocks", "U8", (*tensor.shape[:-1], per_row, 16)),
        Part(f"{base}_scales", "U8", (*tensor.shape[:-1], per_row)),
    )

    def make(lo: int, blocks: np.ndarray) -> list[tuple[int, np.ndarray]]:
        import numpy as np

        records = blocks.view(tensor.format.dtype)  # (n, blocks per row)
        codes = np.concatenate([records["qs"] & 15, records["qs"] >> 4], axis=-1)  # (n, blocks per row, 32)
        pairs = codes[..., 0::2] | codes[..., 1::2] << 4
        return [(lo * per_row, np.ascontiguousarray(pairs)), (lo, np.ascontiguousarray(records["e"]))]

    return Repacked(tensor, parts, make)


def quantization_config(tensors: Mapping[str, Tensor], kept: Mapping[str, Scheme]) -> dict[str, Any]:
    """`quantization_config` of config.json; {} where nothing stays quantized."""
    return {"quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": _OTHERS}} if kept else {}
