"""BLOOM."""

from __future__ import annotations

from ggufkit.arch.graph import Graph
from ggufkit.arch.metadata import FILE_TYPE, real, uint
from ggufkit.arch.spec import Architecture
from ggufkit.arch.transforms import group_qkv, rename
from ggufkit.tokenizer.from_checkpoint.bpe import bpe

_DEFAULTS = {"layer_norm_epsilon": 1e-5}

SPECS = (
    Architecture(
        name="bloom",
        graph=Graph(norm="layer", rope=None, activation="gelu", alibi=lambda layers: 8.0),
        models={"BloomForCausalLM": _DEFAULTS, "BloomModel": _DEFAULTS},
        metadata=(
            uint("context_length", lambda config: config.get("seq_length", default=config.width)),
            uint("embedding_length", lambda config: config.width),
            uint("feed_forward_length", lambda config: 4 * config.width),
            uint("block_count", lambda config: config.layers),
            uint("attention.head_count", lambda config: config.heads),
            uint("attention.head_count_kv", lambda config: config.heads),
            real("attention.layer_norm_epsilon", "layer_norm_epsilon"),
            FILE_TYPE,
        ),
        vocabulary=bpe,
        transforms=(
            rename((r"^transformer\.", "")),
            group_qkv(r"\.self_attention\.query_key_value\.", lambda config: config.heads),
        ),
    ),
)
