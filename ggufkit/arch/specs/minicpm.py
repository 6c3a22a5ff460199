"""MiniCPM and MiniCPM 3."""

from __future__ import annotations

from ggufkit.arch.export import Export, Source, key, longrope
from ggufkit.arch.graph import Graph
from ggufkit.arch.metadata import (
    BASE,
    CONTEXT_LENGTH,
    EMBEDDING_LENGTH,
    FEED_FORWARD_LENGTH,
    FILE_TYPE,
    HEAD_COUNT,
    HEAD_COUNT_KV,
    LAYERS,
    OPTIONAL,
    RMS_EPSILON,
    VOCAB_SIZE,
    real,
    uint,
)
from ggufkit.arch.rope_tensors import rope_factors
from ggufkit.arch.spec import Architecture
from ggufkit.arch.specs.llama import WEIGHTS_PERMUTED
from ggufkit.tokenizer.from_checkpoint.spm import sentencepiece


def _depth(s: Source) -> float:
    """The shortest number whose part of each layer is the GGUF's."""
    import numpy as np

    scale, layers = s.require("residual_scale"), s.layers**0.5
    near = (round(scale * layers, digits) for digits in range(1, 17))
    return float(next((n for n in near if np.float32(n / layers) == np.float32(scale)), scale * layers))


_EXPORT = Export(
    "minicpm",
    "MiniCPMForCausalLM",
    config={
        "scale_emb": key("embedding_scale"),
        "scale_depth": _depth,
        "dim_model_base": lambda s: round(s.width / s.require("logit_scale")),
        "rope_scaling": longrope,
    },
    rotated=True,
)
_LAYER = "model.layers.{bid}.self_attn"
# The multipliers are those of the only release.
_EXPORT_3 = Export(
    "minicpm3",
    "MiniCPM3ForCausalLM",
    config={
        "mlp_bias": None,
        "head_dim": None,
        "scale_emb": lambda s: 12,
        "scale_depth": lambda s: 1.4,
        "dim_model_base": lambda s: 256,
        "q_lora_rank": key("attention.q_lora_rank"),
        "kv_lora_rank": key("attention.kv_lora_rank"),
        "qk_rope_head_dim": key("rope.dimension_count"),
        "qk_nope_head_dim": lambda s: s.require("attention.key_length") - s.require("rope.dimension_count"),
        "v_head_dim": lambda s: s.width // s.heads,
        "rope_scaling": longrope,
    },
    names={
        "blk.{bid}.attn_q_a": f"{_LAYER}.q_a_proj",
        "blk.{bid}.attn_q_a_norm": f"{_LAYER}.q_a_layernorm",
        "blk.{bid}.attn_q_b": f"{_LAYER}.q_b_proj",
        "blk.{bid}.attn_kv_a_mqa": f"{_LAYER}.kv_a_proj_with_mqa",
        "blk.{bid}.attn_kv_a_norm": f"{_LAYER}.kv_a_layernorm",
        "blk.{bid}.attn_kv_b": f"{_LAYER}.kv_b_proj",
    },
)

SPECS = (
    Architecture(
        name="minicpm",
        exports=(_EXPORT,),
        graph=Graph(),
        models={"MiniCPMForCausalLM": {}},
        metadata=(
            *BASE,
            real("embedding_scale", lambda config: config.number("scale_emb")),
            real("residual_scale", lambda config: config.number("scale_depth") / config.layers**0.5),
            real("logit_scale", lambda config: config.width / config.number("dim_model_base")),
        ),
        vocabulary=sentencepiece,
        transforms=(*WEIGHTS_PERMUTED, rope_factors(lambda config: config.width // config.heads)),
    ),
    Architecture(
        name="minicpm3",
        exports=(_EXPORT_3,),
        graph=Graph(rope="neox", multipliers=lambda width, layers: (12, 1.4 / layers**0.5, 256 / width)),
        models={"MiniCPM3ForCausalLM": {}},
        metadata=(
            FILE_TYPE,
            CONTEXT_LENGTH,
            EMBEDDING_LENGTH,
            LAYERS,
            FEED_FORWARD_LENGTH,
            HEAD_COUNT,
            HEAD_COUNT_KV,
            RMS_EPSILON,
            VOCAB_SIZE,
            uint("attention.q_lora_rank", "q_lora_rank", need=OPTIONAL),
            uint("attention.kv_lora_rank", "kv_lora_rank"),
            uint(
                "attention.key_length",
                lambda config: config.integer("qk_nope_head_dim") + config.integer("qk_rope_head_dim"),
            ),
            uint("rope.dimension_count", "qk_rope_head_dim"),
        ),
        vocabulary=sentencepiece,
        transforms=(rope_factors(lambda config: config.integer("qk_rope_head_dim")),),
    ),
)
