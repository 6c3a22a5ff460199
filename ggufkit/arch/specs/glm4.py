"""GLM-4 of 2025 (GLM-4-0414, GLM-Z1), and the language models of GLM-4V and GLM-OCR."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ggufkit.arch.export import Export
from ggufkit.arch.graph import Graph
from ggufkit.arch.metadata import BASE, OPTIONAL, base, mtp_layers, partial_rotary, rope_parameters, uint
from ggufkit.arch.mlx import PLAIN_MLX
from ggufkit.arch.spec import Architecture
from ggufkit.arch.transforms import joined
from ggufkit.checkpoint.config import Config
from ggufkit.errors import CheckpointError, printable
from ggufkit.tensors.tensor import Tensor
from ggufkit.tensors.views import take_rows
from ggufkit.tokenizer.from_checkpoint.variants import GLM4

_DEFAULTS = {
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1.5625e-07,
    "rope_theta": 10000.0,
    "partial_rotary_factor": 0.5,
    "num_key_value_heads": 2,
    "head_dim": 128,
}
# Those that see leave the size of a head to the width.
_SEEING = {key: value for key, value in _DEFAULTS.items() if key != "head_dim"}

_ROTATED = uint("rope.dimension_count", lambda config: int(config.head_dim * partial_rotary(config, 0.5)))


def _halves(tensors: Iterable[Tensor], config: Config) -> Iterator[Tensor]:
    """Positions of three directions turn halves of a head, the checkpoint's order is that of neighbours.

    rows of a head's rotated part   0 1 2 3 4 5 6 7   →   0 2 4 6 1 3 5 7
    """
    import numpy as np

    if not rope_parameters(config).get("mrope_section"):
        yield from tensors
        return
    head, rotated = config.head_dim, int(config.head_dim * partial_rotary(config, 0.5))
    order = np.concatenate([np.arange(0, rotated, 2), np.arange(1, rotated, 2), np.arange(rotated, head)])
    for tensor in tensors:
        if not tensor.name.endswith(_TURNED):
            yield tensor
            continue
        rows = tensor.cols if len(tensor.shape) == 1 else tensor.rows
        if rows % head or rotated % 2:
            raise CheckpointError(f"{printable(tensor.name)} has {rows} rows, which are no heads of {head}")
        yield take_rows(tensor, (np.arange(rows // head)[:, None] * head + order).reshape(-1))


_TURNED = ("q_proj.weight", "q_proj.bias", "k_proj.weight", "k_proj.bias")


def _all_blocks(config: Config) -> int:
    return config.layers + mtp_layers(config.with_mtp())


_EXPORT = Export(
    "glm4",
    "Glm4ForCausalLM",
    config={"mlp_bias": None, "partial_rotary_factor": lambda s: s.require("rope.dimension_count") / s.head_dim},
    names={
        "blk.{bid}.post_attention_norm": "model.layers.{bid}.post_self_attn_layernorm",
        "blk.{bid}.post_ffw_norm": "model.layers.{bid}.post_mlp_layernorm",
        "blk.{bid}.ffn_up": "model.layers.{bid}.mlp.gate_up_proj",
    },
    when=lambda s: not s.get("rope.dimension_sections"),
    mlx=PLAIN_MLX,
)

SPECS = (
    Architecture(
        name="glm4",
        exports=(_EXPORT,),
        models={
            "Glm4ForCausalLM": _DEFAULTS,
            "Glm4vForConditionalGeneration": _SEEING | {"max_position_embeddings": 32768, "rms_norm_eps": 1e-5},
        },
        metadata=(*BASE, _ROTATED),
        vocabulary=GLM4,
        graph=Graph(),
        transforms=(joined(("gate_proj", "up_proj"), "gate_up_proj"), _halves),
    ),
    Architecture(
        name="glm4",
        models={"GlmOcrForConditionalGeneration": _SEEING | {"rms_norm_eps": 1e-5, "num_key_value_heads": 8}},
        metadata=(
            *base(uint("block_count", _all_blocks)),
            _ROTATED,
            uint("nextn_predict_layers", "num_nextn_predict_layers", need=OPTIONAL),
        ),
        vocabulary=GLM4,
        transforms=(_halves,),
        blocks=_all_blocks,
    ),
)
