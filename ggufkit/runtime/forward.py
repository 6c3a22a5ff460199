"""The forward pass, once for all architectures and backends.

    embed → block × layers → output norm → logits

Source: src/models/*.cpp and src/llama-graph.cpp of llama.cpp.
"""

from __future__ import annotations

from ggufkit.arch.hyperparameters import Hyperparameters
from ggufkit.runtime.ops import Array, Ops
from ggufkit.runtime.step import Step
from ggufkit.runtime.weights import Weights

__all__ = ["hidden_states", "logits"]


def hidden_states(hyper: Hyperparameters, weights: Weights, step: Step) -> Array:
    """What the last block gives for the rows of a pass, before the output norm: (n, width)."""
    ops = step.ops
    x = ops.embed(weights.embedding, step.tokens)  # (n, width)
    if weights.token_type is not None:
        x = ops.add(x, weights.token_type)
    if weights.position is not None:
        x = ops.add(x, ops.embed(weights.position, step.positions))
    if hyper.embedding_scale != 1:
        x = ops.scale(x, hyper.embedding_scale)
    if step.seen:
        x = step.with_seen(x)
    if weights.embedding_norm is not None:
        x = ops.norm(x, weights.embedding_norm)
    if weights.per_layer is not None:
        step.per_layer = weights.per_layer.run(x, step)
    if weights.embedding_added:
        step.embedding = ops.copy(x)
    if weights.passes is not None:
        return weights.passes.run(weights.blocks, x, step)
    if weights.streams is None:
        for layer, block in enumerate(weights.blocks):
            x = block.run(x, step)
            if step.seen:
                x = step.deepened(x, layer)
        return x
    streams = weights.streams.open(ops, x)
    for block in weights.blocks:
        streams = block.run(streams, step)
    return weights.streams.close(ops, streams)


def logits(ops: Ops, hyper: Hyperparameters, weights: Weights, x: Array) -> Array:
    """(n, vocabulary) of hidden states (n, width)."""
    if weights.output_norm is not None:
        x = ops.norm(x, weights.output_norm)
    (scores,) = ops.linear(x, weights.output)  # type: ignore[arg-type]
    if hyper.logit_scale != 1:
        scores = ops.scale(scores, hyper.logit_scale)
    if hyper.logit_cap:
        scores = ops.soft_cap(scores, hyper.logit_cap)
    if weights.silent is not None:
        scores = ops.add(scores, weights.silent)
    return scores
