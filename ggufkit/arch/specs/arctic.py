"""Snowflake's Arctic: a dense FFN beside experts in each block."""

from __future__ import annotations

from ggufkit.arch.graph import Graph
from ggufkit.arch.metadata import BASE, VOCAB_SIZE, uint
from ggufkit.arch.spec import Architecture
from ggufkit.arch.specs.llama import WEIGHTS_PERMUTED
from ggufkit.arch.transforms import stack_experts
from ggufkit.tokenizer.from_checkpoint.variants import arctic

SPECS = (
    Architecture(
        name="arctic",
        graph=Graph(),
        models={"ArcticForCausalLM": {}},
        metadata=(
            *BASE,
            VOCAB_SIZE,
            uint("rope.dimension_count", lambda config: config.width // config.heads),
        ),
        vocabulary=arctic,
        transforms=(
            *WEIGHTS_PERMUTED,
            stack_experts(
                r"model\.layers\.(?P<layer>\d+)\.block_sparse_moe\.experts\.(?P<expert>\d+)\.(?P<part>w[123])\.weight",
                parts=("w1", "w2", "w3"),
                name="layers.{layer}.feed_forward.experts.{part}.weight",
            ),
        ),
    ),
)
