"""T5's attention: unscaled, with a bias for distances instead of rope; a decoder's also looks at what an encoder read.

    x ─ q k v ─ softmax(q · k + bias of the distance) v ─ out
    x ─ q, and keys and values of the encoder's text ─ softmax(q · k) v ─ out

Source: src/models/t5.cpp of llama.cpp.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ggufkit.errors import UsageError
from ggufkit.runtime.kv.rows import Rows
from ggufkit.runtime.loader import Loader
from ggufkit.runtime.ops import Array, CacheSpec, Linear, NotRecorded, Ops
from ggufkit.runtime.relative import buckets
from ggufkit.runtime.step import Step

__all__ = ["CrossAttention", "Read", "RelativeAttention", "found", "load", "load_cross"]


class _Bias:
    """(buckets, heads) of a stack of layers; what it gives for the last pass is kept for the next layer."""

    def __init__(self, table: np.ndarray, causal: bool):
        self._table, self.causal = table, causal
        self._last: tuple[tuple[int, int, int], np.ndarray] = ((-1, 0, 0), table)

    def of(self, start: int, n: int, tokens: int) -> np.ndarray:
        """(heads, n, tokens) of queries at `start …`, −∞ for keys that are not seen."""
        if self._last[0] != (start, n, tokens):
            queries, keys = np.arange(start, start + n), np.arange(tokens)
            places = buckets(queries, keys, len(self._table), not self.causal)
            bias = np.ascontiguousarray(self._table[places].transpose(2, 0, 1))
            if self.causal:
                bias[:, keys[None] > queries[:, None]] = -np.inf
            self._last = (start, n, tokens), bias
        return self._last[1]


@dataclass(frozen=True)
class RelativeAttention:
    """One layer's, of an encoder, which remembers nothing, or of a decoder."""

    slot: int
    heads: int
    widths: tuple[int, int]
    inputs: tuple[Linear, ...]
    out: Linear
    bias: _Bias

    def memory(self, ops: Ops, types: CacheSpec, length: int) -> Rows:
        return Rows(ops, length, *self.widths)

    def run(self, x: Array, step: Step) -> Array:
        ops, found = step.ops, []
        q, k, v = ops.linear(x, *self.inputs)
        for number, (lo, hi, start) in enumerate(step.rows()):
            keys, values, first = k[lo:hi], v[lo:hi], start
            if self.bias.causal:
                memory = step.spans(self.slot)[number].cache
                keys, values = memory.put(0, keys, start), memory.put(1, values, start)
            else:
                first = 0
            bias = ops.vector(self.bias.of(first, hi - lo, len(keys)))
            found.append(_looked(ops, q[lo:hi], keys, values, bias, self.heads))
        (y,) = ops.linear(ops.concatenate(found), self.out)
        return y


class Read:
    """Keys and values of the text that the encoder read, (tokens, width) each; none before."""

    def __init__(self, ops: Ops):
        self._ops = ops
        self.arrays: list[Array] = []

    @property
    def addresses(self) -> tuple[int, ...]:
        """None that last: each text has others."""
        raise NotRecorded("what an encoder read are other arrays for each text")

    @property
    def nbytes(self) -> int:
        return sum(4 * int(np.prod(array.shape)) for array in self.arrays)

    def prefix(self, n: int) -> list[np.ndarray]:
        """All of it, whatever `n`."""
        return [self._ops.numpy(array) for array in self.arrays]

    def restore(self, n: int, arrays: Sequence[np.ndarray]) -> None:
        """Hold what `prefix` gave."""
        if len(arrays) not in (0, 2):
            raise ValueError("another cache's")
        self.arrays = [self._ops.copy(self._ops.vector(array)) for array in arrays]


@dataclass(frozen=True)
class CrossAttention:
    """One layer's: to what the encoder read; `inputs` are its keys' and values' matrices."""

    slot: int
    heads: int
    q: Linear
    inputs: tuple[Linear, ...]
    out: Linear

    def memory(self, ops: Ops, types: CacheSpec, length: int) -> Read:
        return Read(ops)

    def read(self, ops: Ops, states: Array, memory: Read) -> None:
        """Remember what the encoder made of a text, (tokens, width)."""
        memory.arrays = [ops.copy(part) for part in ops.linear(states, *self.inputs)]

    def run(self, x: Array, step: Step) -> Array:
        ops, found = step.ops, []
        (q,) = ops.linear(x, self.q)
        for span in step.spans(self.slot):
            if not span.cache.arrays:
                raise UsageError("the model's encoder has read no text that could be answered; generate does both")
            keys, values = span.cache.arrays
            found.append(_looked(ops, q[span.lo : span.hi], keys, values, None, self.heads))
        (y,) = ops.linear(ops.concatenate(found), self.out)
        return y


def _looked(ops: Ops, q: Array, keys: Array, values: Array, bias: Array | None, heads: int) -> Array:
    q, keys, values = (part.reshape(len(part), heads, -1) for part in (q, keys, values))
    return ops.related(q, keys, values, bias)


def found(load: Loader, at: str) -> bool:
    """Whether a block has attention of this kind."""
    return load.has(f"{at}attn_o.weight")


def load(load: Loader, layer: int, slots: list[Any]) -> RelativeAttention:
    """A layer's, its tensors checked and taken; it has a bias of its own, or that of the first."""
    hyper, at, width = load.hyper, f"blk.{layer}.", load.hyper.width
    heads = hyper.heads[0]
    if hyper.kv_heads[0] != heads or not heads:
        raise hyper.keys.fail("attention.head_count_kv", f"must be as attention.head_count, not {hyper.kv_heads[0]}")
    keys, values = heads * hyper.head_k[0], heads * hyper.head_v[0]
    own = f"{at}attn_rel_b.weight"
    count = hyper.keys.count("attention.relative_buckets_count", least=4, most=1 << 12)
    table = load.numbers(own if load.has(own) else "blk.0.attn_rel_b.weight", count, heads)
    causal = load.has(f"{at}cross_attn_q.weight")
    loaded = RelativeAttention(
        slot=len(slots) if causal else -1,
        heads=heads,
        widths=(keys, values),
        inputs=tuple(
            load.linear(f"{at}attn_{part}", rows, width) for part, rows in zip("qkv", (keys, keys, values), strict=True)
        ),
        out=load.linear(f"{at}attn_o", width, values),
        bias=_Bias(table, causal),
    )
    if causal:
        slots.append(loaded)
    return loaded


def load_cross(load: Loader, layer: int, slots: list[Any]) -> CrossAttention:
    """A decoder layer's attention to the encoder's text."""
    hyper, at, width = load.hyper, f"blk.{layer}.cross_attn_", load.hyper.width
    keys, values = hyper.heads[0] * hyper.head_k[0], hyper.heads[0] * hyper.head_v[0]
    load.taken.add(f"{at}rel_b.weight")  # which T5 has and does not use
    loaded = CrossAttention(
        slot=len(slots),
        heads=hyper.heads[0],
        q=load.linear(f"{at}q", keys, width),
        inputs=(load.linear(f"{at}k", keys, width), load.linear(f"{at}v", values, width)),
        out=load.linear(f"{at}o", width, values),
    )
    slots.append(loaded)
    return loaded
