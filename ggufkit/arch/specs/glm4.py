"""GLM-4 of 2025 (GLM-4-0414, GLM-Z1)."""

from __future__ import annotations

from ggufkit.arch.graph import Graph
from ggufkit.arch.metadata import BASE, rope_parameters, uint
from ggufkit.arch.spec import Architecture
from ggufkit.checkpoint.config import Config
from ggufkit.tokenizer.from_checkpoint.variants import GLM4


def _rotated(config: Config) -> int:
    return int(config.head_dim * rope_parameters(config)["partial_rotary_factor"])


SPECS = (
    Architecture(
        name="glm4",
        models={
            "Glm4ForCausalLM": {
                "max_position_embeddings": 131072,
                "rms_norm_eps": 1.5625e-07,
                "rope_theta": 10000.0,
                "partial_rotary_factor": 0.5,
                "num_key_value_heads": 2,
                "head_dim": 128,
            }
        },
        metadata=(*BASE, uint("rope.dimension_count", _rotated)),
        vocabulary=GLM4,
        graph=Graph(),
    ),
)
