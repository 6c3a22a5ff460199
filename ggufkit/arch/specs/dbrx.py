"""DBRX."""

from __future__ import annotations

from ggufkit.arch.graph import Graph
from ggufkit.arch.metadata import FILE_TYPE, LAYERS, real, uint
from ggufkit.arch.spec import Architecture
from ggufkit.arch.transforms import rename, reshape, transpose
from ggufkit.checkpoint.config import Config
from ggufkit.policy.outtype import AS_THE_FILE
from ggufkit.tokenizer.from_checkpoint.bpe import bpe


def _experts(config: Config) -> tuple[int, int, int]:
    ffn = config.part("ffn_config")
    return ffn.integer("moe_num_experts"), ffn.integer("ffn_hidden_size"), config.integer("d_model")


SPECS = (
    Architecture(
        name="dbrx",
        graph=Graph(norm="layer", rope="neox", ffn_norm="attn_output_norm"),
        models={"DbrxForCausalLM": {}},
        types={r"\.weight$": AS_THE_FILE},
        metadata=(
            LAYERS,
            uint("context_length", "max_seq_len"),
            uint("embedding_length", "d_model"),
            uint("feed_forward_length", lambda config: config.part("ffn_config").integer("ffn_hidden_size")),
            uint("attention.head_count", "n_heads"),
            uint("attention.head_count_kv", lambda config: config.part("attn_config").integer("kv_n_heads")),
            real("rope.freq_base", lambda config: config.part("attn_config").number("rope_theta")),
            real("attention.clamp_kqv", lambda config: config.part("attn_config").number("clip_qkv")),
            uint("expert_count", lambda config: config.part("ffn_config").integer("moe_num_experts")),
            uint("expert_used_count", lambda config: config.part("ffn_config").integer("moe_top_k")),
            real("attention.layer_norm_epsilon", lambda config: 1e-5),
            FILE_TYPE,
        ),
        vocabulary=bpe,
        # All of a layer's experts are one matrix; that of the way down is stored the other way round.
        transforms=(
            reshape(r"ffn\.experts\.mlp\.(w1|w2|v1)$", lambda tensor, config: _experts(config)),
            transpose(r"ffn\.experts\.mlp\.w2$"),
            rename((r"(ffn\.experts\.mlp\.(w1|w2|v1))$", r"\1.weight")),
        ),
    ),
)
