"""The graph of a mixture of experts.

Source: `build_moe_ffn` in src/llama-graph.cpp of llama.cpp.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ggufkit.memory.ggml.graph import Tensor
from ggufkit.memory.model import Layer

if TYPE_CHECKING:
    from ggufkit.memory.ggml.layers import Pass

__all__ = ["Mixture"]


class Mixture:
    """Experts of which each token goes through some, and those that all go through."""

    def __init__(self, whole: Pass):
        self.whole, self.graph = whole, whole.graph

    def run(self, layer: Layer, at: str, x: Tensor) -> Tensor:
        whole, graph = self.whole, self.graph
        y = self._chosen(layer, at, x)
        if whole.has(f"{at}ffn_up_shexp.weight"):
            shared = whole.dense(f"{at}ffn_", "_shexp", x)
            if whole.has(f"{at}ffn_gate_inp_shexp.weight"):
                gate = graph.same("unary", graph.op("product", (1, x.shape[1]), x))
                shared = graph.same("mul", shared, gate)
            y = graph.same("add", y, shared)
        if whole.has(f"{at}ffn_up.weight"):  # a dense network beside the experts
            y = graph.same("add", whole.dense(f"{at}ffn_", "", x), y)
        return y

    def _chosen(self, layer: Layer, at: str, x: Tensor) -> Tensor:
        whole, graph, n, used = self.whole, self.graph, x.shape[1], layer.used
        scores = graph.same("softmax", graph.op("product", (layer.experts, n), x))
        ranked = graph.same("add", scores) if whole.has(f"{at}exp_probs_b.bias") else scores
        chosen = graph.op("sort", (layer.experts, n), ranked).view(used, n, whole=False)
        weights = graph.op("rows", (1, used, n), scores.view(1, layer.experts, n), chosen)
        weights = weights.view(used, n)
        total = graph.same("clamp", graph.op("sum", (1, n), weights))
        weights = graph.op("div", (used, n), weights, total).view(1, used, n)
        graph.expand(weights)
        x = x.view(x.shape[0], 1, n)
        wide = layer.expert_inner
        if whole.has(f"{at}ffn_gate_up_exps.weight"):
            both = graph.op("product", (2 * wide, used, n), x, chosen)
            gate, up = (both.view(wide, used, n, whole=False) for _ in range(2))
            y = graph.op("glu", (wide, used, n), gate, up)
        else:
            up = graph.op("product", (wide, used, n), x, chosen)
            if whole.has(f"{at}ffn_gate_exps.weight"):
                gate = graph.op("product", (wide, used, n), x, chosen)
                y = graph.op("glu", (wide, used, n), gate, up)
            else:
                y = graph.same("unary", up)
        y = graph.same("mul", graph.op("product", (whole.model.width, used, n), y, chosen), weights)
        graph.expand(y)
        # Each is added in the place of the last sum, so that many take no more than a few.
        parts = [graph.expand(y.view(whole.model.width, n, whole=False)) for _ in range(min(used, 8))]
        total = parts[0]
        for part in parts[1:]:
            total = graph.expand(graph.op("add", (whole.model.width, n), total, part))
        return whole.copied(total) if used == 1 else total
