"""Models whose texts go through the same blocks several times; each time has a memory of its own.

    loops     x = blocks(x), normalised between two times
    stacks    fast = norm(fast blocks(slow + fast))   several times, then   slow = norm(slow blocks(slow + fast))

Source: src/models/nanbeige.cpp and hrm-text.cpp of llama.cpp; Wang et al., "Hierarchical Reasoning Model", 2025.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ggufkit.runtime.block import Block
from ggufkit.runtime.loader import Loader
from ggufkit.runtime.ops import Array, Norm
from ggufkit.runtime.step import Step

__all__ = ["Loops", "Stacks", "again", "load_passes"]


@dataclass(frozen=True)
class Loops:
    """`count` blocks at a time, all of them as often as there are; `norm` between two times, or None."""

    count: int
    norm: Norm | None

    def run(self, blocks: Sequence[Block], x: Array, step: Step) -> Array:
        """(n, width) → (n, width), not normalised."""
        for number, block in enumerate(blocks):
            if number and number % self.count == 0 and self.norm is not None:
                x = step.ops.norm(x, self.norm)
            x = block.run(x, step)
        return x


@dataclass(frozen=True)
class Stacks:
    """A fast and a slow state.

    Attributes
    ----------
    count : blocks of each stack.
    often : so many times the fast one, then once the slow one.
    begin : (1, width), the fast state at first.
    norm : of both states.
    """

    count: int
    often: int
    begin: Array
    norm: Norm

    def run(self, blocks: Sequence[Block], x: Array, step: Step) -> Array:
        """(n, width) → (n, width), not normalised."""
        ops, slow, fast = step.ops, x, self.begin
        times = len(blocks) // self.count
        for time in range(times):
            state = ops.add(ops.copy(slow), fast)
            for block in blocks[time * self.count : (time + 1) * self.count]:
                state = block.run(state, step)
            if time == times - 1:
                return state
            state = ops.norm(state, self.norm)
            slow, fast = (state, fast) if time % (self.often + 1) == self.often else (slow, state)
        return x


def again(block: Any, slots: list[Any]) -> Any:
    """The same block with a memory of its own."""
    mixers = []
    for mixer in block.mixers:
        if not hasattr(mixer, "slot"):
            mixers.append(mixer)
            continue
        mixers.append(replace(mixer, slot=len(slots)))
        slots.append(mixers[-1])
    return replace(block, mixers=tuple(mixers))


def load_passes(load: Loader) -> Loops | Stacks | None:
    """How texts go through the blocks, or None for once."""
    hyper, keys = load.hyper, load.hyper.keys
    if load.has("hrm.z_l_init"):
        begin = load.ops.vector(load.vector("hrm.z_l_init", hyper.width).reshape(1, hyper.width))
        often = keys.count("hrm.l_cycles", most=hyper.layers)
        return Stacks(keys.count("hrm.layers_per_stack"), often, begin, load.plain_norm(hyper.width, load.graph.norm))
    if hyper.order == tuple(range(hyper.layers)):
        return None
    norm = None if keys.flag("skip_loop_final_norm", False) else load.block_norm(load.graph.output_norm)
    return Loops(hyper.layers, norm)
