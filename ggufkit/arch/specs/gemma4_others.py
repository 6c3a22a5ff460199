"""What is built like Gemma 4: its drafting assistants, and EmbeddingGemma 2."""

from __future__ import annotations

from dataclasses import replace

from ggufkit.arch.metadata import flag, pooling, uint
from ggufkit.arch.spec import Architecture
from ggufkit.arch.specs.gemma4 import GEMMA4, proportional
from ggufkit.arch.transforms import drop, rename
from ggufkit.checkpoint.config import Config


def _shares_nothing(config: Config) -> int:
    return 0


# Keys and values of its own in every layer, windows to both sides, and ropes that need no divisors.
_EMBEDDING_KEYS = tuple(
    uint("attention.shared_kv_layers", _shares_nothing)
    if getattr(row, "key", "") == "attention.shared_kv_layers"
    else row
    for row in GEMMA4.metadata
)

_GRAPH = GEMMA4.graph
assert _GRAPH is not None

SPECS: tuple[Architecture, ...] = (
    replace(
        GEMMA4,
        name="gemma4-assistant",
        graph=None,
        models=dict.fromkeys(
            ("Gemma4AssistantForCausalLM", "Gemma4UnifiedAssistantForCausalLM"),
            GEMMA4.models["Gemma4ForCausalLM"],
        ),
        metadata=(
            *GEMMA4.metadata,
            uint("embedding_length_out", "backbone_hidden_size"),
            uint("nextn_predict_layers", lambda config: config.layers),
        ),
        transforms=(drop(r"masked_embedding"), *GEMMA4.transforms),
    ),
    replace(
        GEMMA4,
        name="gemma-embedding2",
        graph=replace(_GRAPH, two_sided=True, full_rope_factors=False, projected_embedding=True),
        models={"EmbeddingGemma2Model": GEMMA4.models["Gemma4ForCausalLM"]},
        metadata=(
            *_EMBEDDING_KEYS,
            uint("attention.sliding_window", lambda config: 2 * config.integer("sliding_window")),
            uint("embedding_length_out", "embedding_dim"),
            flag("attention.causal", False),
            pooling,
        ),
        transforms=(
            rename((r"^(?=(embed_tokens|layers|norm)\.)", "model.")),
            *(step for step in GEMMA4.transforms if step is not proportional),
        ),
    ),
)
