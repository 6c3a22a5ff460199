"""Falcon: 7B with one key head for all queries, 40B and 180B with a few, RW-1B with one for each."""

from __future__ import annotations

from ggufkit.arch.graph import Graph
from ggufkit.arch.metadata import EMBEDDING_LENGTH, FILE_TYPE, HEAD_COUNT, LAYERS, real, string, uint
from ggufkit.arch.spec import Architecture
from ggufkit.arch.transforms import group_qkv
from ggufkit.checkpoint.config import Config
from ggufkit.policy.traits import Traits
from ggufkit.tokenizer.from_checkpoint.bpe import bpe


def _kv_heads(config: Config) -> int:
    """Key heads; Falcon-7B has one, whatever its config says of their number."""
    if config.get("multi_query", default=True) and not config.get("new_decoder_architecture", default=False):
        return 1
    result: int = config.get("num_kv_heads", "n_head_kv", default=config.heads)
    return result


_DEFAULTS = {"layer_norm_epsilon": 1e-5}

SPECS = (
    Architecture(
        name="falcon",
        traits=Traits(falcon_mix=True),
        models={"FalconForCausalLM": _DEFAULTS, "RWForCausalLM": _DEFAULTS},
        metadata=(
            uint("context_length", lambda config: 2048),  # in no config.json
            string("tensor_data_layout", "jploski"),
            EMBEDDING_LENGTH,
            uint("feed_forward_length", lambda config: 4 * config.width),
            LAYERS,
            HEAD_COUNT,
            uint("attention.head_count_kv", _kv_heads),
            real("attention.layer_norm_epsilon", "layer_norm_epsilon"),
            FILE_TYPE,
        ),
        vocabulary=bpe,
        graph=Graph(norm="layer", rope="neox", activation="gelu", parallel="shared"),
        transforms=(group_qkv(r"\.query_key_value\.", _kv_heads),),
    ),
)
