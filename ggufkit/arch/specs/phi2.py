"""Phi-1.5 and Phi-2."""

from __future__ import annotations

from ggufkit.arch.export import Export, key
from ggufkit.arch.graph import Graph
from ggufkit.arch.metadata import EMBEDDING_LENGTH, FILE_TYPE, LAYERS, flag, real, rope_parameters, uint
from ggufkit.arch.mlx import PLAIN_MLX
from ggufkit.arch.spec import Architecture
from ggufkit.checkpoint.config import Config
from ggufkit.tokenizer.from_checkpoint.bpe import bpe


def _rotated(config: Config) -> int:
    """The rotated part of a head."""
    return int(rope_parameters(config)["partial_rotary_factor"] * config.width) // config.heads


_EXPORT = Export(
    "phi",
    "PhiForCausalLM",
    config={
        "head_dim": None,
        "rms_norm_eps": None,
        "layer_norm_eps": key("attention.layer_norm_epsilon"),
        "attention_bias": None,
        "mlp_bias": None,
        "partial_rotary_factor": lambda s: s.require("rope.dimension_count") / (s.width // s.heads),
        "hidden_act": lambda s: "gelu_new",
        "qk_layernorm": lambda s: False,
    },
    names={
        "output_norm": "model.final_layernorm",
        "blk.{bid}.attn_output": "model.layers.{bid}.self_attn.dense",
        "blk.{bid}.ffn_up": "model.layers.{bid}.mlp.fc1",
        "blk.{bid}.ffn_down": "model.layers.{bid}.mlp.fc2",
    },
    mlx=PLAIN_MLX,
)

SPECS = (
    Architecture(
        name="phi2",
        exports=(_EXPORT,),
        models={
            "PhiForCausalLM": {
                "max_position_embeddings": 2048,
                "layer_norm_eps": 1e-5,
                "partial_rotary_factor": 0.5,
            }
        },
        metadata=(
            uint("context_length", "n_positions", "max_position_embeddings"),
            EMBEDDING_LENGTH,
            uint("feed_forward_length", lambda config: 4 * config.width),
            LAYERS,
            uint("attention.head_count", lambda config: config.heads),
            uint("attention.head_count_kv", lambda config: config.heads),
            real("attention.layer_norm_epsilon", "layer_norm_epsilon", "layer_norm_eps"),
            uint("rope.dimension_count", _rotated),
            FILE_TYPE,
            flag("tokenizer.ggml.add_bos_token", False),
        ),
        vocabulary=bpe,
        graph=Graph(norm="layer", rope="neox", activation="gelu", parallel="shared"),
    ),
)
