"""Attention over whole windows, forward and backward, with its matrix of scores.

Of each window and each head of keys and values, all its queries together (tokens × group rows):

    S = scale · Q Kᵀ      capped, masked       P = softmax S (with the sink's share)        O = P V
    dP = dO Vᵀ            dS = P (dP − Σ dP P), times the cap's slope and scale
    dQ = dS K             dK = dSᵀ Q           dV = Pᵀ dO
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from ggufkit.calibrate.elementwise import exp, tanh
from ggufkit.calibrate.products import product, transposed
from ggufkit.errors import GgufkitError
from ggufkit.kernels.threads import for_ranges
from ggufkit.runtime.ops import AttentionSpec, Span

__all__ = ["attend", "attend_back"]

_UNSEEN = np.float32(-1e30)


def _each(function: Callable[[slice, int], None], spans: Sequence[Span], spec: AttentionSpec, threads: int) -> None:
    """`function` for each window and each head of keys and values."""
    items = [(slice(span.lo, span.hi), head) for span in spans for head in range(spec.kv_heads)]

    def work(lo: int, hi: int) -> None:
        for tokens, head in items[lo:hi]:
            function(tokens, head)

    for_ranges(work, len(items), 1, threads)


def _gather(x: np.ndarray, tokens: slice, head: int, spec: AttentionSpec) -> np.ndarray:
    """Queries of one head of keys, (tokens × group, size)."""
    part = x[tokens].reshape(-1, spec.kv_heads, spec.heads // spec.kv_heads, x.shape[1] // spec.heads)
    return np.ascontiguousarray(part[:, head]).reshape(-1, part.shape[-1])


def _scatter(out: np.ndarray, tokens: slice, head: int, spec: AttentionSpec, rows: np.ndarray) -> None:
    group, size = spec.heads // spec.kv_heads, out.shape[1] // spec.heads
    part = out[tokens].reshape(-1, spec.kv_heads, group, size)
    part[:, head] = rows.reshape(-1, group, size)


def _of_head(x: np.ndarray, tokens: slice, head: int, spec: AttentionSpec) -> np.ndarray:
    """Keys or values of one head, (tokens, size)."""
    size = x.shape[1] // spec.kv_heads
    return np.ascontiguousarray(x[tokens, head * size : (head + 1) * size])


def _probabilities(
    q: np.ndarray, k: np.ndarray, head: int, spec: AttentionSpec
) -> tuple[np.ndarray, np.ndarray | None]:
    """P (tokens × group, tokens), and of a cap its slope at each score."""
    group, n = spec.heads // spec.kv_heads, len(k)
    scores = product(q, k, 1) * np.float32(spec.scale)
    slope = None
    if spec.cap:
        bent = tanh(scores / np.float32(spec.cap))
        scores, slope = bent * np.float32(spec.cap), 1 - bent * bent
    seen = np.repeat(_seen(n, spec), group, axis=0)
    if spec.slopes is not None:
        slopes = np.asarray(spec.slopes, np.float32).reshape(spec.kv_heads, group)[head]
        scores = scores - (_away(n)[:, None] * slopes[None, :, None]).reshape(scores.shape)
    scores = np.where(seen, scores, _UNSEEN)
    most = scores.max(-1, keepdims=True)
    if not np.isfinite(most).all():  # the exponential would hide it
        raise GgufkitError("scores of attention are not finite; the model is broken, or its type too narrow")
    if spec.sinks is None:
        e = np.where(seen, exp(scores - most), np.float32(0))
        return e / e.sum(-1, keepdims=True), slope
    sinks = np.asarray(spec.sinks, np.float32).reshape(spec.kv_heads, group)[head]
    sink = np.tile(sinks, n)[:, None]
    most = np.maximum(most, sink)
    e = np.where(seen, exp(scores - most), np.float32(0))
    return e / (e.sum(-1, keepdims=True) + exp(sink - most)), slope


def _seen(n: int, spec: AttentionSpec) -> np.ndarray:
    """Which tokens each one sees: (n, n) bool."""
    places = np.arange(n)
    distance = places[:, None] - places[None]
    seen: np.ndarray = distance >= 0 if spec.causal else np.ones((n, n), bool)
    if spec.chunked:
        seen = seen & (places[:, None] // spec.window == places[None] // spec.window)
    elif spec.two_sided:
        seen = seen & (np.abs(distance) <= spec.window // 2)
    elif spec.window:
        seen = seen & (distance < spec.window)
    return seen


def _away(n: int) -> np.ndarray:
    """How far tokens are from one another: (n, n) float32."""
    places = np.arange(n, dtype=np.float32)
    result: np.ndarray = np.abs(places[:, None] - places[None])
    return result


def attend(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, spans: Sequence[Span], spec: AttentionSpec, threads: int
) -> np.ndarray:
    """What each query finds in its window: (n, heads × head_v), float32.

    Parameters
    ----------
    q, k, v : (n, heads × head_k), (n, kv_heads × head_k), (n, kv_heads × head_v).
    spans : the windows.
    """
    out = np.empty((len(q), spec.heads * spec.head_v), np.float32)

    def one(tokens: slice, head: int) -> None:
        P, _ = _probabilities(_gather(q, tokens, head, spec), _of_head(k, tokens, head, spec), head, spec)
        _scatter(out, tokens, head, spec, product(P, transposed(_of_head(v, tokens, head, spec), 1), 1))

    _each(one, spans, spec, threads)
    return out


def attend_back(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    g: np.ndarray,
    spans: Sequence[Span],
    spec: AttentionSpec,
    threads: int,
) -> Iterator[np.ndarray]:
    """The gradients of q, k and v from that of `attend`'s result."""
    dq, dk, dv = np.empty_like(q), np.empty_like(k), np.empty_like(v)

    def one(tokens: slice, head: int) -> None:
        queries, keys = _gather(q, tokens, head, spec), _of_head(k, tokens, head, spec)
        P, slope = _probabilities(queries, keys, head, spec)
        dO = _gather(g, tokens, head, spec)
        dP = product(dO, _of_head(v, tokens, head, spec), 1)
        dS = P * (dP - (dP * P).sum(-1, keepdims=True)) * np.float32(spec.scale)
        if slope is not None:
            dS = dS * slope
        _scatter(dq, tokens, head, spec, product(dS, transposed(keys, 1), 1))
        for out, left, right in ((dk, dS, queries), (dv, P, dO)):
            size = out.shape[1] // spec.kv_heads
            out[tokens, head * size : (head + 1) * size] = product(transposed(left, 1), transposed(right, 1), 1)

    _each(one, spans, spec, threads)
    return iter((dq, dk, dv))
