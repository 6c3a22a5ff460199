"""Architectures for which llama.cpp makes no cache: encoders that see a text as a whole, and diffusion models.

Source: `llama_model::create_memory` in src/llama-model.cpp of llama.cpp.
"""

from __future__ import annotations

__all__ = ["UNCACHED"]

UNCACHED = frozenset(
    {
        "bert",
        "clef",
        "dream",
        "eurobert",
        "gemma-embedding",
        "gemma-embedding2",
        "jina-bert-v2",
        "jina-bert-v3",
        "llada",
        "llada-moe",
        "modern-bert",
        "neo-bert",
        "nomic-bert",
        "nomic-bert-moe",
        "rnd1",
        "wavtokenizer-dec",
    }
)
