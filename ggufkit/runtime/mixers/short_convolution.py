"""A short convolution between two gates, as LFM2 has it.

    b, c, x = W x        y = c · conv(b · x)        out y

Source: src/models/lfm2.cpp of llama.cpp.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ggufkit.runtime.kv.state import State
from ggufkit.runtime.loader import Loader
from ggufkit.runtime.mixers.convolution import Convolution, load_convolution
from ggufkit.runtime.ops import Array, CacheSpec, Linear, Ops
from ggufkit.runtime.step import Step

__all__ = ["ShortConvolution", "found", "load"]


@dataclass(frozen=True)
class ShortConvolution:
    """One layer's; `inputs` are b, c and x."""

    slot: int
    inputs: tuple[Linear, ...]
    convolution: Convolution
    out: Linear

    def memory(self, ops: Ops, types: CacheSpec, length: int) -> State:
        return State(ops, self.convolution.shape)

    def run(self, x: Array, step: Step) -> Array:
        b, c, x = step.ops.linear(x, *self.inputs)
        y = c * self.convolution.run(step.ops, b * x, step.spans(self.slot))
        (y,) = step.ops.linear(y, self.out)
        return y


def found(load: Loader, at: str) -> bool:
    """Whether a block has one."""
    return load.has(f"{at}shortconv.in_proj.weight")


def load(load: Loader, layer: int, slots: list[Any]) -> ShortConvolution:
    """A layer's, its tensors checked and taken."""
    at, width = f"blk.{layer}.shortconv.", load.hyper.width
    loaded = ShortConvolution(
        slot=len(slots),
        inputs=tuple(load.parts(f"{at}in_proj", [width] * 3, width)),
        convolution=load_convolution(load, f"{at}conv", width, load.hyper.keys.count("shortconv.l_cache", most=64)),
        out=load.linear(f"{at}out_proj", width, width),
    )
    slots.append(loaded)
    return loaded
