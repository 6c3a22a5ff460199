"""How much memory caches take."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ggufkit.runtime.cpu.ops import CpuOps
from ggufkit.runtime.ops import CacheSpec
from ggufkit.runtime.sizes import KEPT_STATES

if TYPE_CHECKING:
    from ggufkit.runtime.model import Model

__all__ = ["cache_sizes"]


def cache_sizes(model: Model, types: tuple[str, str]) -> Callable[[int], int]:
    """What a cache of a model takes: a function from tokens to bytes.

    For each token the same, whatever the backend, and once the recurrent states with the copies that are kept.
    """
    ops = CpuOps(1)
    small, large = (
        sum(mixer.memory(ops, CacheSpec(*types), n).nbytes for mixer in model.weights.slots) for n in (32, 64)
    )
    each = (large - small) // 32
    states = (small - 32 * each) * (1 + KEPT_STATES)
    return lambda tokens: states + tokens * each
