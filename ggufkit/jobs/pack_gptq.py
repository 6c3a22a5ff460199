"""Blocks as the arrays of GPTQ, with the same numbers: what AutoGPTQ, GPTQModel, transformers and vLLM load.

    block    becomes
    Q4_0     4 bits, symmetric
    Q5_0     4 bits with zero points, where the levels of a group are of 16 in a row; else 8 bits, symmetric
    Q8_0     8 bits, symmetric
    Q4_1     4 bits with zero points, where these are whole numbers from 0 to 15

    …q_proj.qweight   (cols · bits / 32, rows) I32     …q_proj.scales   (groups, rows) F16
    …q_proj.qzeros    (groups, rows · bits / 32) I32   …q_proj.g_idx    (cols,) I32

The checkpoint's format is version 1, which every reader knows: zero points are stored less 1. Where any is not the
middle it is version 2, which stores them as they are: version 1 of such GPTQModel reads only where it made it.
Matrices of another width than most, and those that are not quantized, are named in `dynamic`, by patterns that match
what vLLM runs as one, too.
Source: gptqmodel/nn_modules/qlinear/__init__.py and quantization/config.py of ModelCloud/GPTQModel.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ggufkit.jobs import pack_quantized
from ggufkit.jobs.checkpoint_folder import Part, Repacked, ranges
from ggufkit.jobs.pack_quantized import Scheme, coded, inner_matrices
from ggufkit.tensors.tensor import Tensor

if TYPE_CHECKING:
    import numpy as np

__all__ = ["packed", "quantization_config", "schemes"]

# Ends of module names → patterns of what vLLM runs as one and of its parts.
_FUSED = {
    **dict.fromkeys(("q_proj", "k_proj", "v_proj"), "(?:qkv|[qkv])_proj"),
    **dict.fromkeys(("gate_proj", "up_proj"), "(?:gate_up|gate|up)_proj"),
    **dict.fromkeys(("q_a_proj", "kv_a_proj_with_mqa"), "(?:fused_qkv_a_proj|q_a_proj|kv_a_proj_with_mqa)"),
    "experts": r"experts(?:\..*)?",
}
# What lies in the experts of a layer.
_EXPERTS = re.compile(r"(?<=\.experts)\.\d+\..*$")


class _Version2(Scheme):
    """How a matrix is packed in a checkpoint of version 2."""


def schemes(tensors: Mapping[str, Tensor]) -> dict[str, Scheme]:
    """The matrices that stay quantized, and how."""
    found = pack_quantized.schemes(tensors, lambda t, scheme: not t.rows * scheme.bits % 32)
    if all(scheme.symmetric for scheme in found.values()):
        return found
    return {name: _Version2(scheme.bits, scheme.group, scheme.symmetric) for name, scheme in found.items()}


def packed(tensor: Tensor, scheme: Scheme) -> Repacked:
    """The arrays of a matrix."""
    base, (rows, cols), bits = tensor.name.removesuffix(".weight"), tensor.shape, scheme.bits
    size = scheme.group or cols
    groups, less = cols // size, 0 if isinstance(scheme, _Version2) else 1
    parts = (
        Part(f"{base}.qweight", "I32", (cols * bits // 32, rows)),
        Part(f"{base}.qzeros", "I32", (groups, rows * bits // 32)),
        Part(f"{base}.scales", "F16", (groups, rows)),
        Part(f"{base}.g_idx", "I32", (cols,)),
    )

    def make(lo: int, blocks: np.ndarray) -> list[tuple[int, np.ndarray]]:
        import numpy as np

        from ggufkit.formats.affine import pack_codes

        words = np.empty((cols * bits // 32, rows), np.uint32)
        zeros, scales = np.empty((groups, rows), np.uint8), np.empty((groups, rows), np.float16)
        for first, last in ranges(tensor):
            codes, own, halves = coded(tensor, scheme, blocks[first:last])
            words[:, first:last] = pack_codes(codes, bits).view(np.uint32).T
            zeros[:, first:last], scales[:, first:last] = own.T - np.uint8(less), halves.T
        of = (np.arange(cols) // size).astype(np.int32)
        return [(0, words), (0, pack_codes(zeros, bits)), (0, scales), (0, of)]

    return Repacked(tensor, parts, make, whole=True)


def quantization_config(tensors: Mapping[str, Tensor], kept: Mapping[str, Scheme]) -> dict[str, Any]:
    """`quantization_config` of config.json; {} where nothing stays quantized."""
    if not kept:
        return {}
    zeros = {name: scheme for name, scheme in kept.items() if not scheme.symmetric}
    most = Counter((zeros or kept).values()).most_common(1)[0][0]
    settings = {"quant_method": "gptq", **_settings(most), "desc_act": False, "lm_head": False}
    settings |= {"checkpoint_format": "gptq_v2" if zeros else "gptq", "pack_dtype": "int32"}
    dynamic: dict[str, dict[str, Any]] = {}
    for pattern, scheme in _patterns({name: kept.get(name) for name in inner_matrices(tensors)}).items():
        if scheme is None:
            dynamic[f"-:{pattern}"] = {}
        elif scheme != most:
            dynamic[f"+:{pattern}"] = _settings(scheme)
    return {"quantization_config": {**settings, "dynamic": dynamic} if dynamic else settings}


def _settings(scheme: Scheme) -> dict[str, Any]:
    return {"bits": scheme.bits, "group_size": scheme.group or -1, "sym": scheme.symmetric}


def _patterns(found: Mapping[str, Scheme | None]) -> dict[str, Scheme | None]:
    """Patterns of modules, and what is so for those that match; one for all layers where they are alike."""
    alike: dict[str, dict[str, Scheme | None]] = {}
    for name, scheme in found.items():
        module = _EXPERTS.sub("", name.removesuffix(".weight"))
        alike.setdefault(_pattern(module, any_layer=True), {})[_pattern(module, any_layer=False)] = scheme
    patterns: dict[str, Scheme | None] = {}
    for pattern, own in alike.items():
        patterns.update({pattern: next(iter(own.values()))} if len(set(own.values())) == 1 else own)
    return patterns


def _pattern(module: str, any_layer: bool) -> str:
    parts = module.split(".")
    own = [re.escape(part) for part in parts]
    own[-1] = _FUSED.get(parts[-1], own[-1])
    if any_layer:
        own[next(i for i, part in enumerate(parts) if part.isdigit())] = r"\d+"
    return ".*" + r"\.".join(own) + "$"
