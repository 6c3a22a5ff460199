"""The operations of `runtime.ops` in MLX: lazily evaluated, on the GPU where there is one.

Activations are float32. Attention reads a float16 cache with float16 queries, as llama.cpp does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import mlx.core as mx
import numpy as np

from ggufkit.errors import ArchitectureError
from ggufkit.runtime import before, relative
from ggufkit.runtime.chosen import attend, blocks, pool_scores, scores, seen_of_pools
from ggufkit.runtime.cpu.choosing import best_of
from ggufkit.runtime.mlx import recurrence
from ggufkit.runtime.mlx.cache import LayerCache, Stored
from ggufkit.runtime.mlx.levels import numbers, rounded_queries, turned, turned_back
from ggufkit.runtime.mlx.weight import Weight, load_weight
from ggufkit.runtime.ops import AttentionSpec, CacheSpec, Choice, Linear, Norm, Span, StateSpace
from ggufkit.runtime.router import choose
from ggufkit.tensors.tensor import Tensor

__all__ = ["MlxOps"]


class MlxOps:
    """Implements `Ops`; an array is an `mx.array` of shape (n, width), float32."""

    def __init__(self) -> None:
        self._table: object = None
        self._halves = False
        self._angles = (mx.zeros(0), mx.zeros(0))
        self._routers: dict[int, tuple[Choice, Callable[[mx.array], tuple[mx.array, mx.array]]]] = {}

    def recorder(self, caches: Sequence[Sequence[Any]], beside: Any = None) -> None:
        """None: MLX itself writes down what is to be computed."""
        return None

    def weight(self, tensor: Tensor) -> Weight:
        return load_weight(tensor)

    def vector(self, values: np.ndarray) -> mx.array:
        return mx.array(np.asarray(values, np.float32))

    def numpy(self, x: mx.array) -> np.ndarray:
        return np.array(x)

    def layer_cache(self, spec: AttentionSpec, types: CacheSpec, length: int) -> LayerCache:
        return LayerCache(spec, types)

    def embed(self, weight: Weight, ids: np.ndarray) -> mx.array:
        return weight.rows(mx.array(ids))

    def linear(self, x: mx.array, *linears: Linear) -> Sequence[mx.array]:
        products = (_times(linear.weight.multiply(x), linear.factor) for linear in linears)
        return [y if linear.bias is None else y + linear.bias for y, linear in zip(products, linears, strict=True)]

    def norm(self, x: mx.array, norm: Norm) -> mx.array:
        parts = x.reshape(len(x), -1, norm.size)  # (n, heads or 1, size)
        one = norm.weight.shape[0] == 1
        weight = norm.weight.reshape(-1) if one else None
        if norm.kind == "l2":
            # x / |x| is what the mean square makes of it, over √size; a kernel of its own.
            scale = _same(norm.size, norm.size**-0.5)
            return mx.fast.rms_norm(parts, scale, norm.epsilon**2 / norm.size).reshape(x.shape)
        if norm.kind == "rms":
            result = mx.fast.rms_norm(parts, weight, norm.epsilon)
            if one and norm.bias is not None:
                result = result + norm.bias.reshape(-1)
        else:
            bias = norm.bias.reshape(-1) if one and norm.bias is not None else None
            result = mx.fast.layer_norm(parts, weight, bias, norm.epsilon)
        if not one:  # weights of its own for each head
            result = result * norm.weight if norm.bias is None else result * norm.weight + norm.bias
        return result.reshape(x.shape)

    def rope(self, x: mx.array, heads: int, style: str, table: tuple[np.ndarray, np.ndarray]) -> mx.array:
        halves = style == "neox"
        if table is not self._table or halves is not self._halves:  # the layers of a pass share it
            self._table, self._halves = table, halves
            self._angles = _angles(mx.array(table[0]), mx.array(table[1]), halves)
        return _rope(x.reshape(len(x), heads, -1), *self._angles, halves).reshape(x.shape)

    def attention(self, q: mx.array, k: mx.array, v: mx.array, spans: Sequence[Span], spec: AttentionSpec) -> mx.array:
        if len(spans) == 1:
            return _attention(q, k, v, spans[0], spec)
        parts = [_attention(q[s.lo : s.hi], k[s.lo : s.hi], v[s.lo : s.hi], s, spec) for s in spans]
        return mx.concatenate(parts)

    def activate(self, gate: mx.array | None, up: mx.array, activation: str) -> mx.array:
        function = _ACTIVATIONS.get(activation)
        if function is None:
            raise ArchitectureError(f"the activation {activation} is not known")
        if gate is None:
            return function(up)
        return function(gate, up) if activation == "swiglu_oai" else _gating(activation)(gate, up)

    def choose(self, scores: mx.array, choice: Choice) -> tuple[mx.array, mx.array]:
        if id(choice) not in self._routers:
            self._routers[id(choice)] = choice, mx.compile(partial(choose, mx, choice=choice))
        _, router = self._routers[id(choice)]
        chosen, weights = router(scores)
        return chosen, weights

    def each(self, x: mx.array, chosen: mx.array, *linears: Linear) -> Sequence[mx.array]:
        results = [
            _times(linear.weight.multiply_chosen(x, chosen), None if linear.factor is None else linear.factor[chosen])
            for linear in linears
        ]
        return [
            y if linear.bias is None else y + linear.bias[chosen] for y, linear in zip(results, linears, strict=True)
        ]

    def mix(self, x: mx.array, weights: mx.array) -> mx.array:
        return mx.sum(x * weights[..., None], axis=1)

    def add(self, x: mx.array, y: mx.array) -> mx.array:
        return x + y

    def scale(self, x: mx.array, factor: float) -> mx.array:
        return x * factor

    def gated(self, x: mx.array, score: mx.array) -> mx.array:
        return (x.reshape(*score.shape, -1) * mx.sigmoid(score)[..., None]).reshape(x.shape)

    def clamp(self, x: mx.array, low: float, high: float) -> mx.array:
        return mx.clip(x, low, high)

    def xielu(self, x: mx.array, alpha_n: float, alpha_p: float, beta: float, epsilon: float) -> mx.array:
        below = mx.expm1(mx.minimum(x, epsilon)) - x
        return mx.where(x > 0, x * x * alpha_p, below * alpha_n) + x * beta

    def halves(self, x: mx.array, heads: int) -> tuple[mx.array, mx.array]:
        parts = x.reshape(len(x), heads, 2, -1)
        return parts[:, :, 0].reshape(len(x), -1), parts[:, :, 1].reshape(len(x), -1)

    def split(self, x: mx.array, sizes: Sequence[int]) -> list[mx.array]:
        parts: list[mx.array] = list(mx.split(x, np.cumsum(sizes)[:-1].tolist(), axis=-1))
        return parts

    def concatenate(self, parts: Sequence[mx.array]) -> mx.array:
        return mx.concatenate(list(parts))

    def joined(self, parts: Sequence[mx.array]) -> mx.array:
        return mx.concatenate(list(parts), axis=-1)

    def indices(self, n: int, count: int) -> mx.array:
        return mx.broadcast_to(mx.arange(count), (n, count))

    def copy(self, x: mx.array) -> mx.array:
        return x  # nothing changes an array

    def zeros(self, *shape: int) -> mx.array:
        return mx.zeros(shape)

    def replaced(self, x: mx.array, y: mx.array) -> mx.array:
        return y  # nothing changes an array

    def convolve(
        self, x: mx.array, weights: mx.array, bias: mx.array | None, spans: Sequence[Span], apart: int = 1
    ) -> mx.array:
        parts = []
        for span in spans:
            n, arrays = span.hi - span.lo, span.cache.arrays
            seen = mx.concatenate([arrays[0], x[span.lo : span.hi]])
            arrays[0] = mx.contiguous(seen[n:])  # or all that was seen would be kept
            if n == 1 and apart == 1:
                y = mx.sum(seen * weights, axis=0, keepdims=True)
            else:
                taps = weights.T[..., None]  # (channels, taps, 1)
                y = mx.conv1d(seen[None], taps, dilation=apart, groups=len(taps))[0]
            parts.append(y if bias is None else y + bias)
        return _joined(parts)

    def shifted(self, x: mx.array, spans: Sequence[Span]) -> mx.array:
        return before.shifted(self, x, spans)

    def scan(
        self, x: mx.array, b: mx.array, c: mx.array, dt: mx.array, spans: Sequence[Span], space: StateSpace
    ) -> mx.array:
        found = []
        for span in spans:
            rows, arrays = slice(span.lo, span.hi), span.cache.arrays
            y, arrays[-1] = recurrence.scan(x[rows], b[rows], c[rows], dt[rows], space, arrays[-1])
            found.append(y)
        return _joined(found)

    def delta(
        self, q: mx.array, k: mx.array, v: mx.array, decay: mx.array, beta: mx.array, spans: Sequence[Span]
    ) -> mx.array:
        found = []
        for span in spans:
            rows, arrays = slice(span.lo, span.hi), span.cache.arrays
            y, arrays[-1] = recurrence.delta(q[rows], k[rows], v[rows], decay[rows], beta[rows], arrays[-1])
            found.append(y)
        return _joined(found)

    def related(self, q: mx.array, keys: mx.array, values: mx.array, bias: mx.array | None) -> mx.array:
        result: mx.array = relative.attend(mx, q, keys, values, bias)
        return result

    def exp(self, x: mx.array) -> mx.array:
        return mx.exp(x)

    def inner(self, x: mx.array, y: mx.array) -> mx.array:
        return mx.sum(x * y, axis=-1, keepdims=True)

    def wkv(
        self,
        r: mx.array,
        w: mx.array,
        k: mx.array,
        v: mx.array,
        a: mx.array | None,
        b: mx.array | None,
        bonus: mx.array | None,
        spans: Sequence[Span],
    ) -> mx.array:
        found = []
        for span in spans:
            rows, arrays = slice(span.lo, span.hi), span.cache.arrays
            a_, b_ = (None if part is None else part[rows] for part in (a, b))
            y, arrays[-1] = recurrence.wkv(r[rows], w[rows], k[rows], v[rows], a_, b_, bonus, arrays[-1])
            found.append(y)
        return _joined(found)

    def best(self, q: mx.array, keys: mx.array, weights: mx.array, start: int, count: int) -> mx.array | None:
        if len(keys) <= count:
            return None
        # Equal scores are many, and MLX does not say which it would choose.
        return mx.array(best_of(np.array(scores(mx, q, keys, weights, start)), count))

    def best_pools(
        self, q: mx.array, keys: mx.array, start: int, size: int, count: int, tokens: int
    ) -> mx.array | None:
        if len(keys) <= count:
            return None
        found = np.array(pool_scores(mx, q, keys, start, size))
        return mx.array(seen_of_pools(best_of(found, count) & np.isfinite(found), start, size, tokens))

    def best_blocks(
        self, q: mx.array, keys: mx.array, start: int, block: int, count: int, near: int
    ) -> mx.array | None:
        seen = blocks(np.array(q), np.array(keys), start, block, count, near)
        return None if seen is None else mx.array(seen)

    def attend(
        self,
        q: mx.array,
        keys: mx.array,
        values: mx.array,
        seen: mx.array | None,
        start: int,
        scale: float,
        sinks: mx.array | None = None,
    ) -> mx.array:
        result: mx.array = attend(mx, q, keys, values, seen, start, scale, sinks)
        return result

    def soft_cap(self, x: mx.array, cap: float) -> mx.array:
        return mx.tanh(x / cap) * cap

    def pick(self, x: mx.array, rows: np.ndarray) -> mx.array:
        return x[mx.array(rows)]


def _joined(parts: list[mx.array]) -> mx.array:
    """Rows one after the other."""
    return parts[0] if len(parts) == 1 else mx.concatenate(parts)


@cache
def _same(size: int, value: float) -> mx.array:
    """So many times the same number."""
    return mx.full(size, value)


# -- rotary positions -------------------------------------------------------------------------------------


@partial(mx.compile, shapeless=False)
def _times(x: mx.array, factor: mx.array | None) -> mx.array:
    return x if factor is None else x * factor


def _angles(cos: mx.array, sin: mx.array, halves: bool) -> tuple[mx.array, mx.array]:
    """Cosine and sine (n, pairs) for each number that is turned, (n, 1, 2 · pairs); the first of a pair has −sin."""
    if halves:
        return mx.concatenate([cos, cos], axis=-1)[:, None], mx.concatenate([-sin, sin], axis=-1)[:, None]
    shape = (len(cos), 1, -1)
    return mx.stack([cos, cos], axis=-1).reshape(shape), mx.stack([-sin, sin], axis=-1).reshape(shape)


def _rope(x: mx.array, cos: mx.array, sin: mx.array, halves: bool) -> mx.array:
    """x (n, heads, size) turned by what `_angles` gives; what lies beyond the pairs stays."""
    size = cos.shape[-1]
    turning = x[..., :size]
    if halves:
        others = mx.concatenate([turning[..., size // 2 :], turning[..., : size // 2]], axis=-1)
    else:
        others = turning.reshape(*turning.shape[:-1], -1, 2)[..., ::-1].reshape(turning.shape)
    turned = _rotate(turning, others, cos, sin)
    return turned if size == x.shape[-1] else mx.concatenate([turned, x[..., size:]], axis=-1)


@partial(mx.compile, shapeless=True)
def _rotate(x: mx.array, others: mx.array, cos: mx.array, sin: mx.array) -> mx.array:
    return x * cos + others * sin


# -- attention --------------------------------------------------------------------------------------------


def _attention(q: mx.array, k: mx.array | None, v: mx.array | None, span: Span, spec: AttentionSpec) -> mx.array:
    """Of one conversation: q, k, v are its rows."""
    n, start, cache = len(q), span.start, span.cache
    end = start + n
    if k is not None and v is not None:
        cache.keys.write(_by_head(k, spec.kv_heads), start)
        cache.values.write(_by_head(v, spec.kv_heads), start)
        if n > 1:
            mx.async_eval(cache.keys.arrays, cache.values.arrays)
    first = _first_seen(start, spec)
    causal = spec.causal and not span.whole
    mask = None if n == 1 or not (causal or spec.window) else _mask(start, n, first, causal, spec)
    if spec.slopes is not None:
        mask = _lean(start, n, first, mask, spec.slopes)
    q = _by_head(q, spec.heads)
    q = turned(q, cache.keys.rotation)
    if cache.keys.type.rounds_queries:
        q = rounded_queries(q)
    if not (cache.keys.type.quantized or cache.values.type.quantized or spec.cap):
        found = _fast_attention(q, cache, first, end, mask, spec)
    else:
        found = _slow_attention(q, cache, first, end, mask, spec)
    found = turned_back(found, cache.values.rotation)
    return mx.swapaxes(found, 0, 1).reshape(n, -1)


def _by_head(x: mx.array, heads: int) -> mx.array:
    """(n, heads × size) → (heads, n, size)."""
    return mx.swapaxes(x.reshape(len(x), heads, -1), 0, 1)


def _mask(start: int, n: int, first: int, causal: bool, spec: AttentionSpec) -> mx.array:
    """Which of the tokens first … start + n each query sees: (n, tokens) bool."""
    queries, keys = mx.arange(start, start + n)[:, None], mx.arange(first, start + n)[None]
    seen = keys <= queries if causal else mx.ones((n, start + n - first), mx.bool_)
    if not spec.window:
        return seen
    if spec.chunked:
        return seen & (keys >= queries // spec.window * spec.window)
    if spec.two_sided:
        return seen & (mx.abs(keys - queries) <= spec.window // 2)
    return seen & (keys > queries - spec.window)


def _lean(start: int, n: int, first: int, mask: mx.array | None, slopes: mx.array) -> mx.array:
    """What is added to scores for the distance of tokens, and for those that are not seen: (heads, n, tokens)."""
    away = mx.abs(mx.arange(first, start + n)[None] - mx.arange(start, start + n)[:, None]).astype(mx.float32)
    lean = -away * slopes[:, None, None]
    return lean if mask is None else mx.where(mask, lean, -math.inf)


def _first_seen(position: int, spec: AttentionSpec) -> int:
    """Earlier tokens are seen neither from `position` nor from later ones."""
    if not spec.window:
        return 0
    if spec.chunked:
        return position // spec.window * spec.window
    return max(0, position - (spec.window // 2 if spec.two_sided else spec.window - 1))


def _fast_attention(
    q: mx.array, cache: LayerCache, first: int, end: int, mask: mx.array | None, spec: AttentionSpec
) -> mx.array:
    """q (heads, n, head_k) → (heads, n, head_v), by MLX's own kernel.

    It gives numbers of the type that it is given. bfloat16 would leave 8 bits of what is found, which costs more than
    that the keys have 8 bits; so it reads them as float32.
    """
    (keys,), (values,) = cache.keys.read(first, end), cache.values.read(first, end)
    number = mx.float32 if keys.dtype == mx.bfloat16 else keys.dtype
    sinks = None if spec.sinks is None else spec.sinks.astype(number)
    found = mx.fast.scaled_dot_product_attention(
        q[None].astype(number),
        keys[None].astype(number),
        values[None].astype(number),
        scale=spec.scale,
        mask=mask if mask is None or mask.dtype == mx.bool_ else mask.astype(number),
        sinks=sinks,
    )
    return found[0].astype(mx.float32)


def _slow_attention(
    q: mx.array, cache: LayerCache, first: int, end: int, mask: mx.array | None, spec: AttentionSpec
) -> mx.array:
    """The same step by step: for soft caps and quantized caches."""
    heads, n, _ = q.shape
    repeats = heads // spec.kv_heads
    scores = _times_stored(q.reshape(spec.kv_heads, repeats * n, -1) * spec.scale, cache.keys, first, end, True)
    scores = scores.reshape(heads, n, -1)
    if spec.cap:
        scores = mx.tanh(scores / spec.cap) * spec.cap
    if mask is not None:
        scores = scores + mask if spec.slopes is not None else mx.where(mask, scores, -math.inf)
    if spec.sinks is not None:
        sinks = mx.broadcast_to(spec.sinks[:, None, None], (heads, n, 1))
        scores = mx.softmax(mx.concatenate([scores, sinks], axis=-1), axis=-1)[..., :-1]
    else:
        scores = mx.softmax(scores, axis=-1)
    found = _times_stored(scores.reshape(spec.kv_heads, repeats * n, -1), cache.values, first, end, False)
    return found.reshape(heads, n, -1)


def _times_stored(x: mx.array, stored: Stored, first: int, end: int, transpose: bool) -> mx.array:
    """x times what is stored of each head, or its transpose."""
    arrays = stored.read(first, end)
    if stored.type.leveled or not stored.type.quantized:
        matrix = numbers(arrays, stored.type) if stored.type.leveled else arrays[0].astype(mx.float32)
        return x @ (mx.swapaxes(matrix, -1, -2) if transpose else matrix)
    codes, scales, biases = arrays
    kind = stored.type
    return mx.quantized_matmul(x, codes, scales, biases, transpose=transpose, group_size=kind.block, bits=kind.bits)


# -- activations ------------------------------------------------------------------------------------------


@partial(mx.compile, shapeless=True)
def _silu(x: mx.array) -> mx.array:
    return x * mx.sigmoid(x)


@partial(mx.compile, shapeless=True)
def _gelu(x: mx.array) -> mx.array:
    """GGML's: by way of float16, beyond ±10 x or 0."""
    h = x.astype(mx.float16).astype(mx.float32)
    inner = 0.79788456080286535587989211986876 * h * (1 + 0.044715 * h * h)
    y = (0.5 * h * (1 + mx.tanh(inner))).astype(mx.float16).astype(mx.float32)
    return mx.where(x >= 10, x, mx.where(x <= -10, mx.array(0.0), y))


@partial(mx.compile, shapeless=True)
def _gelu_quick(x: mx.array) -> mx.array:
    """GGML's, by way of float16, too."""
    h = x.astype(mx.float16).astype(mx.float32)
    y = (h * mx.sigmoid(1.702 * h)).astype(mx.float16).astype(mx.float32)
    return mx.where(x >= 10, x, mx.where(x <= -10, mx.array(0.0), y))


@partial(mx.compile, shapeless=True)
def _softplus(x: mx.array) -> mx.array:
    return mx.logaddexp(x, 0)


@partial(mx.compile, shapeless=True)
def _relu(x: mx.array) -> mx.array:
    return mx.maximum(x, 0)


@partial(mx.compile, shapeless=True)
def _relu_squared(x: mx.array) -> mx.array:
    return mx.square(mx.maximum(x, 0))


@partial(mx.compile, shapeless=True)
def _swiglu_oai(gate: mx.array, up: mx.array) -> mx.array:
    x = mx.minimum(gate, 7.0)
    return x * mx.sigmoid(1.702 * x) * (mx.clip(up, -7.0, 7.0) + 1)


_ACTIVATIONS: dict[str, Callable[..., mx.array]] = {
    "silu": _silu,
    "gelu": _gelu,
    "gelu_erf": lambda x: 0.5 * x * (1 + mx.erf(x * math.sqrt(0.5))),
    "gelu_quick": _gelu_quick,
    "tanh": mx.tanh,
    "sigmoid": mx.sigmoid,
    "softplus": _softplus,
    "relu": _relu,
    "relu_squared": _relu_squared,
    "swiglu_oai": _swiglu_oai,
}


@cache
def _gating(activation: str) -> Callable[..., mx.array]:
    """`activation` of a gate, times what it lets through, as one kernel."""
    function = _ACTIVATIONS[activation]
    return mx.compile(lambda gate, up: function(gate) * up, shapeless=True)
