"""MPT, StoryWriter and SEA-LION."""

from __future__ import annotations

from typing import Any

from ggufkit.arch.export import COMMON, Export, Source, key
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


def _attention_settings(s: Source) -> dict[str, Any]:
    bias = s.get("attention.max_alibi_bias", 0.0)
    settings: dict[str, Any] = {"alibi": bias > 0, "clip_qkv": s.get("attention.clamp_kqv")}
    if bias > 0:
        settings["alibi_bias_max"] = int(bias) if float(bias).is_integer() else bias
    if s.get("attention.head_count_kv"):
        settings["kv_n_heads"] = s.kv_heads
    return settings


_EXPORT = Export(
    "mpt",
    "MPTForCausalLM",
    common=False,
    config={
        "d_model": lambda s: s.width,
        "n_heads": lambda s: s.heads,
        "n_layers": COMMON["num_hidden_layers"],
        "max_seq_len": key("context_length"),
        "attn_config": _attention_settings,
        **{name: COMMON[name] for name in ("vocab_size", "tie_word_embeddings", "bos_token_id", "eos_token_id")},
    },
    names={
        "token_embd": "transformer.wte",
        "output_norm": "transformer.norm_f",
        "output": "lm_head",
        "blk.{bid}.attn_norm": "transformer.blocks.{bid}.norm_1",
        "blk.{bid}.attn_qkv": "transformer.blocks.{bid}.attn.Wqkv",
        "blk.{bid}.attn_output": "transformer.blocks.{bid}.attn.out_proj",
        "blk.{bid}.ffn_norm": "transformer.blocks.{bid}.norm_2",
        "blk.{bid}.ffn_up": "transformer.blocks.{bid}.ffn.up_proj",
        "blk.{bid}.ffn_down": "transformer.blocks.{bid}.ffn.down_proj",
    },
)

SPECS = (
    Architecture(
        name="mpt",
        exports=(_EXPORT,),
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
