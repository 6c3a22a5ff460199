"""AWQ: columns that large activations meet are multiplied, and what gives these activations is divided.

    norm ÷ s ─ q k v, gate up: columns × s
    v: rows ÷ s ─ out: columns × s            up: rows ÷ s ─ down: columns × s

The model computes the same; but columns that matter more get finer steps. s = (mean x²)^(α/2), with α for each place
the one of 0, 1/8 … 1 with the least predicted divergence when the readers are encoded with the type that they will
have. Where a model computes in a way that this would not leave the same (a bound on values, a norm between, parallel
blocks, experts), nothing is folded.

Source: Lin et al., "AWQ", 2023.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from ggufkit.calibrate.consistency import check_model
from ggufkit.calibrate.costs import error_cost, output_of, sampled, shares_of
from ggufkit.calibrate.equivalent import Equivalent, bias_of, dense, scaled, scaled_statistics
from ggufkit.calibrate.statistics import Statistics
from ggufkit.calibrate.tape import Tape
from ggufkit.formats.codec import decode, encode
from ggufkit.gguf.reader import GGUF
from ggufkit.kernels.threads import for_ranges
from ggufkit.runtime.mixers.attention import Attention
from ggufkit.runtime.model import Model
from ggufkit.runtime.ops import Linear

__all__ = ["Place", "folded", "places"]

_STEPS = 8  # of α, from 0 to 1
_LINEAR_IN_UP = ("silu", "gelu", "gelu_erf", "gelu_quick", "relu", "relu_squared")


@dataclass(frozen=True)
class Place:
    """Where activations can be scaled.

    Attributes
    ----------
    readers : matrices whose columns are multiplied.
    vectors : what is divided: a norm's weights and bias.
    giver : the matrix whose rows are divided, with its bias; or None.
    group : so many heads of the readers' columns share one of the giver's, of `head` numbers each.
    """

    readers: tuple[str, ...]
    vectors: tuple[str, ...] = ()
    giver: str | None = None
    group: int = 1
    head: int = 1


def places(model: Model) -> Iterator[Place]:
    """All places of a model where scaling changes nothing, in the order of its blocks."""
    tensors = model.gguf.tensors
    shared = {
        mixer.slot
        for block in model.weights.blocks
        for mixer in getattr(block, "mixers", ())
        if isinstance(mixer, Attention) and mixer.k is None
    }
    for block in model.weights.blocks:
        if (parts := dense(block)) is None:
            continue
        attention, ffn = parts
        readers = (attention.q, attention.k, attention.v, attention.gate)
        yield _after_norm(block.mixer_norm.name, readers, tensors)
        v, out = attention.v, attention.out
        straight = attention.v_norm is None and attention.sub_norm is None and not attention.clamp
        if v is not None and straight and attention.slot not in shared and _whole(v, tensors):
            spec = attention.spec
            yield Place((out.name,), _biases(v, tensors), v.name, spec.heads // spec.kv_heads, spec.head_v)
        if ffn.share is None:
            yield _after_norm(block.ffn_norm.name, (ffn.gate, ffn.up), tensors)
        gated = ffn.gate is not None and ffn.activation in _LINEAR_IN_UP and not ffn.xielu
        if gated and ffn.sub_norm is None and _whole(ffn.up, tensors):
            yield Place((ffn.down.name,), _biases(ffn.up, tensors), ffn.up.name)
    norm, output = model.weights.output_norm, model.weights.output
    if norm is not None and norm.name and output is not None and output.name != "token_embd.weight":
        yield _after_norm(norm.name, (output,), tensors)


def _after_norm(norm: str, readers: tuple[Linear | None, ...], tensors: Mapping[str, object]) -> Place:
    names = tuple(dict.fromkeys(linear.name for linear in readers if linear is not None))
    return Place(names, tuple(name for name in (norm, bias_of(norm)) if name in tensors))


def _whole(linear: Linear, tensors: Mapping[str, object]) -> bool:
    """Whether a matrix is a tensor of its own, and no part of one."""
    shape = getattr(tensors[linear.name], "shape", ())
    return tuple(shape) == (linear.rows, linear.cols)


def _biases(linear: Linear, tensors: Mapping[str, object]) -> tuple[str, ...]:
    return (bias_of(linear.name),) if bias_of(linear.name) in tensors else ()


def folded(model: GGUF, statistics: Statistics, types: Mapping[str, str], *, threads: int | None = None) -> Equivalent:
    """The model with the scales that make it lose least when it is quantized.

    Parameters
    ----------
    statistics : of the model.
    types : tensor name → the format that it will have; those that are not quantized are left out.

    Raises
    ------
    ArchitectureError : the model cannot be run.
    PolicyError : the statistics are of another model.
    """
    check_model(statistics, model.tensors)
    found = [place for place in places(Model(model, Tape(threads=threads))) if _known(place, statistics, types)]
    chosen: list[np.ndarray] = [np.empty(0)] * len(found)

    def work(lo: int, hi: int) -> None:
        for i in range(lo, hi):
            chosen[i] = _searched(found[i], model, statistics, types)

    for_ranges(work, len(found), 1, threads)
    rows: dict[str, np.ndarray] = {}
    cols: dict[str, np.ndarray] = {}
    for place, s in zip(found, chosen, strict=True):
        cols |= dict.fromkeys(place.readers, _spread(s, place))
        cols |= dict.fromkeys(place.vectors, 1 / s)
        if place.giver is not None:
            rows[place.giver] = 1 / s
    changed = {
        name: scaled(model.tensors[name], rows.get(name), cols.get(name)) for name in sorted(rows.keys() | cols.keys())
    }
    return Equivalent(model.with_tensors(changed), scaled_statistics(statistics, cols, rows))


def _known(place: Place, statistics: Statistics, types: Mapping[str, str]) -> bool:
    """Whether all readers will be quantized, and nothing else reads the same."""
    if not all(name in types and name in statistics.inputs and name in statistics.fisher for name in place.readers):
        return False
    key = statistics.inputs[place.readers[0]]
    together = {name for name, other in statistics.inputs.items() if other == key}
    return together == set(place.readers)


def _spread(s: np.ndarray, place: Place) -> np.ndarray:
    """Scales of what is given, as the readers' columns have them: each head of values serves `group` of queries."""
    if place.group == 1:
        return s
    heads = s.reshape(-1, 1, place.head)
    return np.repeat(heads, place.group, axis=1).reshape(-1)


def _searched(place: Place, model: GGUF, statistics: Statistics, types: Mapping[str, str]) -> np.ndarray:
    """The scales of a place, float32."""
    sums = statistics.squares[place.readers[0]]
    mean = sums.squares[0] / max(int(sums.counts[0]), 1)
    if place.group > 1:
        mean = mean.reshape(-1, place.group, place.head).mean(1).reshape(-1)
    root = np.maximum(mean / mean.mean(), 1e-8) if mean.any() else np.ones(len(mean))
    for _ in range(4):  # roots and products, of which every CPU has the same bits
        root = np.sqrt(root)
    readers = [_Reader(name, model, statistics, types[name]) for name in place.readers]
    best, least, power = np.ones(len(mean), np.float32), np.inf, np.ones(len(mean))
    for _ in range(_STEPS + 1):
        s = power.astype(np.float32)
        power = power * root
        cost = sum(reader.cost(_spread(s, place)) for reader in readers)
        if cost < least:
            best, least = s, cost
    return best


class _Reader:
    """Some rows of a matrix, and what their errors cost."""

    def __init__(self, name: str, model: GGUF, statistics: Statistics, type_: str):
        self.type = type_
        self.shares = shares_of(name, statistics, output_of(model))
        self.sample = sampled(model.tensors[name], self.shares)
        self.importance = np.ascontiguousarray(np.diagonal(self.shares[-1][1]))

    def cost(self, s: np.ndarray) -> float:
        """In KL divergence, with columns that are multiplied by s while they are encoded."""
        rows = self.sample.values
        blocks = encode(rows * s, self.type, self.importance / (s * s), threads=1)
        return error_cost(decode(blocks, self.type, threads=1) / s - rows, self.sample, self.shares)
