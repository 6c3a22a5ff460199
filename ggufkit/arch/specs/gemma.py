"""Gemma and Gemma 2."""

from __future__ import annotations

from ggufkit.arch.export import POST_NORMS, Export, Setting, key
from ggufkit.arch.graph import Graph
from ggufkit.arch.metadata import (
    CONTEXT_LENGTH,
    EMBEDDING_LENGTH,
    FEED_FORWARD_LENGTH,
    FILE_TYPE,
    HEAD_COUNT,
    HEAD_COUNT_KV,
    KEY_LENGTH,
    LAYERS,
    RMS_EPSILON,
    VALUE_LENGTH,
    real,
    uint,
)
from ggufkit.arch.mlx import PLAIN_MLX
from ggufkit.arch.spec import Architecture
from ggufkit.arch.transforms import drop, norm_plus_one
from ggufkit.tokenizer.from_checkpoint.variants import GEMMA, GEMMA2

_KEYS = (
    CONTEXT_LENGTH,
    EMBEDDING_LENGTH,
    LAYERS,
    FEED_FORWARD_LENGTH,
    HEAD_COUNT,
    HEAD_COUNT_KV,
    RMS_EPSILON,
    KEY_LENGTH,
    VALUE_LENGTH,
    FILE_TYPE,
)

_DEFAULTS = {"max_position_embeddings": 8192, "rms_norm_eps": 1e-6, "head_dim": 256, "num_key_value_heads": 16}

# The output is the token embedding, whatever a checkpoint holds beside it.
_TRANSFORMS = (drop(r"^lm_head\.weight$"), norm_plus_one())

EXPORTED: dict[str, Setting | None] = {"hidden_act": lambda s: "gelu_pytorch_tanh", "rope_scaling": None}
EXPORTED_NORMS = POST_NORMS | {"blk.{bid}.ffn_norm": "model.layers.{bid}.pre_feedforward_layernorm"}


def query_scale(layers: int) -> Setting:
    """The query scale: the head's width, but the model's width by its heads in the one of so many layers, the 27B."""
    return lambda s: s.require("embedding_length") // s.heads if s.require("block_count") == layers else s.head_dim


_EXPORT_2 = Export(
    "gemma2",
    "Gemma2ForCausalLM",
    config={
        **EXPORTED,
        "attn_logit_softcapping": key("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": key("final_logit_softcapping", 30.0),
        "sliding_window": key("attention.sliding_window", 4096),
        "query_pre_attn_scalar": query_scale(46),
    },
    names=EXPORTED_NORMS,
    norm_offset=1.0,
    wide=True,
    mlx=PLAIN_MLX,
)

SPECS = (
    Architecture(
        name="gemma",
        exports=(Export("gemma", "GemmaForCausalLM", config=EXPORTED, norm_offset=1.0, wide=True, mlx=PLAIN_MLX),),
        models={"GemmaForCausalLM": _DEFAULTS},
        metadata=_KEYS,
        vocabulary=GEMMA,
        graph=Graph(rope="neox", activation="gelu", scaled_embedding=True),
        transforms=_TRANSFORMS,
    ),
    Architecture(
        name="gemma2",
        exports=(_EXPORT_2,),
        models={
            "Gemma2ForCausalLM": _DEFAULTS
            | {
                "num_key_value_heads": 4,
                "attn_logit_softcapping": 50.0,
                "final_logit_softcapping": 30.0,
                "sliding_window": 4096,
            }
        },
        metadata=(
            *_KEYS,
            real("attn_logit_softcapping", "attn_logit_softcapping"),
            real("final_logit_softcapping", "final_logit_softcapping"),
            uint("attention.sliding_window", "sliding_window"),
        ),
        vocabulary=GEMMA2,
        graph=Graph(
            rope="neox",
            activation="gelu",
            scaled_embedding=True,
            window_period=2,
            window=4096,
            attention_cap=50.0,
            logit_cap=30.0,
            scale_by_width=46,
        ),
        transforms=_TRANSFORMS,
    ),
)
