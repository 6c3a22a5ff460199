"""Multi-head latent attention: all heads share one short vector of each token, from which keys and values are made.

    q = W_b norm(W_a x) of each head: [nope | rope]        c, k = W x, c = norm(c), k turned
    q′ = [K_h q_nope | q_rope]        softmax(q′ · [c | k]) c        V_h of each head's        out

Keys and values are never made: the matrices that would make them are on the side of the queries and of what is found
(absorbed), so that the cache holds only [c | k] and c.

Source: src/models/deepseek2.cpp of llama.cpp; DeepSeek-AI, "DeepSeek-V2", 2024.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from ggufkit.runtime.loader import Loader
from ggufkit.runtime.mixers.attention import Temperature, rope_of
from ggufkit.runtime.ops import Array, AttentionSpec, CacheSpec, Linear, Norm, Ops
from ggufkit.runtime.rope import Rope
from ggufkit.runtime.step import Step

__all__ = ["LatentAttention", "found", "load", "yarn"]


@dataclass(frozen=True)
class LatentAttention:
    """One layer's.

    Attributes
    ----------
    q_a, q_norm, q : matrices and norm of the queries; the first two may be None.
    latent, latent_norm : c and k of a token.
    keys, values : stacks of a matrix per head: nope → c, c → value.
    nope, turned : numbers of a query that are not turned, and that are.
    rope : or None.
    spec : for `Ops.attention`, with one key head.
    temperature : of queries, or None.
    """

    slot: int
    q_a: Linear | None
    q_norm: Norm | None
    q: Linear
    latent: tuple[Linear, ...]
    latent_norm: Norm | None
    keys: Linear
    values: Linear
    out: Linear
    nope: int
    turned: int
    rope: Rope | None
    spec: AttentionSpec
    temperature: Temperature | None

    def memory(self, ops: Ops, types: CacheSpec, length: int) -> Any:
        return ops.layer_cache(self.spec, types, length)

    def run(self, x: Array, step: Step) -> Array:
        q, keys, c, _ = self.looked(x, step)
        return self.out_of(step.ops.attention(q, keys, step.ops.copy(c), step.spans(self.slot), self.spec), step)

    def looked(self, x: Array, step: Step) -> tuple[Array, Array, Array, Array]:
        """Queries (n, heads × head_k), keys (n, head_k), c, and the queries' short vector or None."""
        ops, n, heads = step.ops, len(x), self.spec.heads
        short = None
        if self.q_a is None:
            q, c, k = ops.linear(x, self.q, *self.latent)
        else:
            short, c, k = ops.linear(x, self.q_a, *self.latent)
            short = short if self.q_norm is None else ops.norm(short, self.q_norm)
            (q,) = ops.linear(short, self.q)
        c = c if self.latent_norm is None else ops.norm(c, self.latent_norm)
        q_nope, q_rope = ops.split(q.reshape(n, heads, -1), [self.nope, self.turned])
        q_rope = q_rope.reshape(n, -1)
        if self.rope is not None:
            q_rope, k = step.turned(q_rope, heads, self.rope), step.turned(k, 1, self.rope)
        each = ops.indices(n, heads)
        (absorbed,) = ops.each(q_nope, each, self.keys)  # (n, heads, rank)
        q = ops.joined([absorbed, q_rope.reshape(n, heads, -1)]).reshape(n, -1)
        if self.temperature is not None:
            q = q * ops.vector(self.temperature.factors(step.positions))
        return q, ops.joined([c, k]), c, short

    def out_of(self, found: Array, step: Step) -> Array:
        """What attention found, (n, heads × rank) or (n, heads, rank), as the layer's result."""
        ops, n, heads = step.ops, len(found), self.spec.heads
        (values,) = ops.each(found.reshape(n, heads, -1), ops.indices(n, heads), self.values)  # (n, heads, value)
        (y,) = ops.linear(values.reshape(n, -1), self.out)
        return y


def found(load: Loader, at: str) -> bool:
    """Whether a block has attention of this kind."""
    made = load.has(f"{at}attn_kv_b.weight")  # keys and values: see `expanded_attention`
    return load.has(f"{at}attn_kv_a_mqa.weight") and not made and load.graph.index_rope is None


def load(load: Loader, layer: int, slots: list[Any]) -> LatentAttention:
    """A layer's, its tensors checked and taken."""
    hyper, keys, at, width = load.hyper, load.hyper.keys, f"blk.{layer}.", load.hyper.width
    heads, rank = hyper.heads[layer], keys.count("attention.kv_lora_rank")
    head, value = keys.count("attention.key_length_mla"), keys.count("attention.value_length_mla")
    turned = hyper.rope_dimensions
    if turned >= head:
        raise keys.fail("attention.key_length_mla", f"must be more than the {turned} numbers that turn, not {head}")
    short = load.linear(f"{at}attn_q_a", -1, width) if load.has(f"{at}attn_q_a.weight") else None
    query = ("attn_q_b", short.rows) if short is not None else ("attn_q", width)
    rope, scale = yarn(load, rope_of(load, layer))
    loaded = LatentAttention(
        slot=len(slots),
        q_a=short,
        q_norm=None if short is None else load.norm(f"{at}attn_q_a_norm", short.rows),
        q=load.linear(f"{at}{query[0]}", heads * head, query[1]),
        latent=tuple(load.parts(f"{at}attn_kv_a_mqa", [rank, turned], width)),
        latent_norm=load.norm(f"{at}attn_kv_a_norm", rank),
        keys=load.linear(f"{at}attn_k_b", rank, head - turned, heads),
        values=load.linear(f"{at}attn_v_b", value, rank, heads),
        out=load.linear(f"{at}attn_output", width, heads * value),
        nope=head - turned,
        turned=turned,
        rope=rope,
        spec=AttentionSpec(heads, 1, rank + turned, rank, scale * scale / math.sqrt(head), causal=hyper.causal),
        temperature=_temperature(load),
    )
    slots.append(loaded)
    return loaded


def yarn(load: Loader, rope: Rope | None) -> tuple[Rope | None, float]:
    """The layer's rope, and what queries and keys are multiplied by instead of its cosines and sines."""
    multiplier = load.hyper.keys.number("rope.scaling.yarn_log_multiplier", 0.0)
    if rope is None or rope.scaling.kind != "yarn" or not multiplier:
        return rope, 1.0
    stretched = math.log(rope.scaling.factor)
    scaling = replace(rope.scaling, attention_factor=rope.scaling.attention_factor / (1 + 0.1 * stretched))
    return replace(rope, scaling=scaling), 1 + multiplier * stretched


def _temperature(load: Loader) -> Temperature | None:
    scale = load.hyper.keys.number("attention.temperature_scale", 0.0)
    return Temperature(scale, load.hyper.scaling.original) if scale else None
