"""Attention to blocks of keys that an index chooses.

    q, k, v as in `attention`        q_i = norm(W x), turned

    MiniMax M3    k_i = norm(W x), turned                               score of a block: the most of q_i · k_i in it,
                                                                        of each key head another
    Qwen 4        k_i = norm(mean of W x over a block), turned          score: Σ relu(q_i · k_i) over the index's heads

A query sees the blocks with the best scores, and the last few before it in any case.

Source: src/models/minimax-m3.cpp of llama.cpp, with flash attention (without it llama.cpp sees all keys), qwen4exp.cpp.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ggufkit.runtime.kv.rows import Rows
from ggufkit.runtime.loader import Loader
from ggufkit.runtime.mixers import attention
from ggufkit.runtime.mixers.attention import Attention
from ggufkit.runtime.ops import Array, CacheSpec, Linear, Norm, Ops, Span
from ggufkit.runtime.rope import Rope
from ggufkit.runtime.step import Step

__all__ = ["BlockAttention", "BlockIndex", "PooledIndex", "found", "load"]

_KEPT = 2  # kinds of rows: keys, values, and then what the index keeps


@dataclass(frozen=True)
class _Index:
    """What both kinds have.

    Attributes
    ----------
    q, k : from the stream.
    q_norm, k_norm : or None.
    heads, size : of its queries.
    rope : or None.
    block : how many tokens make a block.
    count : how many blocks a query sees.
    """

    q: Linear
    k: Linear
    q_norm: Norm | None
    k_norm: Norm | None
    heads: int
    size: int
    rope: Rope | None
    block: int
    count: int

    def _placed(self, x: Array, heads: int, norm: Norm | None, step: Step) -> Array:
        x = x if norm is None else step.ops.norm(x, norm)
        return x if self.rope is None else step.turned(x, heads, self.rope)


@dataclass(frozen=True)
class BlockIndex(_Index):
    """One that scores keys, a query for each key head.

    Attributes
    ----------
    near : how many of the blocks are those before a query.
    """

    near: int

    @property
    def widths(self) -> tuple[int, ...]:
        """Numbers of a token that it keeps."""
        return (self.size,)

    def asked(self, x: Array, step: Step) -> tuple[Array, Array]:
        """Queries (n, heads, size) and keys (n, size)."""
        q, k = step.ops.linear(x, self.q, self.k)
        q, k = self._placed(q, self.heads, self.q_norm, step), self._placed(k, 1, self.k_norm, step)
        return q.reshape(len(x), self.heads, -1), k

    def seen(self, q: Array, k: Array, span: Span, run: int, step: Step) -> Array | None:
        """Which keys the rows of a conversation see, (heads, n, tokens) bool; None for all before them."""
        keys = span.cache.put(_KEPT, k, span.start)
        return step.ops.best_blocks(q, keys, span.start, self.block, self.count, self.near)


@dataclass(frozen=True)
class PooledIndex(_Index):
    """One that scores blocks by the mean of their keys; what makes no whole block is seen in any case."""

    @property
    def widths(self) -> tuple[int, ...]:
        """Numbers of a token that it keeps: its key, where it stands on each axis, and those of blocks."""
        return (self.size, 4, self.size)

    def asked(self, x: Array, step: Step) -> tuple[Array, Array]:
        """Queries (n, heads, size) and keys (n, size), which are normalised when they are a block's."""
        q, k = step.ops.linear(x, self.q, self.k)
        return self._placed(q, self.heads, self.q_norm, step).reshape(len(x), self.heads, -1), k

    def seen(self, q: Array, k: Array, span: Span, run: int, step: Step) -> Array | None:
        """Which keys the rows of a conversation see, (1, n, tokens) bool; None for all before them."""
        ops, memory, tokens = step.ops, span.cache, span.start + len(k)
        keys = memory.put(_KEPT, k, span.start)
        places = memory.put(_KEPT + 1, ops.vector(step.places(run).astype(np.float32)), span.start)
        first, end = span.start // self.block, tokens // self.block
        if end > first:
            new = keys[first * self.block : end * self.block].reshape(end - first, self.block, -1).mean(axis=1)
            new = new if self.k_norm is None else ops.norm(new, self.k_norm)
            if self.rope is not None:
                at = ops.numpy(places[first * self.block : end * self.block : self.block]).astype(int)
                new = step.turned_at(new, 1, self.rope, run, at)
            memory.put(_KEPT + 2, new, first)
        pooled = memory.arrays[_KEPT + 2][:end]
        seen = ops.best_pools(q, pooled, span.start, self.block, self.count, tokens)
        return None if seen is None else seen[None]


@dataclass(frozen=True)
class BlockAttention:
    """One layer's.

    Attributes
    ----------
    inner : everything but the choice.
    """

    slot: int
    inner: Attention
    index: BlockIndex | PooledIndex

    def memory(self, ops: Ops, types: CacheSpec, length: int) -> Rows:
        spec = self.inner.spec
        return Rows(ops, length, spec.kv_heads * spec.head_k, spec.kv_heads * spec.head_v, *self.index.widths)

    def run(self, x: Array, step: Step) -> Array:
        ops, spec, index = step.ops, self.inner.spec, self.index
        q, k, v, gate = self.inner.looked(x, step)
        asked, offered = index.asked(x, step)
        q, found = q.reshape(len(x), spec.heads, -1), []
        for run, span in enumerate(step.spans(self.slot)):
            rows, memory = slice(span.lo, span.hi), span.cache
            keys, values = memory.put(0, k[rows], span.start), memory.put(1, v[rows], span.start)
            seen = index.seen(asked[rows], offered[rows], span, run, step)
            found.append(self._found(ops, q[rows], keys, values, seen, span.start))
        return self.inner.out_of(ops, ops.concatenate(found), gate)

    def _found(self, ops: Ops, q: Array, keys: Array, values: Array, seen: Array | None, start: int) -> Array:
        """(n, heads × head_v), one key head after the other."""
        spec = self.inner.spec
        group, parts = spec.heads // spec.kv_heads, []
        for head in range(spec.kv_heads):
            own = keys[:, head * spec.head_k : (head + 1) * spec.head_k]
            given = values[:, head * spec.head_v : (head + 1) * spec.head_v]
            allowed = None if seen is None else seen[head if len(seen) > 1 else 0]
            part = ops.attend(q[:, head * group : (head + 1) * group], own, given, allowed, start, spec.scale)
            parts.append(part.reshape(len(q), -1))
        return ops.joined(parts)


def found(load: Loader, at: str) -> bool:
    """Whether a block has attention of this kind."""
    return load.has(f"{at}indexer.q_proj.weight") and load.has(f"{at}attn_q.weight")


def load(load: Loader, layer: int, slots: list[Any]) -> BlockAttention | Attention:
    """A layer's, its tensors checked and taken; one whose blocks are of 0 tokens sees all keys."""
    hyper, keys, at = load.hyper, load.hyper.keys, f"blk.{layer}.indexer."
    pooled = keys.get("attention.compress_ratios") is not None
    heads, size = keys.count("attention.indexer.head_count"), keys.count("attention.indexer.key_length")
    block = _pool(load, layer) if pooled else keys.count("attention.indexer.block_size")
    inner = attention.load(load, layer, [] if block else slots)
    common: dict[str, Any] = {
        "q": load.linear(f"{at}q_proj", heads * size, hyper.width),
        "k": load.linear(f"{at}k_proj", size, hyper.width),
        "q_norm": load.norm(f"{at}q_norm", size),
        "k_norm": load.norm(f"{at}k_norm", size),
        "heads": heads,
        "size": size,
        "rope": inner.rope,
        "block": block,
    }
    if not block:
        return inner
    if inner.rope is not None and inner.rope.dimensions > size:
        raise keys.fail("attention.indexer.key_length", f"must be at least the {inner.rope.dimensions} that turn")
    index: BlockIndex | PooledIndex
    if pooled:
        index = PooledIndex(count=keys.count("attention.indexer.top_k") // block, **common)
        if not index.count:
            raise keys.fail("attention.indexer.top_k", f"must be at least a block of {block} tokens")
    else:
        if heads != hyper.kv_heads[layer]:
            raise keys.fail("attention.indexer.head_count", f"must be {hyper.kv_heads[layer]}, one for each key head")
        near = keys.count("attention.indexer.local_blocks", least=0)
        index = BlockIndex(count=keys.count("attention.indexer.top_k"), near=near, **common)
    loaded = BlockAttention(len(slots), inner, index)
    slots.append(loaded)
    return loaded


def _pool(load: Loader, layer: int) -> int:
    """How many tokens of a layer are taken together; 0 where it sees all keys."""
    return load.hyper.keys.counts("attention.compress_ratios", load.hyper.layers, least=0)[layer]
