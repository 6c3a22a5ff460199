"""Phi-3, Phi-3.5, its mixture of experts, and Phi-4 (not Phi-3 Small)."""

from __future__ import annotations

import math

from ggufkit.arch.export import W123_EXPERTS, Export, key, longrope
from ggufkit.arch.graph import Graph
from ggufkit.arch.metadata import (
    CONTEXT_LENGTH,
    EMBEDDING_LENGTH,
    FEED_FORWARD_LENGTH,
    FILE_TYPE,
    HEAD_COUNT,
    HEAD_COUNT_KV,
    LAYERS,
    RMS_EPSILON,
    real,
    rope_parameters,
    uint,
)
from ggufkit.arch.mlx import PLAIN_MLX
from ggufkit.arch.rope_tensors import rope_factors
from ggufkit.arch.spec import Architecture
from ggufkit.arch.transforms import joined, stack_experts, w123_again
from ggufkit.checkpoint.config import Config
from ggufkit.errors import ArchitectureError, printable
from ggufkit.tokenizer.from_checkpoint.variants import phi3


def _rotated(config: Config) -> int:
    """The rotated part of a head."""
    factor = rope_parameters(config)["partial_rotary_factor"]
    return int((1.0 if factor is None else factor) * config.width) // config.heads


def _original_context(config: Config) -> int:
    """The context of the first part of the training; Phi-3.5-MoE's config has it beside the factors."""
    return Config(rope_parameters(config)).integer("original_max_position_embeddings", what="longrope")


def _attention_factor(config: Config) -> float | None:
    """How much longrope (or yarn) raises the attention's scale; None for models with one context length."""
    scaling = rope_parameters(config)
    if not scaling.get("long_factor"):
        return None
    context, original = config.number("max_position_embeddings"), _original_context(config)
    scale, kind = context / original, scaling["rope_type"]
    if kind in ("su", "longrope"):
        return math.sqrt(1 + math.log(scale) / math.log(original)) if scale > 1 else 1.0
    if kind == "yarn":
        return 0.1 * math.log(scale) + 1 if scale > 1 else 1.0
    raise ArchitectureError(f"config.json: rope scaling with long factors must be longrope, not {printable(kind)}")


_DEFAULTS = {
    "max_position_embeddings": 4096,
    "original_max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "num_key_value_heads": lambda config: config.heads,
}

_MOE = _DEFAULTS | {
    "max_position_embeddings": 4096 * 32,
    "rope_theta": 1e6,
    "num_key_value_heads": 8,
    "num_local_experts": 16,
    "num_experts_per_tok": 2,
}

_PREAMBLE = (real("rope.scaling.attn_factor", _attention_factor),)

_KEYS = (
    CONTEXT_LENGTH,
    uint("rope.scaling.original_context_length", _original_context),
    EMBEDDING_LENGTH,
    FEED_FORWARD_LENGTH,
    LAYERS,
    HEAD_COUNT,
    HEAD_COUNT_KV,
    RMS_EPSILON,
    uint("rope.dimension_count", _rotated),
    real("rope.freq_base", lambda config: rope_parameters(config)["rope_theta"]),
    FILE_TYPE,
    # 0 tells Phi-4 from the others.
    uint("attention.sliding_window", lambda config: config.get("sliding_window", default=0)),
)


_EXPORT = Export(
    "phi3",
    "Phi3ForCausalLM",
    config={
        "partial_rotary_factor": lambda s: s.require("rope.dimension_count") / s.head_dim,
        "original_max_position_embeddings": lambda s: s.get(
            "rope.scaling.original_context_length", s.require("context_length")
        ),
        "rope_scaling": longrope,
        "sliding_window": lambda s: s.get("attention.sliding_window") or None,
    },
    names={
        "blk.{bid}.attn_qkv": "model.layers.{bid}.self_attn.qkv_proj",
        "blk.{bid}.ffn_up": "model.layers.{bid}.mlp.gate_up_proj",
    },
    mlx=PLAIN_MLX,
)

_EXPORT_MOE = Export(
    "phimoe",
    "PhimoeForCausalLM",
    config={
        "mlp_bias": None,
        "num_local_experts": key("expert_count"),
        "num_experts_per_tok": key("expert_used_count"),
        "lm_head_bias": lambda s: "output.bias" in s.tensors,
        "attention_bias": lambda s: s.has(*(f"attn_{part}.bias" for part in ("q", "k", "v", "output"))),
        "sliding_window": lambda s: s.get("attention.sliding_window") or None,
    },
    names=W123_EXPERTS,
    mlx=PLAIN_MLX,
)

SPECS = (
    Architecture(
        name="phi3",
        exports=(_EXPORT,),
        models={"Phi3ForCausalLM": _DEFAULTS, "Phi4ForCausalLMV": _DEFAULTS},
        metadata=_KEYS,
        vocabulary=phi3,
        graph=Graph(rope="neox"),
        transforms=(joined(("gate_proj", "up_proj"), "gate_up_proj"), rope_factors(_rotated)),
        preamble=_PREAMBLE,
    ),
    Architecture(
        name="phimoe",
        exports=(_EXPORT_MOE,),
        graph=Graph(rope="neox", biased_norms=True),
        models={"PhiMoEForCausalLM": _MOE, "PhimoeForCausalLM": _MOE},
        metadata=(
            *_KEYS,
            uint("expert_used_count", "num_experts_per_tok", "num_experts_per_token"),
            uint("expert_count", "num_local_experts", "num_experts"),
        ),
        vocabulary=phi3,
        transforms=(
            rope_factors(_rotated),
            w123_again,
            stack_experts(
                r"model\.layers\.(?P<layer>\d+)\.block_sparse_moe\.experts\.(?P<expert>\d+)\.(?P<part>w[123])\.weight",
                parts=("w1", "w2", "w3"),
                name="model.layers.{layer}.block_sparse_moe.experts.{part}.weight",
            ),
        ),
        preamble=_PREAMBLE,
    ),
)
