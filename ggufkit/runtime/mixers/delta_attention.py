"""Kimi delta attention: a gated delta net whose decay is another one for each number of a key.

    q, k, v = silu(conv(W x)) each        decay = a · softplus(W₂ W₁ x + bias)        beta = sigmoid(W′ x)
                                          or bound · sigmoid(a · (W x + bias))
    y = norm(delta(q / |q| / √d, k / |k|, v, decay, beta)) · sigmoid(G₂ G₁ x)        out y

Source: src/models/kimi-linear.cpp and bailingmoe3.cpp of llama.cpp; Kimi Team, "Kimi Linear", 2025.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ggufkit.runtime.kv.state import State
from ggufkit.runtime.loader import Loader
from ggufkit.runtime.mixers.convolution import Convolution
from ggufkit.runtime.ops import Array, CacheSpec, Linear, Norm, Ops
from ggufkit.runtime.step import Step

__all__ = ["DeltaAttention", "found", "load"]

_PARTS = "qkv"


@dataclass(frozen=True)
class DeltaAttention:
    """One layer's.

    Attributes
    ----------
    heads, head : sizes, of queries, keys and values alike.
    qkv : three matrices.
    decay, gate : of two matrices each, one after the other, or of one.
    beta, out : matrices.
    convolution : of all three side by side.
    a : array of shape (heads, 1); bias : (heads × head,).
    unit : makes queries and keys as long as 1.
    norm : of what is found, each head.
    bound : of the decay, below 0; or 0 where it has none.
    """

    slot: int
    heads: int
    head: int
    qkv: tuple[Linear, ...]
    decay: tuple[Linear, ...]
    gate: tuple[Linear, ...]
    beta: Linear
    out: Linear
    convolution: Convolution
    a: Array
    bias: Array
    unit: Norm
    norm: Norm
    bound: float

    def memory(self, ops: Ops, types: CacheSpec, length: int) -> State:
        return State(ops, self.convolution.shape, (self.heads, self.head, self.head))

    def run(self, x: Array, step: Step) -> Array:
        ops, n, spans, inner = step.ops, len(x), step.spans(self.slot), self.heads * self.head
        *parts, short, gate, beta = ops.linear(x, *self.qkv, self.decay[0], self.gate[0], self.beta)
        mixed = ops.activate(None, self.convolution.run(ops, ops.joined(parts), spans), "silu")
        q, k, v = ops.split(mixed, [inner] * 3)
        q = ops.scale(ops.norm(q, self.unit), 1 / math.sqrt(self.head)).reshape(n, self.heads, -1)
        k, v = ops.norm(k, self.unit).reshape(n, self.heads, -1), v.reshape(n, self.heads, -1)
        decay = self._decay(ops, _through(ops, short, self.decay[1:]) + self.bias)
        y = ops.delta(q, k, v, decay, ops.activate(None, beta, "sigmoid"), spans)
        gate = _through(ops, gate, self.gate[1:])
        y = ops.gated(ops.norm(y.reshape(n, -1), self.norm), gate)
        (y,) = ops.linear(y, self.out)
        return y

    def _decay(self, ops: Ops, x: Array) -> Array:
        """The logarithm of what states decay by, (n, heads, head)."""
        if self.bound:
            x = x.reshape(len(x), self.heads, -1) * self.a
            return ops.activate(None, x, "sigmoid") * self.bound
        return ops.activate(None, x, "softplus").reshape(len(x), self.heads, -1) * self.a


def _through(ops: Ops, x: Array, linears: tuple[Linear, ...]) -> Array:
    for linear in linears:
        (x,) = ops.linear(x, linear)
    return x


def found(load: Loader, at: str) -> bool:
    """Whether a block has one."""
    return load.has(f"{at}ssm_conv1d_q.weight")


def load(load: Loader, layer: int, slots: list[Any]) -> DeltaAttention:
    """A layer's, its tensors checked and taken."""
    keys, at, width, ops = load.hyper.keys, f"blk.{layer}.", load.hyper.width, load.ops
    heads, head, taps = load.hyper.heads[layer], keys.count("kda.head_dim"), keys.count("ssm.conv_kernel", most=64)
    inner = heads * head

    def through(name: str) -> tuple[Linear, ...]:
        if not load.has(f"{at}ssm_{name}_b.weight"):
            return (load.linear(f"{at}ssm_{name}_a", inner, width),)
        first = load.linear(f"{at}ssm_{name}_a", -1, width)
        return first, load.linear(f"{at}ssm_{name}_b", inner, first.rows)

    columns = [load.numbers(f"{at}ssm_conv1d_{part}.weight", inner, 1, taps).reshape(inner, taps) for part in _PARTS]
    weights = ops.vector(np.ascontiguousarray(np.concatenate(columns).T))
    norm = load.norm(f"{at}ssm_norm", head)
    if norm is None:
        raise load.fail(f"the tensor {at}ssm_norm.weight is missing; the model cannot be run without it")
    loaded = DeltaAttention(
        slot=len(slots),
        heads=heads,
        head=head,
        qkv=tuple(load.linear(f"{at}attn_{part}", inner, width) for part in _PARTS),
        decay=through("f"),
        gate=through("g"),
        beta=load.linear(f"{at}ssm_beta", heads, width),
        out=load.linear(f"{at}attn_output", width, inner),
        convolution=Convolution(3 * inner, taps, weights, None),
        a=ops.vector(load.numbers(f"{at}ssm_a", heads, 1)),
        bias=ops.vector(load.vector(f"{at}ssm_dt.bias", inner)),
        unit=load.plain_norm(head, "l2"),
        norm=norm,
        bound=keys.between("kda.gate_lower_bound", -1e6, 0, 0.0),
    )
    slots.append(loaded)
    return loaded
