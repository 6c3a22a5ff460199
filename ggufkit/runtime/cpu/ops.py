"""The operations of `runtime.ops` on NumPy arrays, in Numba kernels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from ggufkit.errors import ArchitectureError
from ggufkit.kernels.heap import keep_arrays
from ggufkit.kernels.threads import thread_count
from ggufkit.runtime import relative
from ggufkit.runtime.chosen import attend, blocks, pool_scores, scores, seen_of_pools
from ggufkit.runtime.cpu import activations, gelus, norms, recurrence
from ggufkit.runtime.cpu.attention import ROWS, Pass
from ggufkit.runtime.cpu.cache import LayerCache
from ggufkit.runtime.cpu.calls import NOW, Calls
from ggufkit.runtime.cpu.choosing import best_of
from ggufkit.runtime.cpu.products import rounded
from ggufkit.runtime.cpu.weight import Activations, Weight, multiply_all
from ggufkit.runtime.ops import AttentionSpec, CacheSpec, Choice, Linear, Norm, Recorder, Span, StateSpace
from ggufkit.runtime.router import choose
from ggufkit.tensors.tensor import Tensor

__all__ = ["ACTIVATIONS", "CpuOps"]

_NONE = np.empty(0, np.float32)
_NONE.flags.writeable = False
_NO_BIAS = np.empty((0, 0), np.float32)
_NO_BIAS.flags.writeable = False


def _frozen(x: np.ndarray) -> np.ndarray:
    x = np.ascontiguousarray(x, np.float32)
    x.flags.writeable = False
    return x


class CpuOps:
    """Implements `Ops`; an array is a C-contiguous float32 array of shape (n, width).

    Parameters
    ----------
    threads : how many; default GGUFKIT_THREADS or all CPUs.
    as_ggml : activations are rounded where GGML's products of F16 and BF16 round them; for importance matrices.
    """

    def __init__(self, threads: int | None = None, *, as_ggml: bool = False):
        self.threads = thread_count(threads)
        self.as_ggml = as_ggml
        self.calls: Calls = NOW
        keep_arrays()

    def recorder(self, caches: Sequence[Sequence[Any]]) -> Recorder:
        from ggufkit.runtime.cpu.recorder import CpuRecorder

        return CpuRecorder(self, caches)

    def weight(self, tensor: Tensor) -> Weight:
        fits = self.as_ggml and tensor.shape[-1] % rounded.COLUMNS == 0
        return Weight(tensor, self.threads, rounded.PRODUCTS.get(tensor.format.name) if fits else None)

    def vector(self, values: np.ndarray) -> np.ndarray:
        return _frozen(values)

    def numpy(self, x: np.ndarray) -> np.ndarray:
        return x

    def layer_cache(self, spec: AttentionSpec, types: CacheSpec, length: int) -> LayerCache:
        return LayerCache(spec, types, length)

    def embed(self, weight: Weight, ids: np.ndarray) -> Any:
        out = self.calls.empty(len(ids), weight.shape[-1])
        self.calls.between(lambda array: weight.rows(ids, array), out)
        return out

    def linear(self, x: Any, *linears: Linear) -> list[Any]:
        results: list[Any] = multiply_all([linear.weight for linear in linears], x, self.calls)
        for result, linear in zip(results, linears, strict=True):
            flat = result.reshape(-1)
            if linear.factor is not None:
                self.calls.call(activations.scale, flat, np.float32(linear.factor[0]))
            if linear.bias is not None:
                self.calls.call(activations.add, flat, linear.bias, flat)
        return results

    def norm(self, x: Any, norm: Norm) -> Any:
        result = self.calls.empty(*x.shape)
        epsilon = np.float32(norm.epsilon)
        bias = _NO_BIAS if norm.bias is None else norm.bias

        def function(lo: int, hi: int) -> None:
            rows, out = x[lo:hi].reshape(-1, norm.size), result[lo:hi].reshape(-1, norm.size)
            if norm.kind == "rms":
                self.calls.call(norms.rms_norm, rows, norm.weight, epsilon, out)
                if norm.bias is not None:
                    self.calls.call(activations.add, out.reshape(-1), norm.bias.reshape(-1), out.reshape(-1))
            elif norm.kind == "l2":
                self.calls.between(partial(_unit_length, epsilon), rows, out)
            else:
                self.calls.call(norms.layer_norm, rows, norm.weight, bias, epsilon, out)

        self.calls.ranges(function, len(x), x.size, self.threads)
        return result

    def rope(self, x: Any, heads: int, style: str, table: tuple[np.ndarray, np.ndarray]) -> Any:
        cos, sin = table
        kernel = norms.rope_neox if style == "neox" else norms.rope_norm
        self.calls.ranges(
            lambda lo, hi: self.calls.call(kernel, x[lo:hi], heads, cos[lo:hi], sin[lo:hi]),
            len(x),
            x.size,
            self.threads,
        )
        return x

    def attention(self, q: Any, k: Any | None, v: Any | None, spans: Sequence[Span], spec: AttentionSpec) -> Any:
        calls = self.calls
        out = calls.empty(len(q), spec.heads * spec.head_v)
        sinks, slopes = (_NONE if x is None else x for x in (spec.sinks, spec.slopes))
        parts: list[tuple[Any, tuple[Any, ...], int]] = []
        work = 0
        for span in spans:
            cache: LayerCache = span.cache
            rows, n = slice(span.lo, span.hi), span.hi - span.lo
            seen = span.start + n
            if k is not None and v is not None:
                cache.write(k[rows], v[rows], span.start, calls)
            cache.turn_queries(q[rows], calls)
            call = _pass(spec, cache, span.start, seen, spec.causal and not span.whole)
            blocks = -(-(n * spec.heads // spec.kv_heads) // ROWS)
            arguments = (q[rows], cache.keys, cache.values, sinks, slopes, call, out[rows])
            parts.append((cache.attend, arguments, spec.kv_heads * blocks))
            work += n * spec.heads * int(seen) * (spec.head_k + spec.head_v)
        calls.ranged(parts, work, self.threads)
        for span in spans:
            span.cache.value_turn.back(out[span.lo : span.hi], calls)
        return out

    def activate(self, gate: Any | None, up: Any, activation: str) -> Any:
        out = self.calls.empty(*up.shape)
        first, second, result = _NONE if gate is None else gate.reshape(-1), up.reshape(-1), out.reshape(-1)

        def function(lo: int, hi: int) -> None:
            # Of no gate any part is none, too.
            parts = first[lo:hi], second[lo:hi]
            if activation in _KERNELS:
                kernel, constants = _KERNELS[activation]()
                self.calls.call(kernel, *parts, *constants, result[lo:hi])
            else:
                self.calls.between(_OTHERS[activation], parts[1], result[lo:hi])

        if activation not in ACTIVATIONS:
            raise ArchitectureError(f"the activation {activation} is not known")
        self.calls.ranges(function, up.size, up.size * 4, self.threads)
        return out

    def choose(self, scores: Any, choice: Choice) -> tuple[Any, Any]:
        chosen = self.calls.empty(len(scores), choice.used, dtype=np.int64)
        weights = self.calls.empty(len(scores), choice.used)
        self.calls.between(partial(_choose, choice), scores, chosen, weights)
        return chosen, weights

    def each(self, x: Any, chosen: Any, *linears: Linear) -> list[Any]:
        n, used = chosen.shape
        results = [self.calls.empty(n, used, linear.rows) for linear in linears]
        self.calls.between(partial(_each, linears), x, chosen, *results)
        return results

    def mix(self, x: Any, weights: Any) -> Any:
        out = self.calls.empty(len(x), x.shape[-1])
        self.calls.call(activations.weighted_sum, x, weights, out)
        return out

    def add(self, x: Any, y: Any) -> Any:
        flat = x.reshape(-1)
        self.calls.call(activations.add, flat, y.reshape(-1), flat)
        return x

    def scale(self, x: Any, factor: float) -> Any:
        self.calls.call(activations.scale, x.reshape(-1), np.float32(factor))
        return x

    def gated(self, x: Any, score: Any) -> Any:
        self.calls.between(_gated, x, score)
        return x

    def clamp(self, x: Any, low: float, high: float) -> Any:
        out = self.calls.empty(*x.shape)
        self.calls.between(lambda x, out: np.clip(x, np.float32(low), np.float32(high), out=out), x, out)
        return out

    def xielu(self, x: Any, alpha_n: float, alpha_p: float, beta: float, epsilon: float) -> Any:
        out = self.calls.empty(*x.shape)
        self.calls.between(partial(_xielu, (alpha_n, alpha_p, beta, epsilon)), x, out)
        return out

    def halves(self, x: Any, heads: int) -> tuple[Any, Any]:
        n, width = x.shape
        first, second = self.split(x.reshape(n, heads, -1), [width // heads // 2] * 2)
        return first.reshape(n, -1), second.reshape(n, -1)

    def split(self, x: Any, sizes: Sequence[int]) -> list[Any]:
        parts = [self.calls.empty(*x.shape[:-1], size) for size in sizes]
        self.calls.between(_split, x, *parts)
        return parts

    def concatenate(self, parts: Sequence[np.ndarray]) -> np.ndarray:
        return np.concatenate(parts)

    def joined(self, parts: Sequence[Any]) -> Any:
        out = self.calls.empty(*parts[0].shape[:-1], sum(part.shape[-1] for part in parts))
        self.calls.between(lambda out, *parts: np.concatenate(parts, axis=-1, out=out), out, *parts)
        return out

    def indices(self, n: int, count: int) -> np.ndarray:
        return np.broadcast_to(np.arange(count), (n, count))

    def copy(self, x: Any) -> Any:
        out = self.calls.empty(*x.shape)
        self.calls.between(np.copyto, out, x)
        return out

    def zeros(self, *shape: int) -> np.ndarray:
        return np.zeros(shape, np.float32)

    def scan(
        self,
        x: np.ndarray,
        b: np.ndarray,
        c: np.ndarray,
        dt: np.ndarray,
        spans: Sequence[Span],
        space: StateSpace,
    ) -> np.ndarray:
        out = np.empty_like(x)
        for span in spans:
            rows = slice(span.lo, span.hi)
            parts = (
                x[rows],
                b[rows],
                c[rows],
                dt[rows],
                space.a,
                space.d,
                span.cache.arrays[-1],
                space.groups,
                out[rows],
            )
            work = (span.hi - span.lo) * x.shape[1] * space.states * 4
            self.calls.ranged([(recurrence.scan, parts, space.heads)], work, self.threads)
        return out

    def delta(
        self,
        q: np.ndarray,
        k: np.ndarray,
        v: np.ndarray,
        decay: np.ndarray,
        beta: np.ndarray,
        spans: Sequence[Span],
    ) -> np.ndarray:
        out, factors = np.empty_like(v), np.exp(decay)
        for span in spans:
            rows = slice(span.lo, span.hi)
            parts = q[rows], k[rows], v[rows], factors[rows], beta[rows], span.cache.arrays[-1], out[rows]
            work = (span.hi - span.lo) * v.shape[1] * q.shape[2] * v.shape[2] * 4
            self.calls.ranged([(recurrence.delta, parts, v.shape[1])], work, self.threads)
        return out

    def related(self, q: np.ndarray, keys: np.ndarray, values: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
        result: np.ndarray = relative.attend(np, q, keys, values, bias)
        return result

    def exp(self, x: np.ndarray) -> np.ndarray:
        return np.exp(x)

    def wkv(
        self,
        r: np.ndarray,
        w: np.ndarray,
        k: np.ndarray,
        v: np.ndarray,
        a: np.ndarray | None,
        b: np.ndarray | None,
        bonus: np.ndarray | None,
        spans: Sequence[Span],
    ) -> np.ndarray:
        n, heads, size = v.shape
        out = np.empty((n, heads, size), np.float32)
        given = [r, w, k, v, r[:0] if a is None else a, r[:0] if b is None else b]
        given = [np.ascontiguousarray(part, np.float32) for part in given]
        bonus = _NO_BIAS if bonus is None else bonus
        for span in spans:
            rows = slice(span.lo, span.hi)
            parts = (*(part[rows] for part in given), bonus, span.cache.arrays[-1], out[rows])
            self.calls.ranged(
                [(recurrence.wkv, parts, heads)], (span.hi - span.lo) * heads * size * size * 4, self.threads
            )
        return out

    def best(self, q: np.ndarray, keys: np.ndarray, weights: np.ndarray, start: int, count: int) -> np.ndarray | None:
        return best_of(scores(np, q, keys, weights, start), count) if len(keys) > count else None

    def best_pools(
        self, q: np.ndarray, keys: np.ndarray, start: int, size: int, count: int, tokens: int
    ) -> np.ndarray | None:
        if len(keys) <= count:
            return None
        found = pool_scores(np, q, keys, start, size)
        return seen_of_pools(best_of(found, count) & np.isfinite(found), start, size, tokens)

    def best_blocks(
        self, q: np.ndarray, keys: np.ndarray, start: int, block: int, count: int, near: int
    ) -> np.ndarray | None:
        return blocks(q, keys, start, block, count, near)

    def attend(
        self,
        q: np.ndarray,
        keys: np.ndarray,
        values: np.ndarray,
        seen: np.ndarray | None,
        start: int,
        scale: float,
        sinks: np.ndarray | None = None,
    ) -> np.ndarray:
        result: np.ndarray = attend(np, q, keys, values, seen, start, scale, sinks)
        return result

    def soft_cap(self, x: Any, cap: float) -> Any:
        self.calls.call(activations.soft_cap, x.reshape(-1), np.float32(cap))
        return x

    def pick(self, x: Any, rows: np.ndarray) -> Any:
        lo = int(rows[0])
        return x[lo : lo + len(rows)] if np.array_equal(rows, np.arange(lo, lo + len(rows))) else x[rows]


def _pass(spec: AttentionSpec, cache: LayerCache, start: int, seen: int, causal: bool) -> Pass:
    return Pass(
        spec.heads,
        spec.kv_heads,
        spec.head_k,
        spec.head_v,
        cache.tokens,
        cache.key_layout,
        cache.value_layout,
        start,
        seen,
        spec.window,
        spec.chunked,
        spec.two_sided,
        causal,
        np.float32(spec.scale),
        np.float32(spec.cap),
    )


def _unit_length(least: np.float32, rows: np.ndarray, out: np.ndarray) -> None:
    length = np.sqrt(np.einsum("ij,ij->i", rows, rows))[:, None]
    np.divide(rows, np.maximum(length, least), out=out)


def _choose(choice: Choice, scores: np.ndarray, chosen: np.ndarray, weights: np.ndarray) -> None:
    chosen[...], weights[...] = choose(np, scores, choice)


def _each(linears: Sequence[Linear], x: np.ndarray, chosen: np.ndarray, *results: np.ndarray) -> None:
    n, used = chosen.shape
    rows = Activations(np.repeat(x, used // x.shape[1], axis=1).reshape(n * used, -1))
    experts = chosen.reshape(-1)
    for linear, out in zip(linears, results, strict=True):
        result = out.reshape(n * used, -1)
        linear.weight.multiply_each(rows, experts, result)
        if linear.factor is not None:
            result *= linear.factor[experts]
        if linear.bias is not None:
            result += linear.bias[experts]


def _gated(x: np.ndarray, score: np.ndarray) -> None:
    parts = x.reshape(*score.shape, -1)
    with np.errstate(over="ignore"):
        parts *= (1 / (1 + np.exp(-score)))[..., None]


def _xielu(numbers: Sequence[float], x: np.ndarray, out: np.ndarray) -> None:
    alpha_n, alpha_p, beta, epsilon = np.array(numbers, np.float32)
    below = np.expm1(np.minimum(x, epsilon)) - x
    out[...] = np.where(x > 0, x * x * alpha_p, below * alpha_n) + x * beta


def _split(x: np.ndarray, *parts: np.ndarray) -> None:
    lo = 0
    for part in parts:
        part[...] = x[..., lo : lo + part.shape[-1]]
        lo += part.shape[-1]


# Of activations that are kernels: the kernel, and what it takes before the output.
_KERNELS: dict[str, Callable[[], tuple[Any, tuple[Any, ...]]]] = {
    "silu": lambda: (activations.silu, ()),
    "swiglu_oai": lambda: (activations.swiglu_oai, ()),
    "gelu": lambda: (activations.gelu, (activations.gelu_table(),)),
    "gelu_erf": lambda: (gelus.gelu_erf, ()),
    "gelu_quick": lambda: (activations.gelu, (gelus.gelu_quick_table(),)),
    "relu": lambda: (activations.relu, (False,)),
    "relu_squared": lambda: (activations.relu, (True,)),
}

_OTHERS: dict[str, Callable[[np.ndarray, np.ndarray], object]] = {
    "tanh": lambda up, out: np.tanh(up, out=out),
    "sigmoid": lambda up, out: np.copyto(out, 1 / (1 + np.exp(-up))),
    "softplus": lambda up, out: np.copyto(out, np.log1p(np.exp(-np.abs(up))) + np.maximum(up, 0)),
}

ACTIVATIONS = frozenset((*_KERNELS, *_OTHERS))
