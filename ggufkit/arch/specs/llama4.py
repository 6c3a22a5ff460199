"""Llama 4: experts of which one is chosen, layers without rope, chunked attention."""

from __future__ import annotations

import re

from ggufkit.arch.export import NULL, Export, Source, key, rope_scaling
from ggufkit.arch.graph import Graph
from ggufkit.arch.metadata import ROPE_DIMENSIONS, VOCAB_SIZE, base, uint
from ggufkit.arch.mlx import Mlx
from ggufkit.arch.pieces import decoded
from ggufkit.arch.rope_tensors import rope_freqs
from ggufkit.arch.spec import Architecture
from ggufkit.arch.transforms import rename, split_rows, transpose
from ggufkit.checkpoint.config import Config
from ggufkit.tensors.tensor import Tensor
from ggufkit.tensors.views import LastMatrices, transposed
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


def _as_stored(s: Source, tensor: Tensor) -> Tensor:
    """Stacks of experts are numbers, (in, out)."""
    return transposed(decoded(tensor), LastMatrices(1))


def _layer_types(s: Source) -> list[str]:
    """All layers see everything, or every fourth one."""
    everywhere = s.get("attention.sliding_window") == 0
    return ["full_attention" if everywhere or i % 4 == 3 else "chunked_attention" for i in range(s.layers)]


_EXPERT = re.compile(r"(\.feed_forward\.experts\.(gate_up|down)_proj)\.weight$")
_PARTS = ("gate", "up", "down")

_EXPORT = Export(
    "llama4_text",
    "Llama4ForCausalLM",
    config={
        "intermediate_size": key("expert_feed_forward_length"),
        "intermediate_size_mlp": key("feed_forward_length"),
        "interleave_moe_layer_step": key("interleave_moe_layer_step"),
        "num_local_experts": key("expert_count"),
        "num_experts_per_tok": key("expert_used_count"),
        "layer_types": _layer_types,
        "no_rope_layers": lambda s: [int(i % 4 != 3) for i in range(s.layers)],
        "attention_chunk_size": lambda s: 8192,
        # The model of 128 experts has no norms of queries and keys, as llama.cpp tells, too.
        "use_qk_norm": lambda s: s.require("expert_count") != 128,
        "attn_temperature_tuning": lambda s: True,
        "floor_scale": lambda s: 8192,
        "attn_scale": lambda s: 0.1,
        "mlp_bias": None,
    },
    names={
        **{f"blk.{{bid}}.ffn_{part}": f"model.layers.{{bid}}.feed_forward.{part}_proj" for part in _PARTS},
        **{
            f"blk.{{bid}}.ffn_{part}_shexp": f"model.layers.{{bid}}.feed_forward.shared_expert.{part}_proj"
            for part in _PARTS
        },
        "blk.{bid}.ffn_gate_inp": "model.layers.{bid}.feed_forward.router",
        "blk.{bid}.ffn_down_exps": "model.layers.{bid}.feed_forward.experts.down_proj",
    },
    fused={
        "model.layers.{bid}.feed_forward.experts.gate_up_proj": ("blk.{bid}.ffn_gate_exps", "blk.{bid}.ffn_up_exps")
    },
    undo={".ffn_down_exps": _as_stored, ".experts.gate_up_proj": _as_stored},
    called=lambda s, tensor: _EXPERT.sub(r"\1", tensor.name),
    mlx=Mlx(
        "llama4",
        config={"rope_scaling": lambda s: rope_scaling(s) or NULL, "attention_bias": lambda s: False},
        names={
            f"blk.{{bid}}.ffn_{part}_exps": f"model.layers.{{bid}}.feed_forward.experts.{part}_proj" for part in _PARTS
        },
        prefix="language_model.",
        called=lambda s, tensor: tensor.name,
        nested=True,
        headed=True,
    ),
)

SPECS = (
    Architecture(
        name="llama4",
        exports=(_EXPORT,),
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
