"""The operations of `runtime.ops` on NumPy arrays, in Numba kernels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from ggufkit.errors import ArchitectureError
from ggufkit.kernels.threads import for_ranges, thread_count
from ggufkit.runtime.cpu import activations, norms, recurrence
from ggufkit.runtime.cpu.attention import ROWS, Pass
from ggufkit.runtime.cpu.cache import LayerCache
from ggufkit.runtime.cpu.products import rounded
from ggufkit.runtime.cpu.weight import Activations, Weight, multiply_all
from ggufkit.runtime.ops import AttentionSpec, CacheSpec, Experts, Linear, Norm, Span, StateSpace
from ggufkit.runtime.router import choose
from ggufkit.tensors.tensor import Tensor

__all__ = ["CpuOps"]

# Multiplications below which a second thread costs more than it saves.
_WORTH_A_THREAD = 1 << 18

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

    def weight(self, tensor: Tensor) -> Weight:
        fits = self.as_ggml and tensor.shape[-1] % rounded.COLUMNS == 0
        return Weight(tensor, self.threads, rounded.PRODUCTS.get(tensor.format.name) if fits else None)

    def vector(self, values: np.ndarray) -> np.ndarray:
        return _frozen(values)

    def numpy(self, x: np.ndarray) -> np.ndarray:
        return x

    def layer_cache(self, spec: AttentionSpec, types: CacheSpec, length: int) -> LayerCache:
        return LayerCache(spec, types, length)

    def embed(self, weight: Weight, ids: np.ndarray) -> np.ndarray:
        return weight.rows(ids)

    def linear(self, x: np.ndarray, *linears: Linear) -> list[np.ndarray]:
        results = multiply_all([linear.weight for linear in linears], x)
        for result, linear in zip(results, linears, strict=True):
            if linear.factor is not None:
                np.multiply(result, linear.factor, out=result)
            if linear.bias is not None:
                activations.add(result.reshape(-1), linear.bias, result.reshape(-1))
        return results

    def norm(self, x: np.ndarray, norm: Norm) -> np.ndarray:
        result = np.empty(x.shape, np.float32)
        epsilon = np.float32(norm.epsilon)
        bias = _NO_BIAS if norm.bias is None else norm.bias

        def function(lo: int, hi: int) -> None:
            rows, out = x[lo:hi].reshape(-1, norm.size), result[lo:hi].reshape(-1, norm.size)
            if norm.kind == "rms":
                norms.rms_norm(rows, norm.weight, epsilon, out)
                if norm.bias is not None:
                    out += norm.bias
            elif norm.kind == "l2":
                length = np.sqrt(np.einsum("ij,ij->i", rows, rows))[:, None]
                np.divide(rows, np.maximum(length, epsilon), out=out)
            else:
                norms.layer_norm(rows, norm.weight, bias, epsilon, out)

        self._ranges(function, len(x), x.size)
        return result

    def rope(self, x: np.ndarray, heads: int, style: str, table: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        cos, sin = table
        function = norms.rope_neox if style == "neox" else norms.rope_norm
        self._ranges(lambda lo, hi: function(x[lo:hi], heads, cos[lo:hi], sin[lo:hi]), len(x), x.size)
        return x

    def attention(
        self, q: np.ndarray, k: np.ndarray | None, v: np.ndarray | None, spans: Sequence[Span], spec: AttentionSpec
    ) -> np.ndarray:
        out = np.empty((len(q), spec.heads * spec.head_v), np.float32)
        sinks, slopes = (_NONE if x is None else x for x in (spec.sinks, spec.slopes))
        calls: list[Callable[[int, int], None]] = []
        ends, work = [0], 0  # of each span's items among all
        for span in spans:
            cache, rows = span.cache, slice(span.lo, span.hi)
            n, seen = span.hi - span.lo, span.start + span.hi - span.lo
            if k is not None and v is not None:
                cache.write(k[rows], v[rows], span.start)
            cache.turn_queries(q[rows])
            calls.append(
                partial(_attend, q[rows], cache, sinks, slopes, _pass(spec, cache, span.start, seen), out[rows])
            )
            ends.append(ends[-1] + spec.kv_heads * -(-(n * spec.heads // spec.kv_heads) // ROWS))
            work += n * spec.heads * seen * (spec.head_k + spec.head_v)

        def function(lo: int, hi: int) -> None:
            for first, last, call in zip(ends, ends[1:], calls, strict=False):
                if lo < last and first < hi:
                    call(max(lo, first) - first, min(hi, last) - first)

        self._ranges(function, ends[-1], work)
        for span in spans:
            span.cache.value_turn.back(out[span.lo : span.hi])
        return out

    def activate(self, gate: np.ndarray | None, up: np.ndarray, activation: str) -> np.ndarray:
        out = np.empty_like(up)
        first, second, result = _NONE if gate is None else gate.reshape(-1), up.reshape(-1), out.reshape(-1)
        function = _ACTIVATIONS.get(activation)
        if function is None:
            raise ArchitectureError(f"the activation {activation} is not known")
        # Of no gate any part is none, too.
        self._ranges(lambda lo, hi: function(first[lo:hi], second[lo:hi], result[lo:hi]), up.size, up.size * 4)
        return out

    def choose(self, scores: np.ndarray, experts: Experts) -> tuple[np.ndarray, np.ndarray]:
        return choose(np, scores, experts)

    def each(self, x: np.ndarray, chosen: np.ndarray, *linears: Linear) -> list[np.ndarray]:
        n, used = chosen.shape
        rows = Activations(np.repeat(x, used // x.shape[1], axis=1).reshape(n * used, -1))
        experts = chosen.reshape(-1)
        results = []
        for linear in linears:
            result = linear.weight.multiply_each(rows, experts)
            if linear.factor is not None:
                result *= linear.factor[experts]
            if linear.bias is not None:
                result += linear.bias[experts]
            results.append(result.reshape(n, used, -1))
        return results

    def mix(self, x: np.ndarray, weights: np.ndarray) -> np.ndarray:
        return activations.weighted_sum(x, weights, np.empty((len(x), x.shape[-1]), np.float32))

    def add(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        activations.add(x.reshape(-1), y.reshape(-1), x.reshape(-1))
        return x

    def scale(self, x: np.ndarray, factor: float) -> np.ndarray:
        activations.scale(x.reshape(-1), np.float32(factor))
        return x

    def gated(self, x: np.ndarray, score: np.ndarray) -> np.ndarray:
        parts = x.reshape(*score.shape, -1)
        with np.errstate(over="ignore"):
            parts *= (1 / (1 + np.exp(-score)))[..., None]
        return x

    def clamp(self, x: np.ndarray, low: float, high: float) -> np.ndarray:
        return np.clip(x, np.float32(low), np.float32(high))

    def xielu(self, x: np.ndarray, alpha_n: float, alpha_p: float, beta: float, epsilon: float) -> np.ndarray:
        below = np.expm1(np.minimum(x, np.float32(epsilon))) - x
        return np.where(x > 0, x * x * np.float32(alpha_p), below * np.float32(alpha_n)) + x * np.float32(beta)

    def halves(self, x: np.ndarray, heads: int) -> tuple[np.ndarray, np.ndarray]:
        n = len(x)
        parts = x.reshape(n, heads, 2, -1)
        return parts[:, :, 0].reshape(n, -1), parts[:, :, 1].reshape(n, -1)

    def split(self, x: np.ndarray, sizes: Sequence[int]) -> list[np.ndarray]:
        return [np.ascontiguousarray(part) for part in np.split(x, np.cumsum(sizes)[:-1], axis=-1)]

    def concatenate(self, parts: Sequence[np.ndarray]) -> np.ndarray:
        return np.concatenate(parts)

    def joined(self, parts: Sequence[np.ndarray]) -> np.ndarray:
        return np.concatenate(parts, axis=-1)

    def indices(self, n: int, count: int) -> np.ndarray:
        return np.broadcast_to(np.arange(count), (n, count))

    def copy(self, x: np.ndarray) -> np.ndarray:
        return x.copy()

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
            self._ranges(partial(recurrence.scan, *parts), space.heads, work)
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
            self._ranges(partial(recurrence.delta, *parts), v.shape[1], work)
        return out

    def soft_cap(self, x: np.ndarray, cap: float) -> np.ndarray:
        activations.soft_cap(x.reshape(-1), np.float32(cap))
        return x

    def pick(self, x: np.ndarray, rows: np.ndarray) -> np.ndarray:
        return x[rows]

    def _ranges(self, function: Callable[[int, int], None], items: int, work: int) -> None:
        """`function` over items, in as many threads as the work is worth."""
        threads = min(self.threads, max(1, work // _WORTH_A_THREAD))
        if threads == 1:
            function(0, items)
        else:
            # Several ranges a thread: later rows of a prompt see more tokens than earlier ones.
            for_ranges(function, items, -(-items // (4 * threads)), threads)


def _pass(spec: AttentionSpec, cache: LayerCache, start: int, seen: int) -> Pass:
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
        spec.causal,
        np.float32(spec.scale),
        np.float32(spec.cap),
    )


def _attend(
    q: np.ndarray,
    cache: LayerCache,
    sinks: np.ndarray,
    slopes: np.ndarray,
    call: Pass,
    out: np.ndarray,
    lo: int,
    hi: int,
) -> None:
    cache.attend(q, cache.keys, cache.values, sinks, slopes, call, out, lo, hi)


def _gelu(gate: np.ndarray, up: np.ndarray, out: np.ndarray) -> None:
    activations.gelu(gate, up, activations.gelu_table(), out)


_ACTIVATIONS: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray], None]] = {
    "silu": activations.silu,
    "swiglu_oai": activations.swiglu_oai,
    "gelu": _gelu,
    "tanh": lambda gate, up, out: np.tanh(up, out=out),
    "sigmoid": lambda gate, up, out: np.copyto(out, 1 / (1 + np.exp(-up))),
    "softplus": lambda gate, up, out: np.copyto(out, np.log1p(np.exp(-np.abs(up))) + np.maximum(up, 0)),
    "relu": lambda gate, up, out: activations.relu(gate, up, False, out),
    "relu_squared": lambda gate, up, out: activations.relu(gate, up, True, out),
}
