"""Attention: every token looks at those before it, or all of them, or those in a window.

    x ─ q k v ─ norms ─ rope ─ softmax(q kᵀ) v ─ × gate ─ out

A layer may be without keys and values of its own and look at those of an earlier one.

Source: `build_attn` in src/llama-graph.cpp and src/models/*.cpp of llama.cpp.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ggufkit.arch.hyperparameters import RopeScaling
from ggufkit.runtime.choices import choice_of
from ggufkit.runtime.loader import Loader
from ggufkit.runtime.ops import Array, AttentionSpec, CacheSpec, Choice, Linear, Norm, Ops
from ggufkit.runtime.rope import Rope
from ggufkit.runtime.step import Step

__all__ = ["Attention", "RoutedValues", "Temperature", "found", "load", "rope_of"]

_LN2 = math.log(2)


@dataclass(frozen=True)
class Temperature:
    """Queries are multiplied by 1 + scale · ln(1 + ⌊(position + first) / length⌋)."""

    scale: float
    length: int
    first: int = 0

    def factors(self, positions: np.ndarray) -> np.ndarray:
        """(n,) → (n, 1) float32."""
        result: np.ndarray = (1 + self.scale * np.log1p((positions + self.first) // self.length))[:, None].astype(
            np.float32
        )
        return result


@dataclass(frozen=True)
class RoutedValues:
    """Values that a token has of a few experts: Σ weight · silu(W x)."""

    choice: Choice
    experts: Linear

    def run(self, ops: Ops, x: Array) -> Array:
        """(n, width) → (n, kv_heads × head_v)."""
        (scores,) = ops.linear(x, self.choice.router)
        chosen, weights = ops.choose(scores, self.choice)
        (values,) = ops.each(x.reshape(len(x), 1, -1), chosen, self.experts)
        return ops.mix(ops.activate(None, values, "silu"), weights)


@dataclass(frozen=True)
class Attention:
    """One layer's attention.

    Attributes
    ----------
    slot : of its keys and values, or of the layer whose it uses.
    q, k, v, out : its matrices; without `k` keys and values are another layer's, without `v` values are the keys.
    q_norm, k_norm, v_norm, sub_norm : or None; the last is before `out`.
    late_norm : queries and keys are normalised after rope.
    rope : or None.
    spec : for `Ops.attention`.
    gate : width → numbers whose sigmoid multiplies what was found, each its own or one of a head; or None.
    gate_kind : ``"sigmoid"``, or what stands for it: see `Graph.gate`.
    gated : the gate comes with the queries: of each head first the query, then its gate.
    clamp : queries, keys and values are kept within ± this; 0 for none.
    temperature : of queries, or None.
    value_scale : multiplies values.
    routed : experts that values come from, instead of `v`; or None.
    """

    slot: int
    q: Linear
    k: Linear | None
    v: Linear | None
    out: Linear
    q_norm: Norm | None
    k_norm: Norm | None
    v_norm: Norm | None
    sub_norm: Norm | None
    late_norm: bool
    rope: Rope | None
    spec: AttentionSpec
    gate: Linear | None
    gate_kind: str
    gated: bool
    clamp: float
    temperature: Temperature | None
    value_scale: float
    routed: RoutedValues | None = None

    def memory(self, ops: Ops, types: CacheSpec, length: int) -> Any:
        return ops.layer_cache(self.spec, types, length)

    def run(self, x: Array, step: Step) -> Array:
        ops, spec = step.ops, self.spec
        q, k, v, gate = self.looked(x, step)
        return self.out_of(ops, ops.attention(q, k, v, step.spans(self.slot), spec), gate)

    def out_of(self, ops: Ops, found: Array, gate: Array) -> Array:
        """What attention found, (n, heads × head_v), as the layer's result."""
        if self.sub_norm is not None:
            found = ops.norm(found, self.sub_norm)
        if gate is not None:
            found = self._gated(ops, found, gate)
        (y,) = ops.linear(found, self.out)
        return y

    def looked(self, x: Array, step: Step) -> tuple[Array, Array, Array, Array]:
        """Queries, keys, values and gate, (n, heads × head_k) and so on; None of what there is not."""
        ops, spec = step.ops, self.spec
        linears = [linear for linear in (self.q, self.k, self.v, self.gate) if linear is not None]
        parts = list(ops.linear(x, *linears))  # (n, heads × head_k), (n, kv_heads × head_k), (n, kv_heads × head_v)
        q, gate = parts.pop(0), parts.pop() if self.gate is not None else None
        if self.gated:
            q, gate = ops.halves(q, spec.heads)
        if self.routed is not None:
            parts.append(self.routed.run(ops, x))
        k, v = parts if len(parts) == 2 else (parts[0], ops.copy(parts[0])) if parts else (None, None)
        if self.clamp:
            q, k, v = (ops.clamp(part, -self.clamp, self.clamp) for part in (q, k, v))
        q, k = self.placed(q, spec.heads, self.q_norm, step), self.placed(k, spec.kv_heads, self.k_norm, step)
        if self.temperature is not None:
            q = step.scaled(q, self.temperature.factors)
        if v is not None and self.v_norm is not None:
            v = ops.norm(v, self.v_norm)
        if v is not None and self.value_scale != 1:
            v = ops.scale(v, self.value_scale)
        return q, k, v, gate

    def _gated(self, ops: Ops, found: Array, gate: Array) -> Array:
        if self.gate_kind == "sigmoid":
            return ops.gated(found, gate)
        base = _LN2 if self.gate_kind == "log2" else 1.0
        factors = ops.activate(None, gate * base, "softplus") * (1 / base)
        n, heads = len(found), self.spec.heads
        return (found.reshape(n, heads, -1) * factors.reshape(n, heads, -1)).reshape(n, -1)

    def placed(self, x: Array, heads: int, norm: Norm | None, step: Step) -> Array:
        """Queries or keys, normalised and turned."""
        if x is None:
            return None
        if norm is not None and not self.late_norm:
            x = step.ops.norm(x, norm)
        if self.rope is not None:
            x = step.turned(x, heads, self.rope)
        return step.ops.norm(x, norm) if norm is not None and self.late_norm else x


def found(load: Loader, at: str) -> bool:
    """Whether a block has attention of this kind."""
    others = "attn_kv_a_mqa", "ssm_conv1d_q", "attn_o", "indexer.q_proj"
    if any(load.has(f"{at}{name}.weight") for name in others):
        return False
    if load.has(f"{at}attn_q.weight"):
        return True
    fused, lightning = load.has(f"{at}attn_qkv.weight"), load.graph.lightning
    return fused and not load.has(f"{at}ssm_out.weight") and not (lightning and load.has(f"{at}attn_norm_2.weight"))


def load(load: Loader, layer: int, slots: list[Any]) -> Attention:
    """Attention of a layer, its tensors checked and taken."""
    hyper, graph, at, ops = load.hyper, load.graph, f"blk.{layer}.", load.ops
    heads, kv_heads, width = hyper.heads[layer], hyper.kv_heads[layer], hyper.width
    head_k, head_v, window = hyper.head_k[layer], hyper.head_v[layer], hyper.windows[layer]
    gated = (
        load.has(f"{at}attn_q.weight") and load.tensor(f"{at}attn_q.weight", -1, width).shape[-2] == 2 * heads * head_k
    )
    rows = [heads * head_k * (2 if gated else 1), kv_heads * head_k, kv_heads * head_v]
    q, k, v = _projections(load, layer, rows)
    rope = _stretched(load, rope_of(load, layer))
    q_norm = load.norm(f"{at}attn_q_norm", head_k, heads, graph.head_norm, graph.norms_of_heads)
    k_norm = load.norm(f"{at}attn_k_norm", head_k, kv_heads, graph.head_norm, graph.norms_of_heads)
    if graph.plain_norm and rope is not None:
        q_norm, k_norm = q_norm or load.plain_norm(head_k), k_norm or load.plain_norm(head_k)
    sinks = load.vector(f"{at}attn_sinks.weight", heads) if load.has(f"{at}attn_sinks.weight") else None
    gate = load.linear(f"{at}attn_gate", -1, width) if load.has(f"{at}attn_gate.weight") else None
    loaded = Attention(
        slot=len(slots) if k is not None else _shared_slot(load, layer, slots),
        q=q,
        k=k,
        v=v,
        out=load.linear(f"{at}attn_output", width, heads * head_v),
        q_norm=q_norm,
        k_norm=k_norm,
        v_norm=load.plain_norm(head_v) if graph.value_norm else None,
        sub_norm=load.norm(f"{at}attn_sub_norm", heads * head_v),
        late_norm=graph.late_norm or graph.plain_norm,
        rope=rope,
        spec=AttentionSpec(
            heads=heads,
            kv_heads=kv_heads,
            head_k=head_k,
            head_v=head_v,
            scale=hyper.attention_scale[layer],
            cap=hyper.attention_cap,
            window=window,
            causal=hyper.causal,
            sinks=None if sinks is None else ops.vector(sinks),
            slopes=_slopes(load, heads),
            chunked=graph.chunked and window > 0,
            two_sided=graph.two_sided and window > 0,
        ),
        gate=gate,
        gate_kind=graph.gate,
        gated=gated,
        clamp=hyper.keys.number("attention.clamp_kqv", 0.0),
        temperature=_temperature(load, rope),
        value_scale=hyper.keys.number("attention.value_scale", 1.0),
        routed=_routed_values(load, at, rows[2]),
    )
    if k is not None:
        slots.append(loaded)
    return loaded


def _routed_values(load: Loader, at: str, rows: int) -> RoutedValues | None:
    if not load.has(f"{at}attn_v_exps.weight"):
        return None
    count = load.hyper.keys.count("attention.value_expert_count")
    used = load.hyper.keys.count("attention.value_expert_used_count", most=count)
    router = load.linear(f"{at}attn_v_gate", count, load.hyper.width)
    bias, router = router.bias, replace(router, bias=None)  # of the choice alone
    return RoutedValues(
        choice=Choice(**choice_of(load, router, used, bias)),
        experts=load.linear(f"{at}attn_v_exps", rows, load.hyper.width, count),
    )


def _shared_slot(load: Loader, layer: int, slots: Sequence[Any]) -> int:
    """The slot of the last layer of the same kind, with a window or without, that has keys of its own."""
    window = load.hyper.windows[layer]
    shared = [mixer.slot for mixer in slots if isinstance(mixer, Attention) and mixer.spec.window == window]
    if not shared or not load.hyper.keys.count("attention.shared_kv_layers", 0, least=0):
        raise load.fail(f"the tensor blk.{layer}.attn_k.weight is missing; the model cannot be run without it")
    return shared[-1]


def _projections(load: Loader, layer: int, rows: Sequence[int]) -> tuple[Linear, Linear | None, Linear | None]:
    at, width = f"blk.{layer}.", load.hyper.width
    if load.has(f"{at}attn_qkv.weight"):
        q, k, v = load.parts(f"{at}attn_qkv", rows, width)
        return q, k, v
    q = load.linear(f"{at}attn_q", rows[0], width)
    shared = load.hyper.keys.count("attention.shared_kv_layers", 0, least=0, most=load.hyper.layers - 1)
    if not load.has(f"{at}attn_k.weight") or layer >= load.hyper.layers - shared:
        # What a file has of them all the same is not used.
        load.taken |= {f"{at}attn_{name}.weight" for name in ("k", "v", "k_norm")}
        return q, None, None
    k = load.linear(f"{at}attn_k", rows[1], width)
    return q, k, load.linear(f"{at}attn_v", rows[2], width) if load.has(f"{at}attn_v.weight") else None


def rope_of(load: Loader, layer: int, style: str | None = None) -> Rope | None:
    """How a layer's queries and keys turn, in another style than the architecture's; None where they do not."""
    hyper, graph = load.hyper, load.graph
    local = hyper.windows[layer] > 0
    dimensions = hyper.local_rope_dimensions if local else hyper.rope_dimensions
    if graph.rope is None or not dimensions or graph.alibi(hyper.layers):
        return None
    if graph.no_rope_period and (layer + 1) % graph.no_rope_period == 0:
        return None
    if graph.rope_layers == "local" and not local and any(hyper.windows):
        return None
    dense = hyper.keys.count("leading_dense_block_count", 0, least=0)
    if graph.rope_layers == "local or dense" and not local and layer >= dense:
        return None
    pattern = hyper.keys.get("attention.rope_pattern")
    if isinstance(pattern, list) and layer < len(pattern) and not pattern[layer]:
        return None
    if not hyper.keys.flag("rope.scaling.finetuned", True) and graph.rope_layers == "key":
        return None
    scaling = hyper.scaling
    if local and not graph.local_rope_scaled:
        scaling = RopeScaling("none", 1.0, scaling.original, extrapolation=0.0)
    elif scaling.kind == "longrope":
        scaling = replace(scaling, factor=1.0)
    factors = not (local and graph.full_rope_factors)
    kind = style or ("neox" if hyper.rope_sections else graph.rope)
    base = hyper.local_rope_base if local else hyper.rope_base
    return Rope(kind, dimensions, base, scaling, factors, hyper.rope_sections, graph.mixed_sections)


def _stretched(load: Loader, rope: Rope | None) -> Rope | None:
    """The rope where the file says by how much yarn should make cosines and sines grow."""
    multiplier = load.hyper.keys.number("rope.scaling.yarn_log_multiplier", 0.0)
    if rope is None or rope.scaling.kind != "yarn" or not multiplier:
        return rope
    less = 1 + 0.1 * multiplier * math.log(rope.scaling.factor)
    return replace(rope, scaling=replace(rope.scaling, attention_factor=rope.scaling.attention_factor / less))


def _slopes(load: Loader, heads: int) -> Any:
    """ALiBi's slopes of the heads, or None.

    Source: `ggml_compute_forward_soft_max_f32` of ggml; Press et al., "Train Short, Test Long", 2021.
    """
    most = load.hyper.keys.number("attention.max_alibi_bias", load.graph.alibi(load.hyper.layers))
    if not most:
        return None
    power = 1 << (heads.bit_length() - 1)  # of two, the greatest that is not above the number of heads
    exponents = [
        most / power * (h + 1) if h < power else most / 2 / power * (2 * (h - power) + 1) for h in range(heads)
    ]
    return load.ops.vector(np.exp2(-np.array(exponents)).astype(np.float32))


def _temperature(load: Loader, rope: Rope | None) -> Temperature | None:
    if load.graph.temperature is not None:
        return None if rope is not None else Temperature(*load.graph.temperature)
    scale = load.hyper.keys.number("attention.temperature_scale", 0.0)
    return Temperature(scale, load.hyper.scaling.original) if scale else None
