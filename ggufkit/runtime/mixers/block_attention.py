"""Attention to blocks of keys that an index chooses, for each key head others (MiniMax M3).

    q, k, v as in `attention`        q_i, k_i = norm(W x), turned        score of a block: the most of q_i · k_i in it
    a query sees the blocks with the best scores, and the last few before it in any case

Source: src/models/minimax-m3.cpp of llama.cpp, with flash attention; without it llama.cpp sees all keys.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ggufkit.runtime.kv.rows import Rows
from ggufkit.runtime.loader import Loader
from ggufkit.runtime.mixers import attention
from ggufkit.runtime.mixers.attention import Attention
from ggufkit.runtime.ops import Array, CacheSpec, Linear, Norm, Ops
from ggufkit.runtime.step import Step

__all__ = ["BlockAttention", "BlockIndex", "found", "load"]


@dataclass(frozen=True)
class BlockIndex:
    """What scores blocks of keys.

    Attributes
    ----------
    q, k : from the stream; of queries one for each key head.
    q_norm, k_norm : or None.
    size : of a query and a key.
    block : how many tokens make a block.
    count : how many blocks a query sees.
    near : how many of them are those before it.
    """

    q: Linear
    k: Linear
    q_norm: Norm | None
    k_norm: Norm | None
    size: int
    block: int
    count: int
    near: int


@dataclass(frozen=True)
class BlockAttention:
    """One layer's.

    Attributes
    ----------
    inner : everything but the choice.
    """

    slot: int
    inner: Attention
    index: BlockIndex

    def memory(self, ops: Ops, types: CacheSpec, length: int) -> Rows:
        spec = self.inner.spec
        return Rows(ops, length, spec.kv_heads * spec.head_k, spec.kv_heads * spec.head_v, self.index.size)

    def run(self, x: Array, step: Step) -> Array:
        ops, spec, index = step.ops, self.inner.spec, self.index
        q, k, v, _ = self.inner.looked(x, step)
        asked, offered = ops.linear(x, index.q, index.k)
        asked = self.inner.placed(asked, spec.kv_heads, index.q_norm, step).reshape(len(x), spec.kv_heads, -1)
        offered = self.inner.placed(offered, 1, index.k_norm, step)
        q, group = q.reshape(len(x), spec.heads, -1), spec.heads // spec.kv_heads
        found = []
        for span in step.spans(self.slot):
            rows, memory = slice(span.lo, span.hi), span.cache
            keys, values, scored = (memory.put(i, part[rows], span.start) for i, part in enumerate((k, v, offered)))
            seen = ops.best_blocks(asked[rows], scored, span.start, index.block, index.count, index.near)
            parts = []
            for head in range(spec.kv_heads):
                own = keys[:, head * spec.head_k : (head + 1) * spec.head_k]
                given = values[:, head * spec.head_v : (head + 1) * spec.head_v]
                heads = q[rows, head * group : (head + 1) * group]
                parts.append(
                    ops.attend(heads, own, given, None if seen is None else seen[head], span.start, spec.scale)
                )
            found.append(ops.joined([part.reshape(len(part), -1) for part in parts]))
        (y,) = ops.linear(ops.concatenate(found), self.inner.out)
        return y


def found(load: Loader, at: str) -> bool:
    """Whether a block has attention of this kind."""
    return load.has(f"{at}indexer.q_proj.weight") and load.has(f"{at}attn_q.weight")


def load(load: Loader, layer: int, slots: list[Any]) -> BlockAttention:
    """A layer's, its tensors checked and taken."""
    hyper, keys, at = load.hyper, load.hyper.keys, f"blk.{layer}.indexer."
    inner = attention.load(load, layer, [])
    heads, size = keys.count("attention.indexer.head_count"), keys.count("attention.indexer.key_length")
    if heads != hyper.kv_heads[layer]:
        raise keys.fail("attention.indexer.head_count", f"must be {hyper.kv_heads[layer]}, one for each key head")
    if inner.rope is not None and inner.rope.dimensions > size:
        raise keys.fail("attention.indexer.key_length", f"must be at least the {inner.rope.dimensions} that turn")
    loaded = BlockAttention(
        slot=len(slots),
        inner=inner,
        index=BlockIndex(
            q=load.linear(f"{at}q_proj", heads * size, hyper.width),
            k=load.linear(f"{at}k_proj", size, hyper.width),
            q_norm=load.norm(f"{at}q_norm", size),
            k_norm=load.norm(f"{at}k_norm", size),
            size=size,
            block=keys.count("attention.indexer.block_size"),
            count=keys.count("attention.indexer.top_k"),
            near=keys.count("attention.indexer.local_blocks", least=0),
        ),
    )
    slots.append(loaded)
    return loaded
