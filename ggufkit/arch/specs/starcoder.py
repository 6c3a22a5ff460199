"""StarCoder (GPT-BigCode) and StarCoder 2."""

from __future__ import annotations

from ggufkit.arch.graph import Graph
from ggufkit.arch.metadata import BASE, FILE_TYPE, LAYERS, real, uint
from ggufkit.arch.spec import Architecture
from ggufkit.tokenizer.from_checkpoint.bpe import bpe

SPECS = (
    Architecture(
        name="starcoder",
        models={"GPTBigCodeForCausalLM": {"n_positions": 1024, "layer_norm_epsilon": 1e-5}},
        metadata=(
            uint("context_length", "n_positions"),
            uint("embedding_length", "n_embd"),
            uint("feed_forward_length", lambda config: 4 * config.width),
            LAYERS,
            uint("attention.head_count", "n_head"),
            uint("attention.head_count_kv", lambda config: 1),
            real("attention.layer_norm_epsilon", "layer_norm_epsilon"),
            FILE_TYPE,
        ),
        vocabulary=bpe,
        graph=Graph(norm="layer", rope=None, activation="gelu"),
        skip=(".attn.bias", ".attn.masked_bias"),  # the causal mask
    ),
    Architecture(
        name="starcoder2",
        models={
            "Starcoder2ForCausalLM": {
                "max_position_embeddings": 4096,
                "norm_epsilon": 1e-5,
                "rope_theta": 10000.0,
                "num_key_value_heads": 2,
            }
        },
        metadata=BASE,
        vocabulary=bpe,
        graph=Graph(norm="layer", rope="neox", activation="gelu"),
    ),
)
