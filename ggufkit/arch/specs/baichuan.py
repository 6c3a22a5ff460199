"""Baichuan and Baichuan 2."""

from __future__ import annotations

from ggufkit.arch.graph import Graph
from ggufkit.arch.metadata import BASE, string, uint
from ggufkit.arch.spec import Architecture
from ggufkit.arch.specs.llama import PERMUTED
from ggufkit.arch.transforms import split_rows
from ggufkit.tokenizer.from_checkpoint.spm import sentencepiece

SPECS = (
    Architecture(
        name="baichuan",
        graph=Graph(alibi=lambda layers: 8.0 if layers == 40 else 0.0),
        models={"BaichuanForCausalLM": {}, "BaiChuanForCausalLM": {}},
        metadata=(
            *BASE,
            string("tensor_data_layout", "Meta AI original pth"),
            uint("rope.dimension_count", lambda config: config.width // config.heads),
        ),
        vocabulary=sentencepiece,
        transforms=(split_rows(r"W_pack(?=\.weight$)", "q_proj", "k_proj", "v_proj"), *PERMUTED),
    ),
)
