"""MiniMax M3: a mixture of experts, attention to the blocks of keys that an index chooses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ggufkit.arch.graph import Graph
from ggufkit.arch.metadata import BASE, flag, real, uint
from ggufkit.arch.spec import Architecture
from ggufkit.arch.specs.moe import w123_experts
from ggufkit.arch.transforms import norm_plus_one
from ggufkit.checkpoint.config import Config
from ggufkit.tokenizer.from_checkpoint.bpe import bpe


def _sparse(name: str) -> Callable[[Config], Any]:
    return lambda config: config.part("sparse_attention_config").require(name)


def _dense(config: Config) -> int:
    kinds = config.list("moe_layer_freq")
    return next((layer for layer, kind in enumerate(kinds) if kind != 0), len(kinds))


SPECS = (
    Architecture(
        name="minimax-m3",
        graph=Graph(rope="neox", router="sigmoid", router_normalized=False, activation="swiglu_oai"),
        models={"MiniMaxM3SparseForCausalLM": {}, "MiniMaxM3SparseForConditionalGeneration": {}},
        metadata=(
            *BASE,
            uint("expert_feed_forward_length", "intermediate_size"),
            uint("rope.dimension_count", "rotary_dim"),
            uint("expert_shared_count", "n_shared_experts"),
            real("expert_weights_scale", "routed_scaling_factor"),
            flag("expert_weights_norm", True),
            uint("attention.indexer.head_count", _sparse("sparse_num_index_heads")),
            uint("attention.indexer.key_length", _sparse("sparse_index_dim")),
            uint("attention.indexer.top_k", _sparse("sparse_topk_blocks")),
            uint("attention.indexer.block_size", _sparse("sparse_block_size")),
            uint("attention.indexer.local_blocks", _sparse("sparse_local_block")),
            uint("leading_dense_block_count", _dense),
        ),
        vocabulary=bpe,
        types={r"\.indexer\.": "F32"},
        transforms=(
            norm_plus_one(),
            *w123_experts("block_sparse_moe", "model.layers.{layer}.block_sparse_moe.experts.{part}.weight"),
        ),
    ),
)
