"""The operations of `runtime.ops` on NumPy arrays, in Numba kernels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate
from typing import Any

import numpy as np

from ggufkit.errors import ArchitectureError
from ggufkit.kernels.heap import keep_arrays
from ggufkit.kernels.threads import thread_count
from ggufkit.runtime import relative
from ggufkit.runtime.chosen import attend, blocks, pool_scores, scores, seen_of_pools
from ggufkit.runtime.cpu import activations, arithmetic, choosing, functions, gelus, norms, recurrence
from ggufkit.runtime.cpu.attention import ROWS, Pass
from ggufkit.runtime.cpu.cache import LayerCache
from ggufkit.runtime.cpu.calls import NOW, Calls
from ggufkit.runtime.cpu.products import rounded
from ggufkit.runtime.cpu.weight import Activations, Weight, multiply_all, multiply_chosen
from ggufkit.runtime.ops import (
    AttentionSpec,
    CacheSpec,
    Choice,
    Linear,
    Norm,
    NotRecorded,
    Recorder,
    Span,
    StateSpace,
)
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

    def recorder(self, caches: Sequence[Sequence[Any]], beside: Recorder | None = None) -> Recorder:
        from ggufkit.runtime.cpu.recorder import CpuRecorder

        return CpuRecorder(self, caches, beside)

    def weight(self, tensor: Tensor) -> Weight:
        fits = self.as_ggml and tensor.shape[-1] % rounded.COLUMNS == 0
        return Weight(tensor, self.threads, rounded.PRODUCTS.get(tensor.format.name) if fits else None)

    def vector(self, values: np.ndarray) -> np.ndarray:
        if self.calls is not NOW:
            raise NotRecorded("numbers that are known only now")
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
                self.calls.call(norms.unit_length, rows, epsilon, out)
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
        if activation not in ACTIVATIONS:
            raise ArchitectureError(f"the activation {activation} is not known")
        if activation in _PLAIN:
            return self._of_each(_PLAIN[activation], up)
        out = self.calls.empty(*up.shape)
        first, second, result = _NONE if gate is None else gate.reshape(-1), up.reshape(-1), out.reshape(-1)
        kernel, constants = _KERNELS[activation]()

        def function(lo: int, hi: int) -> None:
            # Of no gate any part is none, too.
            self.calls.call(kernel, first[lo:hi], second[lo:hi], *constants, result[lo:hi])

        self.calls.ranges(function, up.size, up.size * 4, self.threads)
        return out

    def choose(self, scores: Any, choice: Choice) -> tuple[Any, Any]:
        chosen = self.calls.empty(len(scores), choice.used, dtype=np.int64)
        weights = self.calls.empty(len(scores), choice.used)
        rooms = [self.calls.empty(2, scores.shape[1]), self.calls.empty(2, choice.groups)]
        bias = _NONE if choice.bias is None else choice.bias
        how = choosing.SCORES.index(choice.scores), choice.normalized, np.float32(choice.scale)
        groups = choice.groups, choice.groups_used, choice.stands_for
        self.calls.call(choosing.choose, self.calls.frozen(scores), bias, *how, *groups, *rooms, chosen, weights)
        return chosen, weights

    def each(self, x: Any, chosen: Any, *linears: Linear) -> list[Any]:
        if self.calls is not NOW and (len(x) == 1 or isinstance(chosen, np.ndarray)):  # of `indices`
            return self._each_row(x, chosen, linears)
        results = [self.calls.empty(*chosen.shape, linear.rows) for linear in linears]
        self.calls.between(partial(_each, linears), x, chosen, *results)
        return results

    def _each_row(self, x: Any, chosen: Any, linears: Sequence[Linear]) -> list[Any]:
        results = multiply_chosen([linear.weight for linear in linears], x, chosen, self.calls)
        experts = np.ascontiguousarray(chosen) if isinstance(chosen, np.ndarray) else chosen
        for result, linear in zip(results, linears, strict=True):
            rows = result.reshape(-1, linear.rows)
            if linear.factor is not None:
                self.calls.call(choosing.scale_rows, rows, linear.factor, experts.reshape(-1))
            if linear.bias is not None:
                self.calls.call(choosing.add_rows, rows, linear.bias, experts.reshape(-1))
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
        parts = x.reshape(*score.shape, -1)
        share = self.activate(None, score, "sigmoid").reshape(*score.shape, 1)
        self.calls.combine("multiply", parts, share, parts)
        return x

    def clamp(self, x: Any, low: float, high: float) -> Any:
        out = self.calls.empty(*x.shape)
        self.calls.call(functions.clamp, x.reshape(-1), np.float32(low), np.float32(high), out.reshape(-1))
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
        for part, start in zip(parts, accumulate(sizes, initial=0), strict=False):
            self._copy_columns(x, start, part, 0, part.shape[-1])
        return parts

    def _copy_columns(self, x: Any, start: int, out: Any, out_start: int, columns: int) -> None:
        widths = x.shape[-1], out.shape[-1]
        arguments = x.reshape(-1), widths[0], start, out.reshape(-1), widths[1], out_start, columns
        self.calls.call(arithmetic.copy_columns, *arguments)

    def concatenate(self, parts: Sequence[np.ndarray]) -> np.ndarray:
        return np.concatenate(parts)

    def joined(self, parts: Sequence[Any]) -> Any:
        out = self.calls.empty(*parts[0].shape[:-1], sum(part.shape[-1] for part in parts))
        for part, start in zip(parts, accumulate(part.shape[-1] for part in parts), strict=True):
            self._copy_columns(part, 0, out, start - part.shape[-1], part.shape[-1])
        return out

    def indices(self, n: int, count: int) -> np.ndarray:
        return np.broadcast_to(np.arange(count), (n, count))

    def copy(self, x: Any) -> Any:
        out = self.calls.empty(*x.shape)
        self._copy_columns(x, 0, out, 0, x.shape[-1])
        return out

    def zeros(self, *shape: int) -> np.ndarray:
        return np.zeros(shape, np.float32)

    def replaced(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        x[...] = y
        return x

    def convolve(
        self, x: Any, weights: np.ndarray, bias: np.ndarray | None, spans: Sequence[Span], apart: int = 1
    ) -> Any:
        out = self.calls.empty(*x.shape)
        shift = _NONE if bias is None else bias
        parts = []
        for span in spans:
            rows = slice(span.lo, span.hi)
            arguments = x[rows], weights, shift, span.cache.arrays[0], apart, out[rows]
            parts.append((recurrence.convolve, arguments, x.shape[1]))
        self.calls.ranged(parts, x.size * len(weights), self.threads)
        return out

    def shifted(self, x: Any, spans: Sequence[Span]) -> Any:
        out = self.calls.empty(*x.shape)
        for span in spans:
            rows = slice(span.lo, span.hi)
            self.calls.call(recurrence.shift, x[rows], span.cache.arrays[0], out[rows])
        return out

    def scan(self, x: Any, b: Any, c: Any, dt: Any, spans: Sequence[Span], space: StateSpace) -> Any:
        out = self.calls.empty(*x.shape)
        parts = []
        for span in spans:
            rows = slice(span.lo, span.hi)
            state = span.cache.arrays[-1]
            arguments = x[rows], b[rows], c[rows], dt[rows], space.a, space.d, state, space.groups, out[rows]
            parts.append((recurrence.scan, arguments, space.heads))
        self.calls.ranged(parts, x.size * space.states * 4, self.threads)
        return out

    def delta(self, q: Any, k: Any, v: Any, decay: Any, beta: Any, spans: Sequence[Span]) -> Any:
        out, factors = self.calls.empty(*v.shape), self.exp(decay)
        parts = []
        for span in spans:
            rows = slice(span.lo, span.hi)
            arguments = q[rows], k[rows], v[rows], factors[rows], beta[rows], span.cache.arrays[-1], out[rows]
            parts.append((recurrence.delta, arguments, v.shape[1]))
        self.calls.ranged(parts, q.size * v.shape[2] * 4, self.threads)
        return out

    def related(self, q: np.ndarray, keys: np.ndarray, values: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
        result: np.ndarray = relative.attend(np, q, keys, values, bias)
        return result

    def exp(self, x: Any) -> Any:
        return self._of_each(functions.exp, x)

    def _of_each(self, kernel: Any, x: Any) -> Any:
        """A function of each number."""
        out = self.calls.empty(*x.shape)
        flat, result = x.reshape(-1), out.reshape(-1)

        def function(lo: int, hi: int) -> None:
            self.calls.call(kernel, flat[lo:hi], result[lo:hi])

        self.calls.ranges(function, x.size, x.size * 4, self.threads)
        return out

    def inner(self, x: Any, y: Any) -> Any:
        out = self.calls.empty(*x.shape[:-1], 1)
        self.calls.call(arithmetic.inner, x.reshape(-1), y.reshape(-1), x.shape[-1], out.reshape(-1))
        return out

    def wkv(
        self, r: Any, w: Any, k: Any, v: Any, a: Any | None, b: Any | None, bonus: Any | None, spans: Sequence[Span]
    ) -> Any:
        n, heads, size = v.shape
        out = self.calls.empty(n, heads, size)
        given = [self.calls.frozen(part) for part in (r, w, k, v, r[:0] if a is None else a, r[:0] if b is None else b)]
        bonus = _NO_BIAS if bonus is None else bonus
        parts = []
        for span in spans:
            rows = slice(span.lo, span.hi)
            arguments = (*(part[rows] for part in given), bonus, span.cache.arrays[-1], out[rows])
            parts.append((recurrence.wkv, arguments, heads))
        self.calls.ranged(parts, n * heads * size * size * 4, self.threads)
        return out

    def best(self, q: np.ndarray, keys: np.ndarray, weights: np.ndarray, start: int, count: int) -> np.ndarray | None:
        return choosing.best_of(scores(np, q, keys, weights, start), count) if len(keys) > count else None

    def best_pools(
        self, q: np.ndarray, keys: np.ndarray, start: int, size: int, count: int, tokens: int
    ) -> np.ndarray | None:
        if len(keys) <= count:
            return None
        found = pool_scores(np, q, keys, start, size)
        return seen_of_pools(choosing.best_of(found, count) & np.isfinite(found), start, size, tokens)

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


def _xielu(numbers: Sequence[float], x: np.ndarray, out: np.ndarray) -> None:
    alpha_n, alpha_p, beta, epsilon = np.array(numbers, np.float32)
    below = np.expm1(np.minimum(x, epsilon)) - x
    out[...] = np.where(x > 0, x * x * alpha_p, below * alpha_n) + x * beta


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

# Of those that no gate multiplies.
_PLAIN: dict[str, Any] = {
    "tanh": functions.tanh,
    "sigmoid": functions.sigmoid,
    "softplus": functions.softplus,
}

ACTIVATIONS = frozenset((*_KERNELS, *_PLAIN))
