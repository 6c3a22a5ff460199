"""The graphs of recurrent layers: convolutions, state spaces, delta nets.

Source: `build_rs` in src/llama-graph.cpp, src/models/mamba-base.cpp, delta-net-base.cpp and lfm2.cpp of llama.cpp.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ggufkit.memory.ggml.graph import Tensor
from ggufkit.memory.model import Layer

if TYPE_CHECKING:
    from ggufkit.memory.ggml.layers import Pass

__all__ = ["States"]


class States:
    """What mixes tokens by a state that goes from one to the next."""

    def __init__(self, whole: Pass):
        self.whole, self.graph, self.n = whole, whole.graph, whole.n
        self.slots = whole.setup.slots
        self.copies = self.graph.input(self.slots)  # which conversation's state is where

    def run(self, layer: Layer, at: str, x: Tensor) -> Tensor:
        if self.whole.has(f"{at}shortconv.in_proj.weight"):
            return self._short(layer, at, x)
        if self.whole.has(f"{at}ssm_in.weight"):
            return self._mamba(layer, at, x)
        return self._delta(layer, at, x)

    def _kept(self, size: int) -> Tensor:
        """The states of all conversations, fetched: (size, slots)."""
        graph = self.graph
        found = graph.op("rows", (size, self.slots), graph.weight(), self.copies)
        kept = graph.expand(found.view(size, self.slots))
        graph.expand(graph.store(graph.weight(), found.view(0, whole=False)))
        return kept

    def _convolved(self, layer: Layer, at: str, x: Tensor, channels: int) -> Tensor:
        """A convolution over x (channels, n), with what came before, and its activation."""
        graph, taps = self.graph, layer.convolution // max(channels, 1)
        kept = self._kept(layer.convolution)
        each = self.n // self.slots
        seen = graph.op("concat", (taps + each, channels, self.slots), kept.view(*kept.shape), x)
        graph.expand(graph.store(graph.weight(), seen.view(taps, channels, self.slots, whole=False)))
        y = graph.op("convolution", (channels, each, self.slots), seen)
        return graph.same("unary", graph.same("add", y))

    def _short(self, layer: Layer, at: str, x: Tensor) -> Tensor:
        whole, graph = self.whole, self.graph
        width = whole.model.width
        parts = whole.linear(f"{at}shortconv.in_proj", x)
        b, c, y = (parts.view(width, self.n, whole=False) for _ in range(3))
        y = graph.op("mul", (width, self.n), b, y)
        y = graph.op("mul", (width, self.n), c, self._convolved(layer, at, y.view(width, self.n, whole=False), width))
        return whole.linear(f"{at}shortconv.out_proj", y)

    def _mamba(self, layer: Layer, at: str, x: Tensor) -> Tensor:
        """Mamba, or Mamba 2, whose projection holds all at once."""
        whole, graph, n = self.whole, self.graph, self.n
        inner = whole.columns(f"{at}ssm_out.weight")
        channels = whole.shapes[f"{at}ssm_conv1d.weight"][0]
        second = not whole.has(f"{at}ssm_x.weight")
        parts = whole.linear(f"{at}ssm_in", x)
        z = parts.view(inner, n, whole=False)
        y = self._convolved(layer, at, parts.view(channels, n, whole=False).view(channels, n, whole=False), channels)
        if second:
            heads = whole.columns(f"{at}ssm_dt.bias")
            step = graph.same("add", graph.op("copy", (heads, n), parts.view(heads, n, whole=False)))
            choices = [y.view(channels, n, whole=False) for _ in range(2)]
            read = y.view(inner, n, whole=False)
        else:
            found = whole.linear(f"{at}ssm_x", y)
            step = whole.copied(found.view(whole.columns(f"{at}ssm_dt.weight"), n, whole=False))
            step = whole.linear(f"{at}ssm_dt", step)
            choices = [found.view(layer.state // inner, n, whole=False) for _ in range(2)]
            read = y.view(inner, n)
        scanned = graph.op(
            "scan", (inner * n + layer.state * self.slots,), read, step, *choices, self.copies.view(self.slots)
        )
        graph.expand(scanned)
        # States of conversations that are not in the pass go through memory, too.
        others = graph.op("rows", (layer.state, self.slots - 1), graph.weight(), self.copies.view(self.slots - 1))
        graph.expand(graph.store(graph.weight(), others.view(0, whole=False)))
        graph.expand(graph.store(graph.weight(), scanned.view(layer.state * self.slots, whole=False)))
        out = scanned.view(inner, n, whole=False)
        out = graph.op("add", (inner, n), out, graph.op("mul", (inner, n), read if second else y))
        out = graph.op("glu", (inner, n), whole.copied(z), out)
        return whole.linear(f"{at}ssm_out", whole.norm(f"{at}ssm_norm", out).view(inner, n))

    def _delta(self, layer: Layer, at: str, x: Tensor) -> Tensor:
        """A gated delta net, its scan as one operation."""
        whole, graph, n = self.whole, self.graph, self.n
        inner = whole.columns(f"{at}ssm_out.weight")
        channels = whole.shapes[f"{at}ssm_conv1d.weight"][0]
        mixed, z = whole.linear(f"{at}attn_qkv", x), whole.linear(f"{at}attn_gate", x)
        heads = whole.columns(f"{at}ssm_a")
        beta = graph.same("unary", graph.op("product", (heads, n), x))
        decay = graph.same("mul", graph.same("unary", graph.op("product", (heads, n), x)))
        y = self._convolved(layer, at, mixed.view(channels, n, whole=False), channels)
        keys = (channels - inner) // 2
        q, k = (graph.op("unit", (keys, n), y.view(keys, n, whole=False)) for _ in range(2))
        v = whole.copied(y.view(inner, n, whole=False))
        state = self._kept(layer.state)
        scanned = graph.op("delta", (inner * n + layer.state * self.slots,), q, k, v, decay, beta, state)
        graph.expand(graph.store(graph.weight(), scanned.view(layer.state * self.slots, whole=False)))
        out = graph.op("norm", (inner, n), scanned.view(inner, n, whole=False))
        out = graph.same("mul", graph.same("mul", out), graph.same("unary", z))
        return whole.linear(f"{at}ssm_out", out)
