"""Learned rows that look at the rows of a picture: MiniCPM-V's resampler.

    x ─ matrix ─ norm ─┬─ + sines and cosines of row and column ─ keys
                       └───────────────────────────────────────── values      softmax(q · k / √head) v ─ norm ─ matrix

Source: `clip_graph_minicpmv` in tools/mtmd/models/minicpmv.cpp of llama.cpp.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ggufkit.arch.tower import Resample
from ggufkit.runtime.loader import Tensors
from ggufkit.runtime.ops import Array, Linear, Norm, Ops

__all__ = ["Resampler", "load_resampler"]


@dataclass(frozen=True)
class Resampler:
    """What the rows look with.

    Attributes
    ----------
    queries : array of shape (n, heads, head), divided by the root of a head.
    """

    ops: Ops
    queries: Array
    enter: Linear
    norm: Norm
    keys: Linear
    values: Linear
    out: Linear
    last_norm: Norm
    leave: Linear

    def run(self, x: Array, shape: tuple[int, int]) -> Array:
        """(rows × columns, width) → (n, out)"""
        ops = self.ops
        (x,) = ops.linear(x, self.enter)
        values = ops.norm(x, self.norm)
        placed = values + ops.vector(_waves(shape, self.enter.rows))
        (k,), (v,) = ops.linear(placed, self.keys), ops.linear(values, self.values)
        heads = self.queries.shape[1]
        found = ops.related(self.queries, k.reshape(len(k), heads, -1), v.reshape(len(v), heads, -1), None)
        (y,) = ops.linear(found, self.out)
        (y,) = ops.linear(ops.norm(y, self.last_norm), self.leave)
        return y


def _waves(shape: tuple[int, int], width: int) -> np.ndarray:
    """Sines and cosines of the column, then of the row: (rows × columns, width) float32."""
    rates = 10000.0 ** (-np.arange(width // 4) / (width // 4))
    rows, columns = (axis.reshape(-1, 1) * rates for axis in np.indices(shape))
    waves = [function(angles) for angles in (columns, rows) for function in (np.sin, np.cos)]
    return np.concatenate(waves, axis=1).astype(np.float32)


def load_resampler(load: Tensors, part: Resample, width: int, epsilon: float) -> Resampler:
    """Its tensors, checked and taken.

    Raises
    ------
    ArchitectureError : one is missing or has another shape.
    """
    at, ops = part.at, load.ops
    queries = load.numbers(f"{at}query", -1, -1)
    inner = queries.shape[1]
    if inner % part.head or inner % 4:
        raise load.fail(f"{at}query has rows of {inner} numbers, which are no heads of {part.head}")
    if load.has(f"{at}pos_embed_k"):
        load.taken.add(f"{at}pos_embed_k")  # the waves of one shape, which are computed here for any

    def norm(name: str) -> Norm:
        found = load.norm_of("layer", f"{at}ln_{name}", inner, epsilon)
        if found is None:
            raise load.fail(f"the tensor {at}ln_{name}.weight is missing; the encoder cannot be run without it")
        return found

    q, k, v, out = (load.linear(f"{at}attn.{name}", inner, inner) for name in ("q", "k", "v", "out"))
    (asked,) = ops.linear(ops.norm(ops.vector(queries), norm("q")), q)
    asked = ops.numpy(asked).reshape(len(queries), -1, part.head) / np.float32(math.sqrt(part.head))
    return Resampler(
        ops=ops,
        queries=ops.vector(asked),
        enter=load.linear(f"{at}kv", inner, width),
        norm=norm("kv"),
        keys=k,
        values=v,
        out=out,
        last_norm=norm("post"),
        leave=load.linear(f"{at}proj", -1, inner),
    )
