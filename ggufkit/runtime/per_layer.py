"""Vectors that tokens have for each layer, beside the one that goes through all of them.

    table     (table[token] · √size + norm(W x / √width)) / √2           all layers at once, x being the embedding;
              norm(W x / √width)                                         without a table
    a layer   x + norm(W″ (gelu(W′ x) · its vector))

Source: src/models/gemma4.cpp and gemma3n.cpp of llama.cpp.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ggufkit.runtime.loader import Loader
from ggufkit.runtime.ops import Array, Linear, Norm
from ggufkit.runtime.step import Step

__all__ = ["Embedding", "PerLayerInput", "PerLayerTable", "load_per_layer_input", "load_per_layer_table"]


@dataclass(frozen=True)
class PerLayerTable:
    """All layers' vectors.

    Attributes
    ----------
    table : (vocabulary, layers × size), or None.
    projection, norm : of the embedding, to the same; of each layer's part.
    """

    table: Any
    projection: Linear
    norm: Norm
    layers: int
    size: int

    def run(self, x: Array, step: Step) -> list[Array]:
        """Of each layer (n, size), from embeddings (n, width)."""
        ops = step.ops
        (projected,) = ops.linear(x, self.projection)
        projected = ops.norm(ops.scale(projected, 1 / math.sqrt(self.projection.cols)), self.norm)
        if self.table is None:
            return ops.split(projected, [self.size] * self.layers)
        own = ops.scale(ops.embed(self.table, step.tokens), math.sqrt(self.size))
        return ops.split(ops.scale(ops.add(projected, own), 1 / math.sqrt(2)), [self.size] * self.layers)


@dataclass(frozen=True)
class PerLayerInput:
    """What one layer makes of them: `gate` (size, width), `projection` (width, size), `norm`."""

    layer: int
    gate: Linear
    projection: Linear
    norm: Norm | None
    activation: str

    def run(self, x: Array, step: Step) -> Array:
        """What is added to x (n, width)."""
        ops = step.ops
        (gate,) = ops.linear(x, self.gate)
        (y,) = ops.linear(ops.activate(gate, step.per_layer[self.layer], self.activation), self.projection)
        return y if self.norm is None else ops.norm(y, self.norm)


@dataclass(frozen=True)
class Embedding:
    """A token's embedding, added again in every layer.

    Attributes
    ----------
    factor : multiplies it.
    """

    factor: float

    def run(self, x: Array, step: Step) -> Array:
        """What is added to x (n, width)."""
        return step.ops.scale(step.ops.copy(step.embedding), self.factor)


def load_per_layer_table(load: Loader) -> PerLayerTable | None:
    """The table, or None where the model has none."""
    if not load.has("per_layer_model_proj.weight"):
        return None
    hyper = load.hyper
    size = hyper.keys.count("embedding_length_per_layer_input")
    norm = load.norm("per_layer_proj_norm", size)
    if norm is None:
        raise load.fail("the tensor per_layer_proj_norm.weight is missing; the model cannot be run without it")
    name, rows = "per_layer_token_embd.weight", size * hyper.layers
    return PerLayerTable(
        table=load.ops.weight(load.tensor(name, load.vocabulary, rows)) if load.has(name) else None,
        projection=load.linear("per_layer_model_proj", rows, hyper.width),
        norm=norm,
        layers=hyper.layers,
        size=size,
    )


def load_per_layer_input(load: Loader, layer: int) -> PerLayerInput | None:
    """A layer's, or None where it has none."""
    at, width = f"blk.{layer}.", load.hyper.width
    if not load.has(f"{at}inp_gate.weight"):
        return None
    size = load.hyper.keys.count("embedding_length_per_layer_input")
    return PerLayerInput(
        layer=layer,
        gate=load.linear(f"{at}inp_gate", size, width),
        projection=load.linear(f"{at}proj", width, size),
        norm=load.norm(f"{at}post_norm", width),
        activation=load.graph.activation,
    )
