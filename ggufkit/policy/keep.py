"""Tensors that keep the format they have: too small to matter, or too sensitive.

Source: `tensor_allows_quantization` in src/llama-quant.cpp of llama.cpp.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

from ggufkit.policy.hyperparameters import Hyperparameters
from ggufkit.policy.roles import trimmed

__all__ = ["reason_to_keep"]

# reason → parts of names.
_PARTS: dict[str, tuple[str, ...]] = {
    "a norm": ("_norm.weight",),
    "chooses the experts": ("ffn_gate_inp.weight", "ffn_gate_tid2eid.weight"),
    "very small": ("altup", "laurel", "indexer.k_proj.weight", "indexer.q_proj.weight"),
    "small beside the per-layer embeddings": ("per_layer_model_proj",),
    "a small convolution": ("ssm_conv1d", "shortconv.conv.weight"),
    "a small matrix of an RWKV layer": (
        "time_mix_first.weight",
        *(f"time_mix_{n}.weight" for n in ("w0", "w1", "w2", "v0", "v1", "v2", "a0", "a1", "a2", "g1", "g2")),
        "time_mix_decay_w1.weight",
        "time_mix_decay_w2.weight",
        "time_mix_lerp_fused.weight",
    ),
    "a position bias": ("attn_rel_b.weight",),
    "part of the image encoder's input or output": (
        ".position_embd",
        "sam.pos_embd",
        "sam.neck.",
        "sam.net_",
        ".rel_pos",
        ".patch_embd",
        ".patch_merger",
    ),
    "an audio codebook": ("a.rvq.codebook", "mm.a.code_embd"),
}

_NAMES = {"position_embd.weight": "position embeddings", "token_types.weight": "token type embeddings"}


def reason_to_keep(name: str, shape: tuple[int, ...], model: Hyperparameters) -> str | None:
    """Why a tensor is never quantized, or None if it may be."""
    if len(trimmed(shape)) < 2:
        return "one dimension"
    if not name.endswith("weight"):
        return "no weight matrix"
    if name in _NAMES:
        return _NAMES[name]
    for part, reason in chain(_by_part(), ((part, f"sensitive in {model.architecture}") for part in model.traits.kept)):
        if part in name:
            return reason
    return None


def _by_part() -> Iterator[tuple[str, str]]:
    for reason, parts in _PARTS.items():
        for part in parts:
            yield part, reason
