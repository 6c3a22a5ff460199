"""MPT, StoryWriter and SEA-LION."""

from __future__ import annotations

from typing import Any

from ggufkit.arch.graph import Graph
from ggufkit.arch.metadata import real, uint
from ggufkit.arch.spec import Architecture
from ggufkit.arch.transforms import rename
from ggufkit.checkpoint.config import Config
from ggufkit.tokenizer.from_checkpoint.variants import MPT

_ATTENTION = {"clip_qkv": None, "alibi": True, "alibi_bias_max": 8}


def _attention(config: Config, name: str) -> Any:
    """A setting of the attention, which has a part of its own in the config."""
    settings = config.get("attn_config", default={})
    return settings.get(name, _ATTENTION.get(name))


SPECS = (
    Architecture(
        name="mpt",
        graph=Graph(norm="layer", rope=None, activation="gelu"),
        models={"MPTForCausalLM": {"max_seq_len": 2048}},
        metadata=(
            uint("context_length", "max_seq_len"),
            uint("embedding_length", "d_model"),
            uint("block_count", "n_layers"),
            uint("feed_forward_length", lambda config: 4 * config.width),
            uint("attention.head_count", "n_heads"),
            uint("attention.head_count_kv", lambda config: _attention(config, "kv_n_heads")),
            real("attention.layer_norm_epsilon", lambda config: 1e-5),
            real("attention.clamp_kqv", lambda config: _attention(config, "clip_qkv")),
            real(
                "attention.max_alibi_bias",
                lambda config: _attention(config, "alibi_bias_max") if _attention(config, "alibi") else 0.0,
            ),
        ),
        vocabulary=MPT,
        # Scales of the activation, of models that AWQ prepared.
        transforms=(rename((r"\.scales$", ".act.scales")),),
    ),
)
