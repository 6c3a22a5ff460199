"""What makes one row of four patches in the middle of an encoder: attention within squares, then a network.

    x ─┬─ norm ─ attention of four ─ + ─┬─ four side by side ─ norm ─ up ─ GELU ─ down ─ + ─
       └────────────────────────────────┘└────────────────── mean of four ───────────────┘

Source: `clip_graph_minicpmv4_6` in tools/mtmd/models/minicpmv.cpp of llama.cpp.
"""

from __future__ import annotations

from dataclasses import dataclass

from ggufkit.arch.tower import Activate, Join, Matrix, Normalize
from ggufkit.runtime.encoders.blocks import Sizes, Whole, load_attention
from ggufkit.runtime.encoders.steps import Step, load_steps, through
from ggufkit.runtime.loader import Tensors
from ggufkit.runtime.mixers.attention import Attention
from ggufkit.runtime.ops import Array, AttentionSpec, Norm, Ops

__all__ = ["Middle", "load_middle"]


@dataclass(frozen=True)
class Middle:
    """Four patches that lie beside each other become one row.

    Attributes
    ----------
    norm, attention : of what sees its square.
    steps : of the network.
    """

    norm: Norm
    attention: Attention
    steps: list[Step]

    def run(self, ops: Ops, x: Array) -> Array:
        """(n, width) → (n / 4, width)"""
        step = Whole(ops, self.attention.spec, [4] * (len(x) // 4), None)
        x = ops.add(self.attention.run(ops.norm(x, self.norm), step), x)
        mean = x.reshape(len(x) // 4, 4, -1).mean(axis=1)
        return ops.add(through(self.steps, x), mean)


def load_middle(load: Tensors, at: str, sizes: Sizes, spec: AttentionSpec) -> Middle:
    """The tensors whose names begin with `at`, checked and taken."""
    norm = load.norm_of("layer", f"{at}ln1", sizes.width, sizes.epsilon)
    if norm is None:
        raise load.fail(f"the tensor {at}ln1.weight is missing; the encoder cannot be run without it")
    parts = (
        Join("rows"),
        Normalize(f"{at}ds_ln", "layer"),
        Matrix(f"{at}ds_ffn_up"),
        Activate("gelu"),
        Matrix(f"{at}ds_ffn_down"),
    )
    steps = load_steps(load, parts, sizes.width, sizes.width, sizes.epsilon, 4)
    return Middle(norm, load_attention(load, at, sizes, "layer", None, spec), steps)
