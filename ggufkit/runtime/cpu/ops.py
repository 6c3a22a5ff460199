"""The operations of `runtime.ops` on NumPy arrays, in Numba kernels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from ggufkit.errors import ArchitectureError
from ggufkit.kernels.threads import for_ranges, thread_count
from ggufkit.runtime.cpu import activations, norms
from ggufkit.runtime.cpu.attention import ROWS, Pass
from ggufkit.runtime.cpu.cache import LayerCache
from ggufkit.runtime.cpu.products import rounded
from ggufkit.runtime.cpu.weight import Activations, Weight, multiply_all
from ggufkit.runtime.ops import AttentionSpec, CacheSpec, Experts, Linear, Norm, Span
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
        self, q: np.ndarray, k: np.ndarray, v: np.ndarray, spans: Sequence[Span], spec: AttentionSpec
    ) -> np.ndarray:
        out = np.empty((len(q), spec.heads * spec.head_v), np.float32)
        sinks = _NONE if spec.sinks is None else spec.sinks
        calls: list[Callable[[int, int], None]] = []
        ends, work = [0], 0  # of each span's items among all
        for span in spans:
            cache, rows = span.cache, slice(span.lo, span.hi)
            n, seen = span.hi - span.lo, span.start + span.hi - span.lo
            cache.write(k[rows], v[rows], span.start)
            cache.turn_queries(q[rows])
            calls.append(partial(_attend, q[rows], cache, sinks, _pass(spec, cache, span.start, seen), out[rows]))
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
        return choose(scores, experts)

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
        x *= 1 / (1 + np.exp(-score))
        return x

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
        spec.causal,
        np.float32(spec.scale),
        np.float32(spec.cap),
    )


def _attend(q: np.ndarray, cache: LayerCache, sinks: np.ndarray, call: Pass, out: np.ndarray, lo: int, hi: int) -> None:
    cache.attend(q, cache.keys, cache.values, sinks, call, out, lo, hi)


def _gelu(gate: np.ndarray, up: np.ndarray, out: np.ndarray) -> None:
    activations.gelu(gate, up, activations.gelu_table(), out)


_ACTIVATIONS: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray], None]] = {
    "silu": activations.silu,
    "swiglu_oai": activations.swiglu_oai,
    "gelu": _gelu,
    "relu": lambda gate, up, out: activations.relu(gate, up, False, out),
    "relu_squared": lambda gate, up, out: activations.relu(gate, up, True, out),
}


def choose(scores: np.ndarray, experts: Experts) -> tuple[np.ndarray, np.ndarray]:
    """The experts of each token, best first, and their weights: (n, used) each; of equals the first wins."""
    chosen = np.argsort(-scores, axis=1, kind="stable")[:, : experts.used]
    if experts.softmax_first:
        weights = np.take_along_axis(_softmax(scores), chosen, axis=1)
        if experts.normalized:
            weights /= np.maximum(weights.sum(axis=1, keepdims=True), np.float32(6.103515625e-5))
    else:
        weights = _softmax(np.take_along_axis(scores, chosen, axis=1))
    return chosen, weights * np.float32(experts.scale)


def _softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)
