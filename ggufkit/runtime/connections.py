"""Several streams that each half of a block reads as one and writes back to all (hyper-connections).

    begin      all streams are the embedding
    a half     y = what mixers or FFN make of the streams as one        xᵢ + wᵢ y
    end        the streams as one

    Hy 4       r, w = sigmoid(scale · F norm(streams) + base)           as one: Σ rᵢ xᵢ           w magnitude · w
    Qwen 4     g = sigmoid(U silu(D norm(streams) / count))             as one: mean of gᵢ norm(xᵢ)
               w = 2 sigmoid(J norm(streams) / count)

F, D and J are matrices from all streams side by side.

Source: src/models/hy-v4.cpp and qwen4exp.cpp of llama.cpp; Zhu et al., "Hyper-Connections", 2024.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ggufkit.runtime.block import Block
from ggufkit.runtime.loader import Loader
from ggufkit.runtime.ngrams import Ngrams, load_ngrams
from ggufkit.runtime.ops import Array, Linear, Norm, Ops
from ggufkit.runtime.step import Step

__all__ = ["ConnectedBlock", "Connection", "Connections", "GatedConnection", "load_connections"]


@dataclass(frozen=True)
class Connection:
    """One whose weights are a number for each stream.

    Attributes
    ----------
    count : of streams.
    norm : of all streams side by side, without weights.
    mix : these → a number for each stream, or two: to read it and to write to it.
    scale, base : arrays as long as `mix` has rows.
    epsilon : added to what a sigmoid gives.
    magnitude : of what is written.
    """

    count: int
    norm: Norm
    mix: Linear
    scale: Array
    base: Array
    epsilon: float
    magnitude: float

    def read(self, ops: Ops, streams: list[Array]) -> tuple[Array, Array]:
        """The streams as one (n, width), and what each is written with (n, count)."""
        (mixed,) = ops.linear(ops.norm(ops.joined(streams), self.norm), self.mix)
        weights = ops.activate(None, mixed * self.scale + self.base, "sigmoid")
        total = streams[0] * (weights[:, :1] + self.epsilon)
        for i, x in enumerate(streams[1:], 1):
            total = total + x * (weights[:, i : i + 1] + self.epsilon)
        return total, weights[:, self.count :] * self.magnitude + self.epsilon


@dataclass(frozen=True)
class GatedConnection:
    """One that reads each number of each stream through a gate.

    Attributes
    ----------
    count : of streams.
    norm : of each stream.
    down, up : all streams side by side → a few numbers → a gate for each number.
    inject : all streams → a number for each; None at the end.
    """

    count: int
    norm: Norm
    down: Linear
    up: Linear
    inject: Linear | None

    def read(self, ops: Ops, streams: list[Array]) -> tuple[Array, Array]:
        """The streams as one (n, width), and what each is written with (n, count)."""
        normed = ops.norm(ops.joined(streams), self.norm)
        linears = [self.down] if self.inject is None else [self.down, self.inject]
        low, *written = ops.linear(normed, *linears)
        (gate,) = ops.linear(ops.activate(None, ops.scale(low, 1 / self.count), "silu"), self.up)
        gated = ops.gated(normed, gate).reshape(len(normed), self.count, -1)
        total = gated[:, 0]
        for i in range(1, self.count):
            total = total + gated[:, i]
        weights = written[0] * (1 / self.count) if written else None
        return total * (1 / self.count), None if weights is None else ops.activate(None, weights, "sigmoid") * 2


@dataclass(frozen=True)
class ConnectedBlock:
    """One layer: a block whose two halves read and write the streams.

    Attributes
    ----------
    ngrams : what is added to the streams first, or None.
    """

    block: Block
    halves: tuple[Connection | GatedConnection, ...]
    ngrams: Ngrams | None

    def run(self, streams: list[Array], step: Step) -> list[Array]:
        if self.ngrams is not None:
            streams = self.ngrams.run(streams, step)
        for connection, work in zip(self.halves, (self.block.mixed, self.block.fed), strict=True):
            x, weights = connection.read(step.ops, streams)
            y = work(x, step)
            streams = [stream + y * weights[:, i : i + 1] for i, stream in enumerate(streams)]
        return streams


@dataclass(frozen=True)
class Connections:
    """How the streams begin and end."""

    head: Connection | GatedConnection

    def open(self, ops: Ops, x: Array) -> list[Array]:
        """(n, width) → as many of them."""
        return [x, *(ops.copy(x) for _ in range(self.head.count - 1))]

    def close(self, ops: Ops, streams: list[Array]) -> Array:
        """The streams as one."""
        return self.head.read(ops, streams)[0]

    def block(self, load: Loader, block: Block, layer: int, slots: list[Any]) -> ConnectedBlock:
        """A layer, from what it does by itself."""
        if not block.mixers or block.ffn is None:
            raise load.fail(f"block {layer} lacks attention or an FFN, which its streams go through")
        halves = tuple(_connection(load, f"blk.{layer}.hc_{half}", 2) for half in ("attn", "ffn"))
        return ConnectedBlock(block, halves, load_ngrams(load, layer, self.head.count, slots))


def load_connections(load: Loader) -> Connections | None:
    """How the streams begin and end, or None where there is one."""
    there = any(load.has(f"output_hc_{name}.weight") for name in ("fn", "down"))
    return Connections(_connection(load, "output_hc", 1)) if there else None


def _connection(load: Loader, name: str, parts: int) -> Connection | GatedConnection:
    keys, width = load.hyper.keys, load.hyper.width
    count = keys.count("hyper_connection.count", least=2, most=64)
    if load.has(f"{name}_down.weight"):
        low = keys.count("hyper_connection.low_rank")
        norm = load.norm(f"{name}_norm", width, count, apart=True)
        if norm is None:
            raise load.fail(f"the tensor {name}_norm.weight is missing; the model cannot be run without it")
        return GatedConnection(
            count=count,
            norm=norm,
            down=load.linear(f"{name}_down", low, count * width),
            up=load.linear(f"{name}_up", count * width, low),
            inject=load.linear(f"{name}_inject", count, count * width) if parts > 1 else None,
        )
    return Connection(
        count=count,
        norm=load.plain_norm(count * width),
        mix=load.linear(f"{name}_fn", parts * count, count * width),
        scale=load.ops.vector(load.vector(f"{name}_scale.weight", parts).repeat(count)),
        base=load.ops.vector(load.vector(f"{name}_base.weight", parts * count)),
        epsilon=keys.number("hyper_connection.epsilon"),
        magnitude=keys.number("hyper_connection.magnitude"),
    )
