"""Llama 4: experts of which one is chosen, layers without rope, chunked attention."""

from __future__ import annotations

from ggufkit.arch.graph import Graph
from ggufkit.arch.metadata import ROPE_DIMENSIONS, VOCAB_SIZE, base, uint
from ggufkit.arch.rope_tensors import rope_freqs
from ggufkit.arch.spec import Architecture
from ggufkit.arch.transforms import rename, split_rows, transpose
from ggufkit.checkpoint.config import Config
from ggufkit.tokenizer.from_checkpoint.bpe import bpe

_DEFAULTS = {
    "max_position_embeddings": 4096 * 32,
    "rms_norm_eps": 1e-5,
    "interleave_moe_layer_step": 1,
    "head_dim": lambda config: config.width // config.heads,
}


def _window(config: Config) -> int | None:
    """0 for a model whose layers all see everything."""
    types = config.get("layer_types")
    return 0 if isinstance(types, list) and all(kind == "full_attention" for kind in types) else None


SPECS = (
    Architecture(
        name="llama4",
        graph=Graph(
            no_rope_period=4,
            chunked=True,
            window_period=4,
            window=8192,
            plain_norm=True,
            temperature=(0.1, 8192, 1),
            router="sigmoid",
            router_normalized=False,
            expert_inputs=True,
        ),
        models={"Llama4ForCausalLM": _DEFAULTS, "Llama4ForConditionalGeneration": _DEFAULTS},
        # `intermediate_size` is that of an expert.
        metadata=(
            *base(uint("feed_forward_length", "intermediate_size_mlp")),
            VOCAB_SIZE,
            ROPE_DIMENSIONS,
            uint("interleave_moe_layer_step", "interleave_moe_layer_step"),
            uint("expert_feed_forward_length", "intermediate_size"),
            uint("attention.sliding_window", _window),
        ),
        vocabulary=bpe,
        transforms=(
            transpose(r"experts\.(gate_up|down)_proj$"),
            rename((r"(experts\.(gate_up|down)_proj)$", r"\1.weight")),
            split_rows(r"gate_up_proj(?=\.weight$)", "gate_proj", "up_proj"),
            rope_freqs,
        ),
    ),
)
