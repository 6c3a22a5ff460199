"""GPT-NeoX and Pythia."""

from __future__ import annotations

from ggufkit.arch.graph import Graph
from ggufkit.arch.metadata import (
    CONTEXT_LENGTH,
    EMBEDDING_LENGTH,
    FEED_FORWARD_LENGTH,
    HEAD_COUNT,
    LAYERS,
    flag,
    real,
    uint,
)
from ggufkit.arch.spec import Architecture
from ggufkit.arch.transforms import group_qkv
from ggufkit.tokenizer.from_checkpoint.bpe import bpe

SPECS = (
    Architecture(
        name="gptneox",
        models={
            "GPTNeoXForCausalLM": {
                "max_position_embeddings": 2048,
                "rotary_pct": 0.25,
                "layer_norm_eps": 1e-5,
                "use_parallel_residual": True,
            }
        },
        metadata=(
            CONTEXT_LENGTH,
            EMBEDDING_LENGTH,
            LAYERS,
            FEED_FORWARD_LENGTH,
            uint("rope.dimension_count", lambda config: int(config.number("rotary_pct") * config.head_dim)),
            HEAD_COUNT,
            flag("use_parallel_residual", "use_parallel_residual"),
            real("attention.layer_norm_epsilon", "layer_norm_eps"),
        ),
        vocabulary=bpe,
        graph=Graph(norm="layer", rope="neox", activation="gelu", parallel="key"),
        transforms=(group_qkv(r"\.attention\.query_key_value\.", lambda config: config.heads),),
    ),
)
