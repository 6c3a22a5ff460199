"""StableLM."""

from __future__ import annotations

from ggufkit.arch.export import Export, key
from ggufkit.arch.graph import Graph
from ggufkit.arch.metadata import (
    CONTEXT_LENGTH,
    EMBEDDING_LENGTH,
    FEED_FORWARD_LENGTH,
    FILE_TYPE,
    HEAD_COUNT,
    HEAD_COUNT_KV,
    LAYERS,
    flag,
    real,
    rope_parameters,
    uint,
)
from ggufkit.arch.mlx import PLAIN_MLX
from ggufkit.arch.spec import Architecture
from ggufkit.arch.transforms import stack_experts
from ggufkit.checkpoint.config import Config
from ggufkit.tokenizer.from_checkpoint.bpe import bpe


def _rotated(config: Config) -> int:
    return int(rope_parameters(config)["partial_rotary_factor"] * config.head_dim)


_DEFAULTS = {
    "max_position_embeddings": 4096,
    "partial_rotary_factor": 0.25,
    "layer_norm_eps": 1e-5,
    "use_parallel_residual": False,
}

_EXPORT = Export(
    "stablelm",
    "StableLmForCausalLM",
    config={
        "head_dim": None,
        "rms_norm_eps": None,
        "layer_norm_eps": key("attention.layer_norm_epsilon"),
        "attention_bias": None,
        "mlp_bias": None,
        "use_qkv_bias": lambda s: s.has("attn_q.bias", "attn_k.bias", "attn_v.bias"),
        "qk_layernorm": lambda s: s.has("attn_q_norm.weight", "attn_k_norm.weight"),
        "use_parallel_residual": key("use_parallel_residual"),
        "partial_rotary_factor": lambda s: s.require("rope.dimension_count") / s.head_dim,
    },
    names={
        f"blk.{{bid}}.attn_{part}_norm": f"model.layers.{{bid}}.self_attn.{part}_layernorm.norms.{{xid}}"
        for part in ("q", "k")
    },
    mlx=PLAIN_MLX,
)

SPECS = (
    Architecture(
        name="stablelm",
        exports=(_EXPORT,),
        models={
            "StableLmForCausalLM": _DEFAULTS,
            "StableLMEpochForCausalLM": _DEFAULTS,
            "LlavaStableLMEpochForCausalLM": _DEFAULTS,
        },
        metadata=(
            CONTEXT_LENGTH,
            EMBEDDING_LENGTH,
            LAYERS,
            FEED_FORWARD_LENGTH,
            uint("rope.dimension_count", _rotated),
            HEAD_COUNT,
            HEAD_COUNT_KV,
            flag("use_parallel_residual", "use_parallel_residual"),
            real("attention.layer_norm_epsilon", "layer_norm_eps", "norm_eps"),
            FILE_TYPE,
        ),
        vocabulary=bpe,
        graph=Graph(norm="layer", rope="neox", parallel="shared"),
        transforms=(
            # StableLM 2 12B normalizes queries and keys, each head with weights of its own.
            *(
                stack_experts(
                    rf"model\.layers\.(?P<layer>\d+)\.self_attn\.(?P<part>{part})_layernorm\.norms\.(?P<expert>\d+)\.weight",
                    parts=(part,),
                    name="model.layers.{layer}.self_attn.{part}_layernorm.weight",
                    count=heads,
                )
                for part, heads in (("q", lambda config: config.heads), ("k", lambda config: config.kv_heads))
            ),
        ),
    ),
)
