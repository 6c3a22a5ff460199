"""Latent attention to the keys that an index chooses (DeepSeek sparse attention).

    q_i = W norm(W_a x), heads turned        k_i = norm(W x), turned        score = Σ w · relu(q_i · k_i)

The best of each query are seen. A layer without an index sees what the last one before it chose.

Source: src/models/deepseek32.cpp, glm-dsa.cpp, dots3note.cpp and hy-v4.cpp of llama.cpp.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ggufkit.runtime.kv.rows import Rows
from ggufkit.runtime.loader import Loader
from ggufkit.runtime.mixers import latent_attention, latents
from ggufkit.runtime.mixers.attention import rope_of
from ggufkit.runtime.mixers.latent_attention import LatentAttention
from ggufkit.runtime.ops import Array, CacheSpec, Linear, Norm, Ops
from ggufkit.runtime.rope import Rope
from ggufkit.runtime.step import Step

__all__ = ["Index", "IndexedAttention", "found", "load"]


@dataclass(frozen=True)
class Index:
    """What scores keys.

    Attributes
    ----------
    q : from the queries' short vector; k, weights : from the stream.
    k_norm : with mean.
    heads, size : of its queries.
    rope : or None.
    last : what turns is the end of a query or key, not its beginning.
    """

    q: Linear
    k: Linear
    k_norm: Norm | None
    weights: Linear
    heads: int
    size: int
    rope: Rope | None
    last: bool

    def turned(self, x: Array, heads: int, step: Step) -> Array:
        """Queries or keys (n, heads × size), turned."""
        if self.rope is None:
            return x
        if not self.last:
            return step.turned(x, heads, self.rope)
        sizes = [self.size - self.rope.dimensions, self.rope.dimensions]
        first, end = step.ops.split(x.reshape(len(x), heads, -1), sizes)
        end = step.turned(end.reshape(len(x), -1), heads, self.rope)
        return step.ops.joined([first, end.reshape(len(x), heads, -1)]).reshape(len(x), -1)


@dataclass(frozen=True)
class IndexedAttention:
    """One layer's.

    Attributes
    ----------
    inner : everything but the choice.
    index : its own, or None.
    count : how many keys a query sees.
    """

    slot: int
    inner: LatentAttention
    index: Index | None
    count: int

    def memory(self, ops: Ops, types: CacheSpec, length: int) -> Rows:
        spec = self.inner.spec
        return Rows(ops, length, spec.head_k, *([self.index.size] if self.index is not None else []))

    def run(self, x: Array, step: Step) -> Array:
        ops, n, spec = step.ops, len(x), self.inner.spec
        q, keys, _, short = self.inner.looked(x, step)
        asked = None if self.index is None else self._asked(x, short, step)
        q = q.reshape(n, spec.heads, -1)
        found = []
        for number, span in enumerate(step.spans(self.slot)):
            rows, memory = slice(span.lo, span.hi), span.cache
            kept = memory.put(0, keys[rows], span.start)
            if asked is not None:
                index_keys = memory.put(1, asked[1][rows], span.start)
                step.chosen[number] = ops.best(asked[0][rows], index_keys, asked[2][rows], span.start, self.count)
            seen = step.chosen[number]
            values = kept[:, : spec.head_v]
            found.append(ops.attend(q[rows], kept, values, seen, span.start, spec.scale, spec.sinks))
        return self.inner.out_of(ops.concatenate(found), x, step)

    def _asked(self, x: Array, short: Array, step: Step) -> tuple[Array, Array, Array]:
        """Queries (n, heads, size), keys (n, size) and weights (n, heads) of the index."""
        index, ops, n = self.index, step.ops, len(x)
        assert index is not None
        (q,) = ops.linear(short, index.q)
        k, weights = ops.linear(x, index.k, index.weights)
        k = k if index.k_norm is None else ops.norm(k, index.k_norm)
        q, k = index.turned(q, index.heads, step), index.turned(k, 1, step)
        return q.reshape(n, index.heads, -1), k, weights * (1 / math.sqrt(index.heads * index.size))


def found(load: Loader, at: str) -> bool:
    """Whether a block has attention of this kind."""
    return load.has(f"{at}attn_kv_a_mqa.weight") and load.graph.index_rope is not None


def load(load: Loader, layer: int, slots: list[Any]) -> IndexedAttention | LatentAttention:
    """A layer's, its tensors checked and taken; layers with a window, and models without an index, choose no keys."""
    keys, width, at = load.hyper.keys, load.hyper.width, f"blk.{layer}.indexer."
    if load.hyper.windows[layer] or not keys.count("attention.indexer.top_k", 0, least=0):
        return latent_attention.load(load, layer, slots)
    own: list[Any] = []
    inner = latent_attention.load(load, layer, own)
    if inner.latents.short is None:
        raise load.fail(f"block {layer} has no short vector of queries, from which an index is made")
    index = None
    if _has_own(load, layer):
        heads, size = keys.count("attention.indexer.head_count"), keys.count("attention.indexer.key_length")
        rope = rope_of(load, layer, load.graph.index_rope)
        if rope is not None and rope.dimensions > size:
            raise keys.fail("attention.indexer.key_length", f"must be at least the {rope.dimensions} that turn")
        index = Index(
            q=load.linear(f"{at}attn_q_b", heads * size, inner.latents.short.rows),
            k=load.linear(f"{at}attn_k", size, width),
            k_norm=load.norm_of("layer", f"{at}k_norm", size, load.graph.index_epsilon or load.hyper.epsilon),
            weights=load.linear(f"{at}proj", heads, width),
            heads=heads,
            size=size,
            rope=latents.yarn(load, rope)[0],
            last=load.graph.index_turned_last,
        )
    elif not any(isinstance(mixer, IndexedAttention) and mixer.index is not None for mixer in slots):
        raise load.fail(f"block {layer} has no index, and there is none before it")
    loaded = IndexedAttention(len(slots), inner, index, keys.count("attention.indexer.top_k"))
    slots.append(loaded)
    return loaded


def _has_own(load: Loader, layer: int) -> bool:
    types = load.hyper.keys.get("attention.indexer.types")
    if isinstance(types, list) and layer < len(types):
        return bool(types[layer])
    return load.has(f"blk.{layer}.indexer.attn_k.weight")
