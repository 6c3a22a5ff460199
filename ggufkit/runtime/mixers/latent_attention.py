"""Multi-head latent attention: all heads share one short vector of each token, from which keys and values are made
(`latents`).

    q′ = [K_h q_nope | q_rope]        softmax(q′ · [c | k]) c        V_h of each head's        × gate        out

Keys and values are never made: the matrices that would make them are on the side of the queries and of what is found
(absorbed), so that the cache holds only [c | k] and c.

Source: src/models/deepseek2.cpp of llama.cpp; DeepSeek-AI, "DeepSeek-V2", 2024.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ggufkit.runtime.loader import Loader
from ggufkit.runtime.mixers.attention import Temperature
from ggufkit.runtime.mixers.latents import Latents, load_latents, of_window
from ggufkit.runtime.ops import Array, AttentionSpec, CacheSpec, Linear, Ops
from ggufkit.runtime.step import Step

__all__ = ["LatentAttention", "found", "load"]


@dataclass(frozen=True)
class LatentAttention:
    """One layer's.

    Attributes
    ----------
    latents : queries, c and k of a token.
    keys, values : stacks of a matrix per head: nope → c, c → value.
    spec : for `Ops.attention`, with one key head.
    temperature : of queries, or None.
    gate : width → numbers whose sigmoid multiplies what was found, each its own or one of a head; or None.
    """

    slot: int
    latents: Latents
    keys: Linear
    values: Linear
    out: Linear
    spec: AttentionSpec
    temperature: Temperature | None
    gate: Linear | None

    def memory(self, ops: Ops, types: CacheSpec, length: int) -> Any:
        return ops.layer_cache(self.spec, types, length)

    def run(self, x: Array, step: Step) -> Array:
        q, keys, c, _ = self.looked(x, step)
        return self.out_of(step.ops.attention(q, keys, step.ops.copy(c), step.spans(self.slot), self.spec), x, step)

    def looked(self, x: Array, step: Step) -> tuple[Array, Array, Array, Array | None]:
        """Queries (n, heads × head_k), keys (n, head_k), c, and the queries' short vector or None."""
        ops, n = step.ops, len(x)
        q_nope, q_rope, c, k, short = self.latents.of(x, step)
        (absorbed,) = ops.each(q_nope, ops.indices(n, self.spec.heads), self.keys)  # (n, heads, rank)
        q = ops.joined([absorbed, q_rope]).reshape(n, -1)
        if self.temperature is not None:
            q = step.scaled(q, self.temperature.factors)
        return q, ops.joined([c, k]), c, short

    def out_of(self, found: Array, x: Array, step: Step) -> Array:
        """What attention found for x, (n, heads × rank) or (n, heads, rank), as the layer's result."""
        ops, n, heads = step.ops, len(found), self.spec.heads
        (values,) = ops.each(found.reshape(n, heads, -1), ops.indices(n, heads), self.values)  # (n, heads, value)
        values = values.reshape(n, -1)
        if self.gate is not None:
            (gate,) = ops.linear(x, self.gate)
            values = ops.gated(values, gate)
        (y,) = ops.linear(values, self.out)
        return y


def found(load: Loader, at: str) -> bool:
    """Whether a block has attention of this kind."""
    made = load.has(f"{at}attn_kv_b.weight")  # keys and values: see `expanded_attention`
    return load.has(f"{at}attn_kv_a_mqa.weight") and not made and load.graph.index_rope is None


def load(load: Loader, layer: int, slots: list[Any]) -> LatentAttention:
    """A layer's, its tensors checked and taken."""
    hyper, at = load.hyper, f"blk.{layer}."
    head, value = (of_window(load, layer, f"attention.{part}_length_mla") for part in ("key", "value"))
    sinks = f"{at}attn_sinks.weight"
    latents = load_latents(load, layer, head, "attention.key_length_mla")
    heads, rank = latents.heads, latents.rank
    loaded = LatentAttention(
        slot=len(slots),
        latents=latents,
        keys=load.linear(f"{at}attn_k_b", rank, latents.nope, heads),
        values=load.linear(f"{at}attn_v_b", value, rank, heads),
        out=load.linear(f"{at}attn_output", hyper.width, heads * value),
        spec=AttentionSpec(
            heads=heads,
            kv_heads=1,
            head_k=rank + latents.turned,
            head_v=rank,
            scale=latents.scale,
            window=hyper.windows[layer],
            causal=hyper.causal,
            sinks=load.ops.vector(load.vector(sinks, heads)) if load.has(sinks) else None,
        ),
        temperature=_temperature(load),
        gate=load.linear(f"{at}attn_gate", -1, hyper.width) if load.has(f"{at}attn_gate.weight") else None,
    )
    slots.append(loaded)
    return loaded


def _temperature(load: Loader) -> Temperature | None:
    scale = load.hyper.keys.number("attention.temperature_scale", 0.0)
    return Temperature(scale, load.hyper.scaling.original) if scale else None
