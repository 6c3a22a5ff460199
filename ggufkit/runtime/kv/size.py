"""How much memory caches take."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ggufkit.errors import UsageError
from ggufkit.runtime.cpu.ops import CpuOps
from ggufkit.runtime.mixers.relative_attention import CrossAttention
from ggufkit.runtime.ops import CacheSpec
from ggufkit.runtime.sizes import KEPT_STATES

if TYPE_CHECKING:
    from ggufkit.runtime.model import Model

__all__ = ["cache_sizes", "request_sizes"]


def cache_sizes(model: Model, types: tuple[str, str]) -> Callable[[int], int]:
    """What a cache of a model takes: a function from tokens to bytes.

    For each token the same, whatever the backend, and once the recurrent states with the copies that are kept.

    Raises
    ------
    UsageError : it keeps none of a text, because it writes by diffusion.
    """
    if model.graph.diffusion:
        raise UsageError("the model writes by diffusion, not token by token; such models are run, not served")
    ops = CpuOps(1)
    small, large = (
        sum(mixer.memory(ops, CacheSpec(*types), n).nbytes for mixer in model.weights.slots) for n in (32, 64)
    )
    each = (large - small) // 32
    states = (small - 32 * each) * (1 + KEPT_STATES)
    return lambda tokens: states + tokens * each


def request_sizes(model: Model, size: Callable[[int], int], context: int) -> Callable[[int, int | None], int]:
    """What the cache of a request may grow to: a function from tokens of its prompt and of its answer to bytes.

    An answer of None fills the context. Where an encoder reads the prompt, the cache has what came of it, and a context
    for the answer alone.

    Parameters
    ----------
    size : of `cache_sizes`.
    context : tokens that fit.
    """
    if model.weights.encoder is None:
        return lambda prompt, answer: size(context if answer is None else min(context, prompt + answer))
    mixers = [mixer for mixer in model.weights.slots if isinstance(mixer, CrossAttention)]
    read = sum(4 * linear.rows for mixer in mixers for linear in mixer.inputs)
    return lambda prompt, answer: prompt * read + size(context if answer is None else min(context, 1 + answer))
