"""GPT-NeoX and Pythia."""

from __future__ import annotations

from ggufkit.arch.export import COMMON, Export, key, ungrouped
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

_EXPORT = Export(
    "gpt_neox",
    "GPTNeoXForCausalLM",
    common=False,
    config={
        **{
            name: COMMON[name]
            for name in ("hidden_size", "num_hidden_layers", "intermediate_size", "num_attention_heads", "vocab_size")
        },
        "max_position_embeddings": key("context_length"),
        "rotary_pct": lambda s: s.require("rope.dimension_count") / (s.width // s.heads),
        "rotary_emb_base": key("rope.freq_base", 10000.0),
        "layer_norm_eps": key("attention.layer_norm_epsilon"),
        "use_parallel_residual": key("use_parallel_residual"),
        "hidden_act": lambda s: "gelu",
        "tie_word_embeddings": COMMON["tie_word_embeddings"],
        "bos_token_id": COMMON["bos_token_id"],
        "eos_token_id": COMMON["eos_token_id"],
    },
    names={
        "token_embd": "gpt_neox.embed_in",
        "output_norm": "gpt_neox.final_layer_norm",
        "output": "embed_out",
        **{
            f"blk.{{bid}}.{gguf}": f"gpt_neox.layers.{{bid}}.{name}"
            for gguf, name in {
                "attn_norm": "input_layernorm",
                "attn_qkv": "attention.query_key_value",
                "attn_output": "attention.dense",
                "ffn_norm": "post_attention_layernorm",
                "ffn_up": "mlp.dense_h_to_4h",
                "ffn_down": "mlp.dense_4h_to_h",
            }.items()
        },
    },
    undo={".attn_qkv": ungrouped(lambda s: s.heads)},
)

SPECS = (
    Architecture(
        name="gptneox",
        exports=(_EXPORT,),
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
