"""Several streams of which one is active in a block, and the others follow (AltUp), as Gemma 3n has them.

    x₀ = embedding, xᵢ = Pᵢ x₀ as long as x₀
    block      p = x + coefficients(x₀) x           all streams, predicted
               y = the block's own work on p₀, beside a low-rank one (LAuReL)
               x = p + coefficients(y) (y − p₀)     corrected
               x₁… + what the token has for this layer
    end        the mean of x₀ and Uᵢ xᵢ, as long as x₀

Source: src/models/gemma3n.cpp of llama.cpp; Baykal et al., "Alternating Updates for Efficient Transformers", 2023.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from ggufkit.runtime.block import Block
from ggufkit.runtime.loader import Loader
from ggufkit.runtime.ops import Array, Linear, Norm, Ops
from ggufkit.runtime.per_layer import Embedding, PerLayerInput
from ggufkit.runtime.step import Step

__all__ = ["StreamBlock", "Streams", "load_streams"]


@dataclass(frozen=True)
class Streams:
    """How the streams begin and end: stacks of a matrix for each but the first."""

    count: int
    begin: Linear
    end: Linear

    def open(self, ops: Ops, x: Array) -> list[Array]:
        """(n, width) → as many of them."""
        (others,) = ops.each(x.reshape(len(x), 1, -1), ops.indices(len(x), self.count - 1), self.begin)
        return [x, *(ops.copy(_as_long(others[:, i], x)) for i in range(self.count - 1))]

    def close(self, ops: Ops, streams: list[Array]) -> Array:
        """The streams as one."""
        x = streams[0]
        others = ops.joined(streams[1:]).reshape(len(x), self.count - 1, -1)
        (others,) = ops.each(others, ops.indices(len(x), self.count - 1), self.end)
        total = x
        for i in range(self.count - 1):
            total = total + _as_long(others[:, i], x)
        return total * (1 / self.count)

    def block(self, load: Loader, block: Block, layer: int, slots: list[Any]) -> StreamBlock:
        """A layer, from what it does by itself."""
        return _stream_block(load, block, layer, self)


def _as_long(x: Array, other: Array) -> Array:
    """Rows of x with the lengths of those of another."""
    own = (x * x).mean(axis=-1, keepdims=True)
    return x * ((other * other).mean(axis=-1, keepdims=True) / (own + 1e-30)) ** 0.5


@dataclass(frozen=True)
class StreamBlock:
    """One layer.

    Attributes
    ----------
    block : its own work; what it does with the token's vector is `extra` here.
    router, router_norm : a stream → as many numbers as there are streams.
    predict, correct : these → coefficients, of each stream for each, of each stream.
    correct_scale : array of shape (width,): of the active stream, for `extra`.
    laurel, laurel_norm : the low-rank matrices and the norm of what they give.
    """

    block: Block
    count: int
    router: Linear
    router_norm: Norm
    predict: Linear
    correct: Linear
    correct_scale: Array
    laurel: tuple[Linear, Linear]
    laurel_norm: Norm | None
    extra: PerLayerInput | Embedding | None

    def run(self, streams: list[Array], step: Step) -> list[Array]:
        ops = step.ops
        (weights,) = ops.linear(self._modes(ops, streams[0]), self.predict)  # (n, count × count)
        predicted = []
        for j in range(self.count):
            total = streams[j]
            for i in range(self.count):
                k = j * self.count + i
                total = total + streams[i] * weights[:, k : k + 1]
            predicted.append(total)
        y = self._work(predicted[0], step)
        (weights,) = ops.linear(self._modes(ops, y), self.correct)  # (n, count)
        news = y - predicted[0]
        corrected = [p + news * (weights[:, i : i + 1] + 1) for i, p in enumerate(predicted)]
        if self.extra is not None:
            more = self.extra.run(corrected[0] * self.correct_scale, step)
            corrected[1:] = [x + more for x in corrected[1:]]
        return corrected

    def _modes(self, ops: Ops, x: Array) -> Array:
        (scores,) = ops.linear(ops.scale(ops.norm(x, self.router_norm), 1 / x.shape[-1]), self.router)
        return ops.activate(None, scores, "tanh")

    def _work(self, x: Array, step: Step) -> Array:
        ops, block = step.ops, self.block
        normed = ops.norm(x, block.mixer_norm)  # type: ignore[arg-type]
        (low,) = ops.linear(normed, self.laurel[0])
        (low,) = ops.linear(low, self.laurel[1])
        low = normed + (low if self.laurel_norm is None else ops.norm(low, self.laurel_norm))
        mixed = ops.norm(block.mixers[0].run(normed, step), block.mixer_post_norm)  # type: ignore[arg-type]
        x = (x + mixed + low) * (1 / math.sqrt(2))
        return replace(block, mixers=()).run(x, step)


def load_streams(load: Loader) -> Streams | None:
    """How the streams begin and end, or None where there is one."""
    if not load.has("altup_proj.weight"):
        return None
    width, count = load.hyper.width, load.hyper.keys.count("altup.num_inputs", least=2, most=64)
    if load.hyper.keys.count("altup.active_idx", 0, least=0):
        raise load.hyper.keys.fail("altup.active_idx", "must be 0: only a first stream that is active can be run")
    begin, end = (load.linear(name, width, width, count - 1) for name in ("altup_proj", "altup_unembd_proj"))
    return Streams(count, begin, end)


def _stream_block(load: Loader, block: Block, layer: int, streams: Streams) -> StreamBlock:
    at, width, count = f"blk.{layer}.", load.hyper.width, streams.count
    router_norm = load.norm(f"{at}altup_router_norm", width)
    if router_norm is None or block.mixer_norm is None or block.mixer_post_norm is None or len(block.mixers) != 1:
        raise load.fail(f"a norm of block {layer} is missing; the model cannot be run without it")
    rank = load.hyper.keys.count("laurel_rank", 64)
    return StreamBlock(
        block=replace(block, extra=None),
        count=count,
        router=load.linear(f"{at}altup_router", count, width),
        router_norm=router_norm,
        predict=load.linear(f"{at}altup_predict_coef", count * count, count),
        correct=load.linear(f"{at}altup_correct_coef", count, count),
        correct_scale=load.ops.vector(load.vector(f"{at}altup_correct_scale.weight", width)),
        laurel=(load.linear(f"{at}laurel_l", rank, width), load.linear(f"{at}laurel_r", width, rank)),
        laurel_norm=load.norm(f"{at}laurel_post_norm", width),
        extra=block.extra,
    )
