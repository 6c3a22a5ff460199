"""What a GGUF is that is not a language model."""

from __future__ import annotations

from ggufkit.gguf.reader import GGUF

__all__ = ["other_kind"]


def other_kind(gguf: GGUF) -> tuple[str, str] | None:
    """What a GGUF without a language model is, and what to do with it; None of a model."""
    kind, architecture = (gguf.metadata.get(f"general.{key}") for key in ("type", "architecture"))
    if kind == "adapter":
        return "a LoRA adapter", "run its base model with {lora}"
    if kind == "imatrix" or "imatrix.datasets" in gguf.fields or "imatrix.chunk_count" in gguf.fields:
        return "an importance matrix", "quantize a model with it"
    if kind == "mmproj" or architecture == "clip":
        return "the projector of a model that sees or hears", "give the language model that it belongs to"
    if not gguf.info and "tokenizer.ggml.tokens" in gguf.fields:
        return "a vocabulary alone", "tokenize with it, or give the whole model"
    return None
