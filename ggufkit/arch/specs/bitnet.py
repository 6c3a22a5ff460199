"""BitNet b1.58: matrices of -1, 0 and 1 with one scale."""

from __future__ import annotations

from ggufkit.arch.graph import Graph
from ggufkit.arch.metadata import BASE, real, string
from ggufkit.arch.spec import Architecture
from ggufkit.arch.transforms import map_each
from ggufkit.checkpoint.packed.bitnet import rounded_to_ternary
from ggufkit.tokenizer.from_checkpoint.spm import sentencepiece

_DEFAULTS = {
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "num_key_value_heads": lambda config: config.heads,
    "head_dim": lambda config: config.width // config.heads,
}

SPECS = (
    Architecture(
        name="bitnet",
        models={"BitNetForCausalLM": _DEFAULTS, "BitnetForCausalLM": _DEFAULTS},
        metadata=(
            *BASE,
            string("rope.scaling.type", "linear"),
            real("rope.scaling.factor", lambda config: 1.0),
        ),
        vocabulary=sentencepiece,
        graph=Graph(rope="neox"),
        transforms=(
            map_each(r"\.(q|k|v|o|gate|up|down)_proj\.weight$", lambda tensor, config: rounded_to_ternary(tensor)),
        ),
        names={
            "model.layers.{bid}.self_attn.attn_sub_norm.weight": "blk.{bid}.attn_sub_norm.weight",
            "model.layers.{bid}.mlp.ffn_sub_norm.weight": "blk.{bid}.ffn_sub_norm.weight",
        },
    ),
)
