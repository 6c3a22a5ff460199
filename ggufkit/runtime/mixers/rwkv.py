"""RWKV 6 and 7: a state that forgets by itself, and inputs mixed with those of the token before.

    x_i = x + (before − x) · lerp_i                       of receptance, key, value, decay, gate …
    6     w = e^−e^(d + W₂ tanh(W₁ x_w))                   y = Sᵀ r + (r · u k) v        S = w S + k vᵀ
    7     w = e^(−0.6065 σ(d + W₂ tanh(W₁ x_w)))           S = w S + (κ a)(−κ)ᵀ S + k vᵀ       y = Sᵀ r + (r · u k) v
          out(norm(y) · gate)

The recurrence is `Ops.wkv`. The channel mix is an FFN whose input is mixed with that of the token before, too.

Source: src/models/rwkv6-base.cpp and rwkv7-base.cpp of llama.cpp; Peng et al., "Eagle and Finch", 2024, and "RWKV-7
Goose", 2025.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ggufkit.runtime.kv.state import State
from ggufkit.runtime.loader import Loader
from ggufkit.runtime.ops import Array, CacheSpec, Linear, Norm, Ops
from ggufkit.runtime.step import Step

__all__ = ["ChannelMix", "TimeMix6", "TimeMix7", "found", "load", "load_channel_mix"]

_GROUP_EPSILON = 64e-5
_LEAST_LENGTH = 1e-12
_SLOWEST = -0.606531  # −e^−½: the logarithm of the fastest decay of RWKV 7


@dataclass(frozen=True)
class _Rank:
    """base + W₂ f(W₁ x), f being an activation or nothing."""

    first: Linear
    second: Linear
    base: Array | None = None

    def run(self, ops: Ops, x: Array, activation: str = "") -> Array:
        (low,) = ops.linear(x, self.first)
        (y,) = ops.linear(ops.activate(None, low, activation) if activation else low, self.second)
        return y if self.base is None else y + self.base


@dataclass(frozen=True)
class _TimeMix:
    """What both have.

    Attributes
    ----------
    heads, size : of the state: so many of size × size.
    lerp : array of shape (uses, width): how much of the token before each use takes.
    receptance, key, value, out : matrices.
    norm : of what is found, each head; or None.
    """

    slot: int
    heads: int
    size: int
    lerp: tuple[Array, ...]
    receptance: Linear
    key: Linear
    value: Linear
    out: Linear
    norm: Norm | None

    def memory(self, ops: Ops, types: CacheSpec, length: int) -> State:
        return State(ops, (1, self.heads * self.size), (self.heads, self.size, self.size))

    def _by_head(self, x: Array) -> Array:
        return x.reshape(len(x), -1, self.size)

    def _one(self, ops: Ops, x: Array, linear: Linear) -> Array:
        (y,) = ops.linear(x, linear)
        return y

    def _normed(self, ops: Ops, y: Array) -> Array:
        y = y.reshape(len(y), -1)
        return y if self.norm is None else ops.norm(y, self.norm)


@dataclass(frozen=True)
class TimeMix6(_TimeMix):
    """RWKV 6.

    Attributes
    ----------
    before : array of shape (width,): the first mixing, from which the others are corrected.
    mixed, mixed_back : width → 5 ranks side by side; a stack of five rank → width.
    decay : of the logarithm of the decay's exponent.
    gate : a matrix.
    first : array of shape (heads, size): what the token itself has for a bonus. Without it, of a Qwen whose attention
        became this, keys are what decay leaves, and heads of keys and values may be fewer.
    """

    before: Array
    mixed: Linear
    mixed_back: Linear
    decay: _Rank
    gate: Linear
    first: Array | None

    def run(self, x: Array, step: Step) -> Array:
        ops, n = step.ops, len(x)
        news = step.ops.shifted(x, step.spans(self.slot)) - x
        (ranks,) = ops.linear(x + news * self.before, self.mixed)
        ranks = ops.activate(None, ranks, "tanh").reshape(n, 5, -1)
        (corrections,) = ops.each(ranks, ops.indices(n, 5), self.mixed_back)  # (n, 5, width)
        uses = [ops.copy(x + news * (corrections[:, i] + lerp)) for i, lerp in enumerate(self.lerp)]
        w, k, v, r, g = uses
        r, k = self._by_head(self._one(ops, r, self.receptance)), self._by_head(self._one(ops, k, self.key))
        v = self._by_head(self._one(ops, v, self.value))
        g = self._one(ops, g, self.gate)
        w = self._by_head(ops.exp(ops.scale(ops.exp(self.decay.run(ops, w, "tanh")), -1.0)))
        if self.first is not None:
            y = self._normed(ops, ops.wkv(r, w, k, v, None, None, self.first, step.spans(self.slot)))
            return self._one(ops, ops.activate(g, y, "silu"), self.out)
        k, v = self._spread(ops, k), self._spread(ops, v)
        y = ops.wkv(r * self.size**-0.5, w, k - k * w, v, None, None, None, step.spans(self.slot))
        return self._one(ops, ops.gated(y.reshape(n, -1), g), self.out)

    def _spread(self, ops: Ops, x: Array) -> Array:
        """Of fewer heads as many as of queries."""
        n, fewer, size = x.shape
        if fewer == self.heads:
            return x
        x = x.reshape(n, fewer, 1, size) + ops.zeros(1, 1, self.heads // fewer, 1)
        return x.reshape(n, self.heads, size)


@dataclass(frozen=True)
class TimeMix7(_TimeMix):
    """RWKV 7.

    Attributes
    ----------
    decay, rate, gate : the decay's, how much of what a key had is unlearned, and the gate or None.
    residual : how much of the first layer's value is taken; None in the first layer.
    key_key, key_rate : arrays of shape (width,).
    bonus : array of shape (heads, size).
    unit : makes what is unlearned as long as 1.
    """

    decay: _Rank
    rate: _Rank
    gate: _Rank | None
    residual: _Rank | None
    key_key: Array
    key_rate: Array
    bonus: Array
    unit: Norm

    def run(self, x: Array, step: Step) -> Array:
        ops, n = step.ops, len(x)
        news = step.ops.shifted(x, step.spans(self.slot)) - x
        uses = [ops.copy(x + news * lerp) for lerp in self.lerp]
        r, w, k, v, a = uses[:5]
        r, k = self._one(ops, r, self.receptance), self._one(ops, k, self.key)
        w = ops.exp(ops.scale(ops.activate(None, self.decay.run(ops, w, "tanh"), "sigmoid"), _SLOWEST))
        value = self._one(ops, v, self.value)
        if self.residual is None:
            step.first_value = value
        else:
            share = ops.activate(None, self.residual.run(ops, v), "sigmoid")
            value = value + (step.first_value - value) * share
        a = ops.activate(None, self.rate.run(ops, a), "sigmoid")
        known = ops.norm(k * self.key_key, self.unit)
        k = k + (a - 1) * (k * self.key_rate)
        r, w, k, v, known, a = (self._by_head(part) for part in (r, w, k, value, known, a))
        y = self._normed(ops, ops.wkv(r, w, k, v, known * -1, known * a, None, step.spans(self.slot)))
        y = y + (v * ops.inner(k * self.bonus, r)).reshape(n, -1)
        if self.gate is not None:
            y = y * self.gate.run(ops, uses[5], "sigmoid")
        return self._one(ops, y, self.out)


@dataclass(frozen=True)
class ChannelMix:
    """value relu(key x_k)², times σ(receptance x_r) in RWKV 6: in an FFN's place.

    Attributes
    ----------
    lerp : of the key's input, and of the receptance's.
    receptance : or None.
    """

    slot: int
    width: int
    lerp: tuple[Array, ...]
    key: Linear
    value: Linear
    receptance: Linear | None

    def memory(self, ops: Ops, types: CacheSpec, length: int) -> State:
        return State(ops, (1, self.width))

    def run(self, x: Array, step: Step) -> Array:
        ops = step.ops
        news = step.ops.shifted(x, step.spans(self.slot)) - x
        (k,) = ops.linear(ops.copy(x + news * self.lerp[0]), self.key)
        (y,) = ops.linear(ops.activate(None, k, "relu_squared"), self.value)
        if self.receptance is None:
            return y
        (r,) = ops.linear(ops.copy(x + news * self.lerp[1]), self.receptance)
        return ops.gated(y, r)


def found(load: Loader, at: str) -> bool:
    """Whether a block has a time mix."""
    return load.has(f"{at}time_mix_output.weight")


def load(load: Loader, layer: int, slots: list[Any]) -> TimeMix6 | TimeMix7:
    """A layer's, its tensors checked and taken."""
    keys, at, width, ops = load.hyper.keys, f"blk.{layer}.time_mix_", load.hyper.width, load.ops
    size = keys.count("wkv.head_size")
    if width % size:
        raise keys.fail("wkv.head_size", f"is {size}, which does not divide {width}")
    heads = width // size
    norm = None
    if load.has(f"{at}ln.weight"):
        weight, bias = (load.vector(f"{at}ln.{end}", width).reshape(heads, size) for end in ("weight", "bias"))
        norm = Norm("layer", _GROUP_EPSILON, size, ops.vector(weight), ops.vector(bias))
    kv_heads = load.hyper.kv_heads[layer] or heads
    if heads % kv_heads:
        raise keys.fail("attention.head_count_kv", f"is {kv_heads}, which does not divide {heads} heads")
    common = {
        "slot": len(slots),
        "heads": heads,
        "size": size,
        "receptance": load.linear(f"{at}receptance", width, width),
        "key": load.linear(f"{at}key", kv_heads * size, width),
        "value": load.linear(f"{at}value", kv_heads * size, width),
        "out": load.linear(f"{at}output", width, width),
        "norm": norm,
    }
    make = _seven if load.has(f"{at}w0.weight") else _six
    loaded = make(load, at, layer, common)
    slots.append(loaded)
    return loaded


def _numbers(load: Loader, name: str, *shape: int) -> np.ndarray:
    """A tensor of as many numbers, whatever dimensions of 1 it has."""
    full = f"{name}.weight"
    own = load.tensors[full].shape if load.has(full) else shape
    if tuple(n for n in own if n != 1) != tuple(n for n in shape if n != 1):
        raise load.fail(f"{full} has the shape {' × '.join(map(str, own))}, not {' × '.join(map(str, shape))}")
    return load.tensor(full, *own).floats().reshape(shape)


def _lerps(load: Loader, at: str, uses: int) -> tuple[Array, ...]:
    width = load.hyper.width
    if load.has(f"{at}lerp_fused.weight"):
        rows = _numbers(load, f"{at}lerp_fused", uses, width)
    else:
        rows = np.stack([_numbers(load, f"{at}lerp_{use}", width) for use in "wkvrg"])
    return tuple(load.ops.vector(np.ascontiguousarray(row)) for row in rows)


def _rank(load: Loader, first: str, second: str, base: str = "") -> _Rank:
    width = load.hyper.width
    low = load.linear(first, -1, width)
    vector = load.ops.vector(load.vector(f"{base}.weight", width)) if base else None
    return _Rank(low, load.linear(second, width, low.rows), vector)


def _six(load: Loader, at: str, layer: int, common: dict[str, Any]) -> TimeMix6:
    width, ops = load.hyper.width, load.ops
    mixed = load.linear(f"{at}w1", -1, width)
    if mixed.rows % 5:
        raise load.fail(f"{at}w1.weight has {mixed.rows} rows, which are not of five uses")
    first = None
    if load.has(f"{at}first.weight"):
        first = ops.vector(_numbers(load, f"{at}first", common["heads"], common["size"]))
    return TimeMix6(
        lerp=_lerps(load, at, 5),
        before=ops.vector(_numbers(load, f"{at}lerp_x", width)),
        mixed=mixed,
        mixed_back=load.linear(f"{at}w2", width, mixed.rows // 5, 5),
        decay=_rank(load, f"{at}decay_w1", f"{at}decay_w2", f"{at}decay"),
        gate=load.linear(f"{at}gate", width, width),
        first=first,
        **common,
    )


def _seven(load: Loader, at: str, layer: int, common: dict[str, Any]) -> TimeMix7:
    width, ops = load.hyper.width, load.ops
    gated = load.has(f"{at}g1.weight")
    if layer == 0:  # its own are not used
        load.taken |= {f"{at}v{i}.weight" for i in range(3)}
    return TimeMix7(
        lerp=_lerps(load, at, 6 if gated else 5),
        decay=_rank(load, f"{at}w1", f"{at}w2", f"{at}w0"),
        rate=_rank(load, f"{at}a1", f"{at}a2", f"{at}a0"),
        gate=_rank(load, f"{at}g1", f"{at}g2") if gated else None,
        residual=_rank(load, f"{at}v1", f"{at}v2", f"{at}v0") if layer else None,
        key_key=ops.vector(load.vector(f"{at}k_k.weight", width)),
        key_rate=ops.vector(load.vector(f"{at}k_a.weight", width)),
        bonus=ops.vector(load.vector(f"{at}r_k.weight", width).reshape(common["heads"], common["size"])),
        unit=Norm("l2", _LEAST_LENGTH, common["size"], ops.vector(np.ones((1, common["size"]), np.float32))),
        **common,
    )


def load_channel_mix(load: Loader, layer: int, slots: list[Any]) -> ChannelMix | None:
    """A layer's, its tensors checked and taken; None where it has an FFN of another kind."""
    at, width = f"blk.{layer}.channel_mix_", load.hyper.width
    if not load.has(f"{at}key.weight"):
        return None
    key = load.linear(f"{at}key", -1, width)
    received = load.has(f"{at}receptance.weight")
    loaded = ChannelMix(
        slot=len(slots),
        width=width,
        lerp=tuple(
            load.ops.vector(_numbers(load, f"{at}lerp_{use}", width)) for use in ("k", "r")[: 2 if received else 1]
        ),
        key=key,
        value=load.linear(f"{at}value", width, key.rows),
        receptance=load.linear(f"{at}receptance", width, width) if received else None,
    )
    slots.append(loaded)
    return loaded
