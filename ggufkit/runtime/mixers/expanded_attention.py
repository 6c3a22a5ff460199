"""Latent attention whose keys and values are made: files that keep the matrix for both in one.

    [nope | v] = W′ c of each head        softmax(q · [nope | k]) v        out

q, c and k as in `latents`.

Source: src/models/minicpm3.cpp and src/models/plm.cpp of llama.cpp.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ggufkit.runtime.loader import Loader
from ggufkit.runtime.mixers.latents import Latents, load_latents
from ggufkit.runtime.ops import Array, AttentionSpec, CacheSpec, Linear, Ops
from ggufkit.runtime.step import Step

__all__ = ["ExpandedAttention", "found", "load"]


@dataclass(frozen=True)
class ExpandedAttention:
    """One layer's.

    Attributes
    ----------
    latents : queries, c and k of a token.
    expanded : c → of each head its key without what turns, and its value.
    spec : for `Ops.attention`.
    """

    slot: int
    latents: Latents
    expanded: Linear
    out: Linear
    spec: AttentionSpec

    def memory(self, ops: Ops, types: CacheSpec, length: int) -> Any:
        return ops.layer_cache(self.spec, types, length)

    def run(self, x: Array, step: Step) -> Array:
        ops, n, heads = step.ops, len(x), self.spec.heads
        q_nope, q_rope, c, k, _ = self.latents.of(x, step)
        (both,) = ops.linear(c, self.expanded)
        k_nope, v = ops.split(both.reshape(n, heads, -1), [self.latents.nope, self.spec.head_v])
        q = ops.joined([q_nope, q_rope]).reshape(n, -1)
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
    hyper, at = load.hyper, f"blk.{layer}."
    heads, head, value = hyper.heads[layer], hyper.head_k[layer], hyper.head_v[layer]
    if not heads or hyper.kv_heads[layer] != heads:
        raise hyper.keys.fail(
            "attention.head_count_kv", f"must be as attention.head_count, not {hyper.kv_heads[layer]}"
        )
    latents = load_latents(load, layer, head, "attention.key_length")
    loaded = ExpandedAttention(
        slot=len(slots),
        latents=latents,
        expanded=load.linear(f"{at}attn_kv_b", heads * (latents.nope + value), latents.rank),
        out=load.linear(f"{at}attn_output", hyper.width, heads * value),
        spec=AttentionSpec(heads, heads, head, value, latents.scale, causal=hyper.causal),
    )
    slots.append(loaded)
    return loaded
