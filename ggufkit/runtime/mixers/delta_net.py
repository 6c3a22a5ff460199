"""The gated delta net: a state that unlearns what a key had before it learns its new value.

    q, k, v = silu(conv(W x))        decay = a · softplus(W′ x + bias)        beta = sigmoid(W″ x)
    y = norm(delta(q / |q| / √dk, k / |k|, v, decay, beta)) · silu(z)        out y

There may be more value heads than key heads: value head j goes with key head j mod (key heads) or, where decay and beta
come from one matrix, with j div (value heads per key head).

Source: src/models/delta-net-base.cpp of llama.cpp; Yang, Kautz, Hatamizadeh, "Gated Delta Networks", 2024.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ggufkit.runtime.kv.state import State
from ggufkit.runtime.loader import Loader
from ggufkit.runtime.mixers.convolution import Convolution, load_convolution
from ggufkit.runtime.ops import Array, CacheSpec, Linear, Norm, Ops
from ggufkit.runtime.step import Step

__all__ = ["DeltaNet", "found", "load"]


@dataclass(frozen=True)
class DeltaNet:
    """One layer's.

    Attributes
    ----------
    key_heads, value_heads, head_k, head_v : sizes.
    qkv, z, out : matrices.
    gates : beta and decay; or one matrix for both, of each key head first its betas, then its decays.
    a, bias : arrays of shape (value_heads,).
    unit : makes queries and keys as long as 1.
    norm : of what is found, each head.
    gate : what of z multiplies it: ``"silu"`` or ``"sigmoid"``.
    """

    slot: int
    key_heads: int
    value_heads: int
    head_k: int
    head_v: int
    qkv: Linear
    z: Linear
    out: Linear
    gates: tuple[Linear, ...]
    convolution: Convolution
    a: Array
    bias: Array
    unit: Norm
    norm: Norm
    gate: str

    def memory(self, ops: Ops, types: CacheSpec, length: int) -> State:
        return State(ops, self.convolution.shape, (self.value_heads, self.head_k, self.head_v))

    def run(self, x: Array, step: Step) -> Array:
        ops, n, spans = step.ops, len(x), step.spans(self.slot)
        qkv, z, *gates = ops.linear(x, self.qkv, self.z, *self.gates)
        if len(gates) == 1:
            gates = list(ops.halves(gates[0], self.key_heads))
        beta, decay = gates
        beta = ops.activate(None, beta, "sigmoid")
        decay = ops.activate(None, decay + self.bias, "softplus") * self.a
        keys = self.key_heads * self.head_k
        qkv = ops.activate(None, self.convolution.run(ops, qkv, spans), "silu")
        q, k, v = ops.split(qkv, [keys, keys, self.value_heads * self.head_v])
        q = self._spread(ops, ops.scale(ops.norm(q, self.unit), 1 / math.sqrt(self.head_k)))
        k = self._spread(ops, ops.norm(k, self.unit))
        v = v.reshape(n, self.value_heads, self.head_v)
        y = ops.delta(q, k, v, decay.reshape(n, self.value_heads, 1), beta, spans)
        y = ops.norm(y.reshape(n, -1), self.norm)
        y = ops.gated(y, z) if self.gate == "sigmoid" else ops.activate(z, y, self.gate)
        (y,) = ops.linear(y, self.out)
        return y

    def _spread(self, ops: Ops, x: Array) -> Array:
        """(n, key_heads × head_k) → (n, value_heads, head_k)."""
        n, each = len(x), self.value_heads // self.key_heads
        if each == 1:
            return x.reshape(n, self.value_heads, self.head_k)
        if len(self.gates) == 1:
            x = x.reshape(n, self.key_heads, 1, self.head_k) + ops.zeros(1, 1, each, 1)
        else:
            x = x.reshape(n, 1, self.key_heads, self.head_k) + ops.zeros(1, each, 1, 1)
        return x.reshape(n, self.value_heads, self.head_k)


def found(load: Loader, at: str) -> bool:
    """Whether a block has one."""
    return load.has(f"{at}attn_qkv.weight") and load.has(f"{at}ssm_out.weight")


def load(load: Loader, layer: int, slots: list[Any]) -> DeltaNet:
    """A layer's, its tensors checked and taken."""
    keys, at, width, ops = load.hyper.keys, f"blk.{layer}.", load.hyper.width, load.ops
    inner, head_k = keys.count("ssm.inner_size"), keys.count("ssm.state_size")
    key_heads, value_heads = keys.count("ssm.group_count"), keys.count("ssm.time_step_rank")
    if value_heads % key_heads or inner % value_heads:
        raise keys.fail("ssm.time_step_rank", f"is {value_heads}; {key_heads} key heads, {inner} numbers do not fit")
    channels = 2 * key_heads * head_k + inner
    if load.has(f"{at}ssm_ba.weight"):
        gates = (load.linear(f"{at}ssm_ba", 2 * value_heads, width),)
    else:
        gates = tuple(load.linear(f"{at}ssm_{name}", value_heads, width) for name in ("beta", "alpha"))  # type: ignore[assignment]
    norm = load.norm(f"{at}ssm_norm", inner // value_heads)
    if norm is None:
        raise load.fail(f"the tensor {at}ssm_norm.weight is missing; the model cannot be run without it")
    loaded = DeltaNet(
        slot=len(slots),
        key_heads=key_heads,
        value_heads=value_heads,
        head_k=head_k,
        head_v=inner // value_heads,
        qkv=load.linear(f"{at}attn_qkv", channels, width),
        z=load.linear(f"{at}attn_gate", inner, width),
        out=load.linear(f"{at}ssm_out", width, inner),
        gates=gates,
        convolution=load_convolution(load, f"{at}ssm_conv1d", channels, keys.count("ssm.conv_kernel", most=64)),
        a=ops.vector(load.vector(f"{at}ssm_a", value_heads)),
        bias=ops.vector(load.vector(f"{at}ssm_dt.bias", value_heads)),
        unit=load.plain_norm(head_k, "l2"),
        norm=norm,
        gate=load.graph.delta_gate,
    )
    slots.append(loaded)
    return loaded
