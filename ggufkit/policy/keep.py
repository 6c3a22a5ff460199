"""Tensors that keep the format they have: too small to matter, or too sensitive.

Source: `tensor_allows_quantization` in src/llama-quant.cpp of llama.cpp.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

from ggufkit.policy.facts import trimmed

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

_PARTS_OF_ARCHITECTURE: dict[str, tuple[str, ...]] = {
    "glm5-next": (
        "hc_",
        "indexer.attn_q_b",
        "indexer.attn_k",
        "indexer.proj",
        "indexer_compressor_gate",
        "indexer_compressor_ape",
        "ssm_f_a.weight",
        "ssm_f_b.weight",
        "ssm_g_a.weight",
        "ssm_g_b.weight",
        "ssm_beta.weight",
        "attn_kv_a_mqa.weight",
        "attn_k_b.weight",
        "attn_v_b.weight",
    ),
}


def reason_to_keep(name: str, shape: tuple[int, ...], architecture: str) -> str | None:
    """Why a tensor is never quantized, or None if it may be."""
    if len(trimmed(shape)) < 2:
        return "one dimension"
    if not name.endswith("weight"):
        return "no weight matrix"
    if name in _NAMES:
        return _NAMES[name]
    for part, reason in chain(_by_part(), ((p, f"sensitive in {architecture}") for p in _extra(architecture))):
        if part in name:
            return reason
    return None


def _by_part() -> Iterator[tuple[str, str]]:
    for reason, parts in _PARTS.items():
        for part in parts:
            yield part, reason


def _extra(architecture: str) -> tuple[str, ...]:
    return _PARTS_OF_ARCHITECTURE.get(architecture, ())
