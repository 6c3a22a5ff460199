"""The forward pass, once for all architectures and backends.

    embed → block × layers → output norm → logits

Source: src/models/*.cpp and src/llama-graph.cpp of llama.cpp.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ggufkit.arch.hyperparameters import Hyper
from ggufkit.runtime.blocks import Block, FeedForward, Weights
from ggufkit.runtime.ops import Array, Experts, Ops, Span

__all__ = ["hidden_states", "logits"]

# Cosines and sines of the tokens' positions, of layers that see everything and of those with a window.
Angles = tuple[Any, Any]


def hidden_states(
    ops: Ops,
    hyper: Hyper,
    weights: Weights,
    style: str | None,
    tokens: Any,
    positions: Any,
    angles: Angles,
    spans: Sequence[Span],
) -> Array:
    """What the last block gives for `tokens`, before the output norm: (n, width).

    Parameters
    ----------
    style : of rope.
    tokens, positions : (n,) int32 each.
    angles : of layers that see everything, and of those with a window: of each row, (n, pairs); None without rope.
    spans : which rows belong to which conversation; they follow the tokens in its caches, a list of one per layer.
    """
    x = ops.embed(weights.embedding, tokens)  # (n, width)
    if weights.token_type is not None:
        x = ops.add(x, weights.token_type)
    if weights.position is not None:
        x = ops.add(x, ops.embed(weights.position, positions))
    if hyper.embedding_scale != 1:
        x = ops.scale(x, hyper.embedding_scale)
    if weights.embedding_norm is not None:
        x = ops.norm(x, weights.embedding_norm)
    for layer, block in enumerate(weights.blocks):
        own = [Span(span.lo, span.hi, span.start, span.cache[layer]) for span in spans]
        x = _block(ops, hyper, block, style if block.rope else None, x, angles[block.local], own)
    return x


def logits(ops: Ops, hyper: Hyper, weights: Weights, x: Array) -> Array:
    """(n, vocabulary) of hidden states (n, width)."""
    if weights.output_norm is not None:
        x = ops.norm(x, weights.output_norm)
    (scores,) = ops.linear(x, weights.output)  # type: ignore[arg-type]
    if hyper.logit_scale != 1:
        scores = ops.scale(scores, hyper.logit_scale)
    if hyper.logit_cap:
        scores = ops.soft_cap(scores, hyper.logit_cap)
    return scores


def _block(
    ops: Ops, hyper: Hyper, block: Block, style: str | None, x: Array, angles: Any, spans: Sequence[Span]
) -> Array:
    attended = _attention(ops, block, style, _normed(ops, x, block.attention_norm), angles, spans)
    attended = _scaled(ops, hyper, _normed(ops, attended, block.attention_post_norm))
    if block.parallel:
        fed = _scaled(ops, hyper, _feed_forward(ops, block, _normed(ops, x, block.ffn_norm)))
        return ops.add(ops.add(fed, attended), x)
    x = _normed(ops, ops.add(attended, x), block.attention_sum_norm)
    fed = _feed_forward(ops, block, _normed(ops, x, block.ffn_norm))
    fed = _scaled(ops, hyper, _normed(ops, fed, block.ffn_post_norm))
    return _normed(ops, ops.add(fed, x), block.ffn_sum_norm)


def _normed(ops: Ops, x: Array, norm: Any) -> Array:
    return x if norm is None else ops.norm(x, norm)


def _scaled(ops: Ops, hyper: Hyper, x: Array) -> Array:
    return x if hyper.residual_scale == 1 else ops.scale(x, hyper.residual_scale)


def _attention(ops: Ops, block: Block, style: str | None, x: Array, angles: Any, spans: Sequence[Span]) -> Array:
    spec = block.attention
    q, k, v = ops.linear(
        x, block.q, block.k, block.v
    )  # (n, heads × head_k), (n, kv_heads × head_k), (n, kv_heads × head_v)
    q, k = _normed(ops, q, block.q_norm), _normed(ops, k, block.k_norm)
    if style is not None:
        q, k = ops.rope(q, spec.heads, style, angles), ops.rope(k, spec.kv_heads, style, angles)
    found = ops.attention(q, k, v, spans, spec)  # (n, heads × head_v)
    (out,) = ops.linear(_normed(ops, found, block.attention_sub_norm), block.out)
    return out


def _feed_forward(ops: Ops, block: Block, x: Array) -> Array:
    dense = None if block.ffn is None else _dense(ops, block.ffn, x)
    if block.experts is None:
        return dense
    chosen = _experts(ops, block.experts, x)
    return chosen if dense is None else ops.add(chosen, dense)


def _experts(ops: Ops, experts: Experts, x: Array) -> Array:
    (scores,) = ops.linear(x, experts.router)
    chosen, weights = ops.choose(scores, experts)  # (n, used) each
    x = x.reshape(len(x), 1, -1)
    if experts.gate is None:
        gate, (up,) = None, ops.each(x, chosen, experts.up)
    else:
        gate, up = ops.each(x, chosen, experts.gate, experts.up)  # (n, used, inner) each
    (out,) = ops.each(ops.activate(gate, up, experts.activation), chosen, experts.down)
    return ops.mix(out, weights)


def _dense(ops: Ops, ffn: FeedForward, x: Array) -> Array:
    if ffn.gate is None:
        gate, (up,) = None, ops.linear(x, ffn.up)
    else:
        gate, up = ops.linear(x, ffn.gate, ffn.up)
    inner = _normed(ops, ops.activate(gate, up, ffn.activation), ffn.sub_norm)
    (out,) = ops.linear(inner, ffn.down)
    if ffn.share is not None:
        (score,) = ops.linear(x, ffn.share)
        out = ops.gated(out, score)
    return out
