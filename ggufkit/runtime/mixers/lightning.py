"""Lightning attention: linear attention whose heads forget at fixed rates, as MiniMax-01 has it.

    q, k, v = silu(W x) of each head        S = e^-rate S + k vᵀ        y = S q
    out (norm(y) · sigmoid(G x))

A head's rate is less from layer to layer. The recurrence is that of a state space (`Ops.scan`) with v in the place of
x, k and q in those of b and c, and the rate for dt · A.

Source: src/models/minimax-01.cpp of llama.cpp; MiniMax, "MiniMax-01", 2025.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ggufkit.runtime.kv.state import State
from ggufkit.runtime.loader import Loader
from ggufkit.runtime.ops import Array, CacheSpec, Linear, Norm, Ops, StateSpace
from ggufkit.runtime.step import Step

__all__ = ["Lightning", "found", "load"]


@dataclass(frozen=True)
class Lightning:
    """One layer's.

    Attributes
    ----------
    qkv : of each head first the query, then key and value.
    gate, out : matrices.
    norm : of what is found, all heads together.
    space : for `Ops.scan`.
    """

    slot: int
    qkv: Linear
    gate: Linear
    out: Linear
    norm: Norm
    space: StateSpace

    def memory(self, ops: Ops, types: CacheSpec, length: int) -> State:
        space = self.space
        return State(ops, (space.heads, space.size, space.states))

    def run(self, x: Array, step: Step) -> Array:
        ops, n, space = step.ops, len(x), self.space
        mixed, gate = ops.linear(x, self.qkv, self.gate)
        mixed = ops.activate(None, mixed, "silu").reshape(n * space.heads, -1)
        q, k, v = (part.reshape(n, -1) for part in ops.split(mixed, [space.size] * 3))
        y = ops.scan(v, k, q, ops.zeros(n, space.heads) + 1, step.spans(self.slot), space)
        (y,) = ops.linear(ops.gated(ops.norm(y, self.norm), gate), self.out)
        return y


def found(load: Loader, at: str) -> bool:
    """Whether a block has one."""
    return load.graph.lightning and load.has(f"{at}attn_norm_2.weight")


def load(load: Loader, layer: int, slots: list[Any]) -> Lightning:
    """A layer's, its tensors checked and taken."""
    hyper, ops, at, width = load.hyper, load.ops, f"blk.{layer}.", load.hyper.width
    heads, head = hyper.heads[layer], hyper.head_k[layer]
    if not heads:
        raise hyper.keys.fail("attention.head_count", f"is 0 in layer {layer}, which has attention")
    norm = load.norm(f"{at}attn_norm_2", heads * head)
    assert norm is not None  # `found` saw it
    loaded = Lightning(
        slot=len(slots),
        qkv=load.linear(f"{at}attn_qkv", 3 * heads * head, width),
        gate=load.linear(f"{at}attn_gate", heads * head, width),
        out=load.linear(f"{at}attn_output", width, heads * head),
        norm=norm,
        space=StateSpace(
            heads=heads,
            size=head,
            groups=heads,
            states=head,
            a=ops.vector(-_rates(heads, layer / max(hyper.layers - 1, 1))),
            d=ops.vector(np.zeros(heads, np.float32)),
        ),
    )
    slots.append(loaded)
    return loaded


def _rates(heads: int, depth: float) -> np.ndarray:
    """Of each head, (heads, 1); depth is 0 in the first layer and 1 in the last."""
    base = 2.0 ** -(2.0 ** -(math.log2(heads) - 3))
    rates: np.ndarray = (base ** np.arange(1, heads + 1) * (1 - depth + 1e-5)).astype(np.float32)[:, None]
    return rates
