"""BLOOM."""

from __future__ import annotations

from ggufkit.arch.export import COMMON, Export, key, ungrouped
from ggufkit.arch.graph import Graph
from ggufkit.arch.metadata import FILE_TYPE, real, uint
from ggufkit.arch.spec import Architecture
from ggufkit.arch.transforms import group_qkv, rename
from ggufkit.tokenizer.from_checkpoint.bpe import bpe

_DEFAULTS = {"layer_norm_epsilon": 1e-5}

_EXPORT = Export(
    "bloom",
    "BloomForCausalLM",
    common=False,
    config={
        "hidden_size": lambda s: s.width,
        "n_layer": COMMON["num_hidden_layers"],
        "n_head": lambda s: s.heads,
        "seq_length": key("context_length"),
        "layer_norm_epsilon": key("attention.layer_norm_epsilon"),
        **{name: COMMON[name] for name in ("vocab_size", "tie_word_embeddings", "bos_token_id", "eos_token_id")},
    },
    names={
        "token_embd": "transformer.word_embeddings",
        "token_embd_norm": "transformer.word_embeddings_layernorm",
        "output_norm": "transformer.ln_f",
        "output": "lm_head",
        "blk.{bid}.attn_norm": "transformer.h.{bid}.input_layernorm",
        "blk.{bid}.attn_qkv": "transformer.h.{bid}.self_attention.query_key_value",
        "blk.{bid}.attn_output": "transformer.h.{bid}.self_attention.dense",
        "blk.{bid}.ffn_norm": "transformer.h.{bid}.post_attention_layernorm",
        "blk.{bid}.ffn_up": "transformer.h.{bid}.mlp.dense_h_to_4h",
        "blk.{bid}.ffn_down": "transformer.h.{bid}.mlp.dense_4h_to_h",
    },
    undo={".attn_qkv": ungrouped(lambda s: s.heads)},
)

SPECS = (
    Architecture(
        name="bloom",
        exports=(_EXPORT,),
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
