"""MiniMax Text 01 and M1: lightning attention, every few layers softmax attention, and experts."""

from __future__ import annotations

from collections.abc import Iterator

from ggufkit.arch.graph import Graph
from ggufkit.arch.metadata import BASE, real, uint
from ggufkit.arch.spec import Architecture
from ggufkit.arch.specs.moe import w123_experts
from ggufkit.checkpoint.checkpoint import Checkpoint
from ggufkit.checkpoint.config import Config
from ggufkit.errors import ArchitectureError
from ggufkit.gguf.header import Value, ValueType
from ggufkit.tokenizer.from_checkpoint.bpe import bpe
from ggufkit.tokenizer.from_checkpoint.fast import FastTokenizer


def _residual(config: Config) -> float:
    """What residuals are multiplied with: of three kinds of blocks, which are the same in all known models."""
    alphas = {config.number(f"layernorm_{part}_alpha") for part in ("full_attention", "linear_attention", "mlp")}
    betas = {config.number(f"layernorm_{part}_beta") for part in ("full_attention", "linear_attention", "mlp")}
    if len(alphas) > 1 or betas != {1.0}:
        raise ArchitectureError(
            f"config.json: residuals by {sorted(alphas)} and {sorted(betas)}; one, and 1, are known"
        )
    return alphas.pop()


def _vocabulary(checkpoint: Checkpoint, config: Config) -> Iterator[tuple[str, Value]]:
    """Byte-level BPE; added tokens without an embedding are never to be generated."""
    if (silent := _silent(checkpoint)) is not None:
        yield "tokenizer.ggml.suppress_tokens", Value(ValueType.ARRAY, silent, ValueType.INT32)
    yield from bpe(checkpoint, config)
    if (template := checkpoint.text("chat_template.jinja")) is not None:
        yield "tokenizer.chat_template", Value(ValueType.STRING, template)


def _silent(checkpoint: Checkpoint) -> list[int] | None:
    import numpy as np

    embedding = checkpoint.tensors.get("model.embed_tokens.weight")
    first = FastTokenizer(checkpoint).base_size
    if embedding is None or embedding.rows <= first:
        return None
    empty = ~np.any(embedding.floats(first, embedding.rows), axis=1)
    return (np.flatnonzero(empty) + first).tolist() or None


SPECS = (
    Architecture(
        name="minimax-01",
        graph=Graph(rope="neox", normed_stream=True, lightning=True),
        models={"MiniMaxM1ForCausalLM": {}, "MiniMaxText01ForCausalLM": {}},
        metadata=(
            *BASE,
            real("residual_scale", _residual),
            uint("rope.dimension_count", "rotary_dim"),
        ),
        vocabulary=_vocabulary,
        transforms=w123_experts("block_sparse_moe"),
    ),
)
