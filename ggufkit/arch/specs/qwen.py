"""Qwen of the first generation, whose vocabulary is tiktoken's."""

from __future__ import annotations

from ggufkit.arch.graph import Graph
from ggufkit.arch.metadata import BASE
from ggufkit.arch.spec import Architecture
from ggufkit.tokenizer.from_checkpoint.tiktoken import qwen

# What llama.cpp reads by other names, which its converter does not write: such a file would not load.
_DEFAULTS = {
    "max_position_embeddings": lambda config: config.get("seq_length"),
    "rms_norm_eps": lambda config: config.get("layer_norm_epsilon"),
}

SPECS = (
    Architecture(
        name="qwen", graph=Graph(rope="neox"), models={"QWenLMHeadModel": _DEFAULTS}, metadata=BASE, vocabulary=qwen
    ),
)
