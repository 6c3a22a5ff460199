"""State spaces, delta nets and RWKV in MLX: token after token."""

from __future__ import annotations

from functools import partial

import mlx.core as mx

from ggufkit.runtime.ops import StateSpace

__all__ = ["delta", "scan", "wkv"]


@partial(mx.compile, shapeless=False)
def _scan_one(
    x: mx.array, b: mx.array, c: mx.array, dt: mx.array, a: mx.array, state: mx.array
) -> tuple[mx.array, mx.array]:
    """x (heads, size), b, c (heads, states), dt (heads,), a (heads, 1 or states), state (heads, size, states)."""
    decay = mx.exp(dt[:, None] * a)[:, None]
    state = state * decay + (x * dt[:, None])[..., None] * b[:, None]
    return mx.sum(state * c[:, None], axis=-1), state


def scan(
    x: mx.array, b: mx.array, c: mx.array, dt: mx.array, space: StateSpace, state: mx.array
) -> tuple[mx.array, mx.array]:
    """What `Ops.scan` gives for the rows of one conversation, and its new state."""
    n, each = len(x), space.heads // space.groups
    heads = x.reshape(n, space.heads, space.size)
    b, c = (mx.repeat(part.reshape(n, space.groups, space.states), each, axis=1) for part in (b, c))
    rows = []
    for t in range(n):
        y, state = _scan_one(heads[t], b[t], c[t], dt[t], space.a, state)
        rows.append(y)
    y = mx.stack(rows) + heads * space.d[:, None]
    return y.reshape(n, -1), state


@partial(mx.compile, shapeless=False)
def _delta_one(
    q: mx.array, k: mx.array, v: mx.array, decay: mx.array, beta: mx.array, state: mx.array
) -> tuple[mx.array, mx.array]:
    """q, k (heads, dk), v (heads, dv), decay (heads, 1 or dk), beta (heads,), state (heads, dk, dv)."""
    state = state * mx.exp(decay)[..., None]
    new = (v - mx.sum(state * k[..., None], axis=1)) * beta[:, None]
    state = state + k[..., None] * new[:, None]
    return mx.sum(state * q[..., None], axis=1), state


def delta(
    q: mx.array, k: mx.array, v: mx.array, decay: mx.array, beta: mx.array, state: mx.array
) -> tuple[mx.array, mx.array]:
    """What `Ops.delta` gives for the rows of one conversation, and its new state."""
    rows = []
    for t in range(len(q)):
        y, state = _delta_one(q[t], k[t], v[t], decay[t], beta[t], state)
        rows.append(y)
    return mx.stack(rows), state


@partial(mx.compile, shapeless=False)
def _forgot(w: mx.array, k: mx.array, v: mx.array, state: mx.array) -> mx.array:
    """w, k (heads, size), v (heads, size), state (heads, size, size)."""
    return state * w[..., None] + k[..., None] * v[:, None]


def wkv(
    r: mx.array,
    w: mx.array,
    k: mx.array,
    v: mx.array,
    a: mx.array | None,
    b: mx.array | None,
    bonus: mx.array | None,
    state: mx.array,
) -> tuple[mx.array, mx.array]:
    """What `Ops.wkv` gives for the rows of one conversation, and its new state."""
    rows = []
    for t in range(len(r)):
        after = _forgot(w[t], k[t], v[t], state)
        if a is not None and b is not None:
            after = after + b[t][..., None] * mx.sum(state * a[t][..., None], axis=1)[:, None]
        if bonus is None:
            rows.append(mx.sum(after * r[t][..., None], axis=1))
        else:
            own = mx.sum(r[t] * bonus * k[t], axis=-1, keepdims=True)
            rows.append(mx.sum(state * r[t][..., None], axis=1) + own * v[t])
        state = after
    return mx.stack(rows), state
