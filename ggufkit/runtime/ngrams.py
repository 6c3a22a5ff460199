"""Vectors of the last two, three … tokens together, looked up by a hash, which one layer adds to its streams (Qwen 4).

    rows     hash_n = t₀ m₀ xor t₁ m₁ xor … xor tₙ₋₁ mₙ₋₁        t₁ being the token before t₀
             of each head of an n its row: hash_n mod size of the head + its offset
    gate     sigmoid of the signed root of norm(K rows) · norm(stream) / √width, for each stream
    added    gate · V rows, and silu(conv(norm(gate · V rows))), whose taps are as far apart as n is great

Source: `build_ple` and `llm_graph_input_qwen4exp_ple` in src/models/qwen4exp.cpp of llama.cpp.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ggufkit.runtime.kv.state import State
from ggufkit.runtime.loader import Loader
from ggufkit.runtime.ops import Array, CacheSpec, Linear, Norm, Ops
from ggufkit.runtime.step import Step

__all__ = ["Hashes", "Ngrams", "load_ngrams"]

_LEAST = 1e-6  # of what the root is taken of


@dataclass(frozen=True)
class Hashes:
    """How the last tokens become rows of the table.

    Attributes
    ----------
    multipliers : (greatest n,), of the token itself, the one before it …
    sizes, offsets : (heads,): as many for each n from 2 on.
    end : a token that nothing before it is looked at through; it stands for those that there are not.
    seen : stands for what was seen.
    """

    multipliers: np.ndarray
    sizes: np.ndarray
    offsets: np.ndarray
    end: int
    seen: int

    @property
    def most(self) -> int:
        """The greatest n."""
        return len(self.multipliers)

    def rows(self, before: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """Rows (n, heads) of tokens (n,) that follow those in `before`."""
        ids = np.concatenate([np.full(self.most - 1, self.end), before[-(self.most - 1) :], tokens]).astype(np.int64)
        ids = np.where(ids < 0, self.seen, ids)
        n, each = len(tokens), len(self.sizes) // (self.most - 1)
        last = len(ids) - n + np.arange(n)
        mixed = ids[last].astype(np.uint64) * self.multipliers[0]
        cut, found = np.zeros(n, bool), []
        for back in range(1, self.most):
            earlier = ids[last - back]
            cut |= earlier == self.end
            mixed = mixed ^ (np.where(cut, self.end, earlier).astype(np.uint64) * self.multipliers[back])
            of = slice((back - 1) * each, back * each)
            found.append(mixed[:, None] % self.sizes[of] + self.offsets[of])
        return np.concatenate(found, axis=1).astype(np.int64)


@dataclass(frozen=True)
class Ngrams:
    """What a layer does with them.

    Attributes
    ----------
    table : (rows, numbers of a head).
    key, value : all heads' → all streams, one stream.
    key_norm, query_norm, late_norm : of each stream.
    taps : of the convolution over tokens as far apart as an n-gram is long: (taps, all streams).
    """

    slot: int
    hashes: Hashes
    table: Any
    key: Linear
    value: Linear
    key_norm: Norm
    query_norm: Norm
    late_norm: Norm
    taps: Array

    def memory(self, ops: Ops, types: CacheSpec, length: int) -> State:
        return State(ops, ((len(self.taps) - 1) * self.hashes.most, self.key.rows))

    def run(self, streams: list[Array], step: Step) -> list[Array]:
        """The streams with what is added."""
        ops, n, width = step.ops, len(streams[0]), self.value.rows
        ids = np.concatenate([self.hashes.rows(*run) for run in step.histories(self.hashes.most - 1)])
        rows = ops.embed(self.table, ids.reshape(-1)).reshape(n, -1)
        key, value = ops.linear(rows, self.key, self.value)
        query = ops.norm(ops.joined(streams), self.query_norm)
        alike = (ops.norm(key, self.key_norm) * query).reshape(n, len(streams), width)
        alike = alike.sum(axis=-1) * (1 / math.sqrt(width))
        root = ops.clamp(abs(alike), _LEAST, math.inf) ** 0.5
        gate = ops.activate(None, ops.clamp(alike * 1e30, -1.0, 1.0) * root, "sigmoid")
        given = [value * gate[:, i : i + 1] for i in range(len(streams))]
        late = ops.norm(ops.joined(given), self.late_norm)
        late = ops.convolve(late, self.taps, None, step.spans(self.slot), self.hashes.most)
        parts = ops.split(ops.activate(None, late, "silu"), [width] * len(streams))
        return [x + (y + z) for x, y, z in zip(streams, given, parts, strict=True)]


def load_ngrams(load: Loader, layer: int, streams: int, slots: list[Any]) -> Ngrams | None:
    """A layer's, its tensors checked and taken; None where it has none."""
    keys, at, width = load.hyper.keys, f"blk.{layer}.ple_", load.hyper.width
    if not load.has(f"{at}key.weight"):
        return None
    hashes = _hashes(load)
    size = keys.count("embedding_length_per_layer_input")
    table = load.tensor("per_layer_token_embd.weight", -1, size)
    if (needed := int((hashes.sizes + hashes.offsets).max())) > table.shape[0]:
        raise load.fail(f"per_layer_token_embd.weight has {table.shape[0]} rows; ple.head_offsets need {needed}")
    norms = [load.norm(f"{at}norm_{name}", width, streams, apart=True) for name in ("key", "query", "conv")]
    if None in norms:
        raise load.fail(f"a norm of {at}* is missing; the model cannot be run without it")
    kernel = keys.count("ple.conv_kernel", most=64)
    taps = load.numbers(f"{at}conv1d.weight", streams * width, kernel).T
    loaded = Ngrams(
        slot=len(slots),
        hashes=hashes,
        table=load.ops.weight(table),
        key=load.linear(f"{at}key", streams * width, len(hashes.sizes) * size),
        value=load.linear(f"{at}value", width, len(hashes.sizes) * size),
        key_norm=norms[0],  # type: ignore[arg-type]
        query_norm=norms[1],  # type: ignore[arg-type]
        late_norm=norms[2],  # type: ignore[arg-type]
        taps=load.ops.vector(np.ascontiguousarray(taps)),
    )
    slots.append(loaded)
    return loaded


def _hashes(load: Loader) -> Hashes:
    keys = load.hyper.keys
    most = keys.count("ple.ngram_size", least=2, most=16)
    heads = (most - 1) * keys.count("ple.heads_per_ngram", most=64)

    def numbers(key: str, count: int, least: int) -> np.ndarray:
        values = keys.get(key)
        if not isinstance(values, list) or len(values) < count or any(type(v) is not int or v < least for v in values):
            raise keys.fail(key, f"must be {count} whole numbers of at least {least}")
        if max(values[:count]) >= 1 << 63:
            raise keys.fail(key, "has a number of more than 63 bits")
        return np.array(values[:count], np.uint64)

    end = keys.count("ple.eos_token_id", least=0, most=load.vocabulary - 1)
    return Hashes(
        multipliers=numbers("ple.layer_multipliers", most, 0),
        sizes=numbers("ple.head_vocab_sizes", heads, 1),
        offsets=numbers("ple.head_offsets", heads, 0),
        end=end,
        seen=keys.count("ple.image_token_id", 0, least=0) or end,
    )
