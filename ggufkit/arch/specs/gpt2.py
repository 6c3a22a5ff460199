"""GPT-2."""

from __future__ import annotations

from ggufkit.arch.graph import Graph
from ggufkit.arch.metadata import FILE_TYPE, LAYERS, real, uint
from ggufkit.arch.spec import Architecture
from ggufkit.arch.transforms import transpose
from ggufkit.tokenizer.from_checkpoint.bpe import bpe

SPECS = (
    Architecture(
        name="gpt2",
        models={
            "GPT2LMHeadModel": {
                "n_ctx": lambda config: config.get("n_positions", default=1024),
                "layer_norm_epsilon": 1e-5,
            }
        },
        metadata=(
            LAYERS,
            uint("context_length", "n_ctx"),
            uint("embedding_length", "n_embd"),
            uint("feed_forward_length", lambda config: 4 * config.width),
            uint("attention.head_count", "n_head"),
            real("attention.layer_norm_epsilon", "layer_norm_epsilon"),
            FILE_TYPE,
        ),
        vocabulary=bpe,
        graph=Graph(norm="layer", rope=None, activation="gelu"),
        transforms=(transpose(r"\.(c_attn|c_proj|c_fc)\.weight$"),),
        skip=(".attn.bias", ".attn.masked_bias"),  # the causal mask
    ),
)
