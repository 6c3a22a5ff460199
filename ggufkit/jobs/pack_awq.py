"""Blocks as the arrays of AWQ, with the same numbers: what AutoAWQ, transformers and vLLM load.

    block    becomes
    Q4_0     4 bits with zero points of 8
    Q5_0     4 bits with zero points, where the levels of a group are of 16 in a row
    Q4_1     4 bits with zero points, where these are whole numbers from 0 to 15

    …q_proj.qweight   (cols, rows / 8) I32     of eight outputs 0 2 4 6 1 3 5 7, the first in the lowest bits
    …q_proj.qzeros    (groups, rows / 8) I32   the same
    …q_proj.scales    (groups, rows) F16

Groups are of one size in the whole checkpoint, the largest that all matrices have. All other blocks are decoded.
Source: awq/utils/packing_utils.py of casper-hansen/AutoAWQ.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import gcd
from typing import TYPE_CHECKING, Any

from ggufkit.jobs import pack_quantized
from ggufkit.jobs.checkpoint_folder import Part, Repacked, ranges
from ggufkit.jobs.pack_quantized import Scheme, coded, inner_matrices
from ggufkit.tensors.tensor import Tensor

if TYPE_CHECKING:
    import numpy as np

__all__ = ["packed", "quantization_config", "schemes"]

_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]


def schemes(tensors: Mapping[str, Tensor]) -> dict[str, Scheme]:
    """The matrices that stay quantized, and how."""
    found = pack_quantized.schemes(tensors, lambda t, scheme: scheme.bits == 4 and not t.rows % 8)
    if all(scheme.group == 0 for scheme in found.values()):
        return {name: Scheme(4, 0, False) for name in found}
    size = gcd(128, *(scheme.group or tensors[name].cols for name, scheme in found.items()))
    return {name: Scheme(4, size, False) for name in found}


def packed(tensor: Tensor, scheme: Scheme) -> Repacked:
    """The arrays of a matrix."""
    base, (rows, cols) = tensor.name.removesuffix(".weight"), tensor.shape
    groups = cols // (scheme.group or cols)
    parts = (
        Part(f"{base}.qweight", "I32", (cols, rows // 8)),
        Part(f"{base}.qzeros", "I32", (groups, rows // 8)),
        Part(f"{base}.scales", "F16", (groups, rows)),
    )

    def make(lo: int, blocks: np.ndarray) -> list[tuple[int, np.ndarray]]:
        import numpy as np

        words = np.empty((cols, rows // 8), np.uint32)
        zeros, scales = np.empty((groups, rows // 8), np.uint32), np.empty((groups, rows), np.float16)
        for first, last in ranges(tensor):
            codes, own, halves = coded(tensor, scheme, blocks[first:last])
            words[:, first // 8 : last // 8] = _words(codes)
            zeros[:, first // 8 : last // 8] = _words(own)
            scales[:, first:last] = halves.T
        return [(0, words), (0, zeros), (0, scales)]

    return Repacked(tensor, parts, make, whole=True)


def _words(codes: np.ndarray) -> np.ndarray:
    """(outputs, n) → (n, outputs / 8), uint32."""
    import numpy as np

    from ggufkit.formats.affine import pack_codes

    ordered = codes.reshape(-1, 8, codes.shape[1])[:, _ORDER].reshape(codes.shape)
    return pack_codes(np.ascontiguousarray(ordered.T), 4).view(np.uint32)


def quantization_config(tensors: Mapping[str, Tensor], kept: Mapping[str, Scheme]) -> dict[str, Any]:
    """`quantization_config` of config.json; {} where nothing stays quantized."""
    if not kept:
        return {}
    size = next(iter(kept.values())).group or -1
    plain = [name.removesuffix(".weight") for name in inner_matrices(tensors) if name not in kept]
    settings = {"quant_method": "awq", "bits": 4, "group_size": size, "zero_point": True, "version": "gemm"}
    return {"quantization_config": {**settings, "modules_to_not_convert": plain or None}}
