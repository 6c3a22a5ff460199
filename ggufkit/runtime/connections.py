"""Several streams that each half of a block reads as one and writes back to all (independent hyper-connections, Hy 4).

    begin      all streams are the embedding
    a half     r, w = sigmoid(scale · F norm(streams) + base)        F from all streams side by side
               y = what mixers or FFN make of Σ rᵢ xᵢ                 xᵢ + magnitude · wᵢ y
    end        Σ rᵢ xᵢ

Source: src/models/hy-v4.cpp of llama.cpp; Zhu et al., "Hyper-Connections", 2024.
"""

from __future__ import annotations

from dataclasses import dataclass

from ggufkit.runtime.block import Block
from ggufkit.runtime.loader import Loader
from ggufkit.runtime.ops import Array, Linear, Norm, Ops
from ggufkit.runtime.step import Step

__all__ = ["ConnectedBlock", "Connection", "Connections", "load_connections"]


@dataclass(frozen=True)
class Connection:
    """How streams become one, and what comes of it goes back.

    Attributes
    ----------
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

    def weights(self, ops: Ops, streams: list[Array]) -> Array:
        """(n, rows of `mix`), between 0 and 1."""
        (mixed,) = ops.linear(ops.norm(ops.joined(streams), self.norm), self.mix)
        return ops.activate(None, mixed * self.scale + self.base, "sigmoid")

    def read(self, streams: list[Array], weights: Array) -> Array:
        """The streams as one."""
        total = streams[0] * (weights[:, :1] + self.epsilon)
        for i, x in enumerate(streams[1:], 1):
            total = total + x * (weights[:, i : i + 1] + self.epsilon)
        return total

    def written(self, streams: list[Array], weights: Array, y: Array) -> list[Array]:
        """The streams with what came of them."""
        written = weights[:, self.count :] * self.magnitude + self.epsilon
        return [x + y * written[:, i : i + 1] for i, x in enumerate(streams)]


@dataclass(frozen=True)
class ConnectedBlock:
    """One layer: a block whose two halves read and write the streams."""

    block: Block
    halves: tuple[Connection, Connection]

    def run(self, streams: list[Array], step: Step) -> list[Array]:
        for connection, work in zip(self.halves, (self.block.mixed, self.block.fed), strict=True):
            weights = connection.weights(step.ops, streams)
            streams = connection.written(streams, weights, work(connection.read(streams, weights), step))
        return streams


@dataclass(frozen=True)
class Connections:
    """How the streams begin and end."""

    head: Connection

    def open(self, ops: Ops, x: Array) -> list[Array]:
        """(n, width) → as many of them."""
        return [x, *(ops.copy(x) for _ in range(self.head.count - 1))]

    def close(self, ops: Ops, streams: list[Array]) -> Array:
        """The streams as one."""
        return self.head.read(streams, self.head.weights(ops, streams))

    def block(self, load: Loader, block: Block, layer: int) -> ConnectedBlock:
        """A layer, from what it does by itself."""
        if not block.mixers or block.ffn is None:
            raise load.fail(f"block {layer} lacks attention or an FFN, which its streams go through")
        first, second = (_connection(load, f"blk.{layer}.hc_{half}", 2) for half in ("attn", "ffn"))
        return ConnectedBlock(block, (first, second))


def load_connections(load: Loader) -> Connections | None:
    """How the streams begin and end, or None where there is one."""
    return Connections(_connection(load, "output_hc", 1)) if load.has("output_hc_fn.weight") else None


def _connection(load: Loader, name: str, parts: int) -> Connection:
    keys, width = load.hyper.keys, load.hyper.width
    count = keys.count("hyper_connection.count", most=64)
    scale = load.vector(f"{name}_scale.weight", parts).repeat(count)
    return Connection(
        count=count,
        norm=load.plain_norm(count * width),
        mix=load.linear(f"{name}_fn", parts * count, count * width),
        scale=load.ops.vector(scale),
        base=load.ops.vector(load.vector(f"{name}_base.weight", parts * count)),
        epsilon=keys.number("hyper_connection.epsilon"),
        magnitude=keys.number("hyper_connection.magnitude"),
    )
