"""Latent attention whose keys and values are made: files that keep the matrix for both in one.

    q = W_b norm(W_a x) of each head: [nope | rope]        c, k = W x, c = norm(c), k turned
    [nope | v] = W′ c of each head        softmax(q · [nope | k]) v        out

Source: src/models/minicpm3.cpp and src/models/plm.cpp of llama.cpp.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ggufkit.runtime.loader import Loader
from ggufkit.runtime.mixers.attention import rope_of
from ggufkit.runtime.mixers.latent_attention import yarn
from ggufkit.runtime.ops import Array, AttentionSpec, CacheSpec, Linear, Norm, Ops
from ggufkit.runtime.rope import Rope
from ggufkit.runtime.step import Step

__all__ = ["ExpandedAttention", "found", "load"]


@dataclass(frozen=True)
class ExpandedAttention:
    """One layer's.

    Attributes
    ----------
    short, q_norm, q : matrices and norm of the queries; the first two may be None.
    latent, latent_norm : c and k of a token.
    expanded : c → of each head its key without what turns, and its value.
    nope, turned : numbers of a key that are not turned, and that are.
    rope : or None.
    spec : for `Ops.attention`.
    """

    slot: int
    short: Linear | None
    q_norm: Norm | None
    q: Linear
    latent: tuple[Linear, ...]
    latent_norm: Norm | None
    expanded: Linear
    out: Linear
    nope: int
    turned: int
    rope: Rope | None
    spec: AttentionSpec

    def memory(self, ops: Ops, types: CacheSpec, length: int) -> Any:
        return ops.layer_cache(self.spec, types, length)

    def run(self, x: Array, step: Step) -> Array:
        ops, n, heads = step.ops, len(x), self.spec.heads
        if self.short is None:
            q, c, k = ops.linear(x, self.q, *self.latent)
        else:
            short, c, k = ops.linear(x, self.short, *self.latent)
            (q,) = ops.linear(short if self.q_norm is None else ops.norm(short, self.q_norm), self.q)
        (both,) = ops.linear(c if self.latent_norm is None else ops.norm(c, self.latent_norm), self.expanded)
        q_nope, q_rope = ops.split(q.reshape(n, heads, -1), [self.nope, self.turned])
        q_rope = q_rope.reshape(n, -1)
        if self.rope is not None:
            q_rope, k = step.turned(q_rope, heads, self.rope), step.turned(k, 1, self.rope)
        q = ops.joined([q_nope, q_rope.reshape(n, heads, -1)]).reshape(n, -1)
        k_nope, v = ops.split(both.reshape(n, heads, -1), [self.nope, self.spec.head_v])
        shared = ops.joined([k] * heads).reshape(n, heads, -1)
        keys = ops.joined([k_nope, shared]).reshape(n, -1)
        found = ops.attention(q, keys, v.reshape(n, -1), step.spans(self.slot), self.spec)
        (y,) = ops.linear(found, self.out)
        return y


def found(load: Loader, at: str) -> bool:
    """Whether a block has attention of this kind."""
    return load.has(f"{at}attn_kv_a_mqa.weight") and load.has(f"{at}attn_kv_b.weight")


def load(load: Loader, layer: int, slots: list[Any]) -> ExpandedAttention:
    """A layer's, its tensors checked and taken."""
    hyper, keys, at, width = load.hyper, load.hyper.keys, f"blk.{layer}.", load.hyper.width
    heads, head, value, turned = hyper.heads[layer], hyper.head_k[layer], hyper.head_v[layer], hyper.rope_dimensions
    rank = keys.count("attention.kv_lora_rank")
    if turned >= head:
        raise keys.fail("attention.key_length", f"must be more than the {turned} numbers that turn, not {head}")
    if not heads or hyper.kv_heads[layer] != heads:
        raise keys.fail("attention.head_count_kv", f"must be as attention.head_count, not {hyper.kv_heads[layer]}")
    short = load.linear(f"{at}attn_q_a", -1, width) if load.has(f"{at}attn_q_a.weight") else None
    query = ("attn_q_b", short.rows) if short is not None else ("attn_q", width)
    rope, scale = yarn(load, rope_of(load, layer))
    loaded = ExpandedAttention(
        slot=len(slots),
        short=short,
        q_norm=None if short is None else load.norm(f"{at}attn_q_a_norm", short.rows),
        q=load.linear(f"{at}{query[0]}", heads * head, query[1]),
        latent=tuple(load.parts(f"{at}attn_kv_a_mqa", [rank, turned], width)),
        latent_norm=load.norm(f"{at}attn_kv_a_norm", rank),
        expanded=load.linear(f"{at}attn_kv_b", heads * (head - turned + value), rank),
        out=load.linear(f"{at}attn_output", width, heads * value),
        nope=head - turned,
        turned=turned,
        rope=rope,
        spec=AttentionSpec(heads, heads, head, value, scale * scale / math.sqrt(head), causal=hyper.causal),
    )
    slots.append(loaded)
    return loaded
