"""Nemotron and Minitron."""

from __future__ import annotations

from ggufkit.arch.export import Export, key
from ggufkit.arch.graph import Graph
from ggufkit.arch.metadata import BASE, VOCAB_SIZE, real, rope_parameters, string, uint
from ggufkit.arch.mlx import PLAIN_MLX
from ggufkit.arch.spec import Architecture
from ggufkit.arch.transforms import norm_plus_one
from ggufkit.checkpoint.config import Config
from ggufkit.tokenizer.from_checkpoint.variants import NEMOTRON


def _rotated(config: Config) -> int:
    return int(rope_parameters(config)["partial_rotary_factor"] * config.width) // config.heads


def _factor(config: Config) -> float | None:
    return config.get("factor") or rope_parameters(config).get("factor")


_EXPORT = Export(
    "nemotron",
    "NemotronForCausalLM",
    config={
        "rms_norm_eps": None,
        "norm_eps": key("attention.layer_norm_epsilon"),
        "partial_rotary_factor": lambda s: s.require("rope.dimension_count") / (s.width // s.heads),
        "hidden_act": lambda s: "relu2",
    },
    norm_offset=1.0,
    mlx=PLAIN_MLX,
)

SPECS = (
    Architecture(
        name="nemotron",
        exports=(_EXPORT,),
        models={
            "NemotronForCausalLM": {
                "max_position_embeddings": 4096,
                "norm_eps": 1e-5,
                "rope_theta": 10000.0,
                "partial_rotary_factor": 0.5,
                "num_key_value_heads": lambda config: config.heads,
                "head_dim": lambda config: config.width // config.heads,
            }
        },
        metadata=(
            *BASE,
            VOCAB_SIZE,
            real("attention.layer_norm_epsilon", "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps"),
            uint("rope.dimension_count", _rotated),
            string("rope.scaling.type", lambda config: "none" if _factor(config) is None else "linear"),
            real("rope.scaling.factor", _factor),
        ),
        vocabulary=NEMOTRON,
        graph=Graph(norm="layer", rope="neox", activation="relu_squared"),
        transforms=(norm_plus_one(),),
    ),
)
