"""State spaces, delta nets and RWKV in MLX: one kernel of Metal where it has one, else a prompt in chunks.

Within a chunk nothing waits for the token before: what tokens find of each other are products of matrices, for all
chunks and heads at once, and only the state passes from chunk to chunk. With g_t for the logarithm of what is left at
token t of a state at the chunk's beginning, and S for that state, a delta net's new knowledge d and what it finds are

    d_t = v_t − Sᵀ e^g_t k_t − Σ_{s<t} (e^(g_t − g_s) k_t · β_s k_s) d_s
    y_t = Sᵀ e^g_t q_t + Σ_{s≤t} (e^(g_t − g_s) q_t · β_s k_s) d_s
    S′ = e^g S + Σ_s e^(g − g_s) β_s k_s d_sᵀ

d is the solution of a triangular system whose inverse does not depend on S. RWKV 7 and state spaces are the same with
other letters; see `Ops.delta`, `Ops.wkv` and `Ops.scan`. Every exponent is of a later token minus an earlier one, so
nothing overflows, however fast a state decays.

Source: Yang et al., "Parallelizing Linear Transformers with the Delta Rule over Sequence Length", 2024; Dao, Gu,
"Transformers are SSMs", 2024; Peng et al., "RWKV-7 Goose", 2025.
"""

from __future__ import annotations

from functools import partial

import mlx.core as mx

from ggufkit.runtime.mlx import scans
from ggufkit.runtime.ops import StateSpace

__all__ = ["delta", "scan", "wkv"]

# Tokens of a chunk: where all numbers of a key decay alike, pairs of tokens are one product of matrices; where each
# decays by itself, all of (tokens, tokens, numbers), which are kept few, and so are the chunks done at once.
_ALIKE, _EACH, _AT_ONCE = 64, 16, 128
_FEW = 4  # tokens that take fewer operations one after the other
_LEAST = 1e-37  # decays below are this one: its logarithm is finite


def scan(
    x: mx.array, b: mx.array, c: mx.array, dt: mx.array, space: StateSpace, state: mx.array
) -> tuple[mx.array, mx.array]:
    """What `Ops.scan` gives for the rows of one conversation, and its new state."""
    n, alike = len(x), space.a.shape[1] == 1
    if scans.takes_space(space) and (n < _ALIKE or not alike):
        return scans.space(x, b, c, dt, space, state)
    x = x.reshape(n, space.heads, space.size)
    b, c = (part.reshape(n, space.groups, space.states) for part in (b, c))
    if n > _FEW and alike:
        y, state = _scan_chunks(x, b, c, dt, space, state)
    else:
        rows = []
        b, c = (mx.repeat(part, space.heads // space.groups, axis=1) for part in (b, c))
        for t in range(n):
            y, state = _scan_one(x[t], b[t], c[t], dt[t], space.a, state)
            rows.append(y)
        y = mx.stack(rows)
    return (y + x * space.d[:, None]).reshape(n, -1), state


def delta(
    q: mx.array, k: mx.array, v: mx.array, decay: mx.array, beta: mx.array, state: mx.array
) -> tuple[mx.array, mx.array]:
    """What `Ops.delta` gives for the rows of one conversation, and its new state."""
    n, step = len(q), len(q) if decay.shape[2] == 1 else _AT_ONCE
    if scans.takes(state):
        return scans.delta(q, k, v, decay, beta, state)
    rows = []
    if n <= _FEW:
        for t in range(n):
            y, state = _delta_one(q[t], k[t], v[t], decay[t], beta[t], state)
            rows.append(y)
        return mx.stack(rows), state
    for lo in range(0, n, step):
        at = slice(lo, lo + step)
        y, state = _delta_chunks(q[at], k[at], v[at], decay[at], beta[at], state)
        rows.append(y)
    return mx.concatenate(rows), state


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
    n, rows = len(r), []
    if scans.takes(state):
        return scans.wkv(r, w, k, v, a, b, bonus, state)
    step, some = (1, _wkv_one) if n <= _FEW else (_AT_ONCE, _wkv_chunks)
    for lo in range(0, n, step):
        at = slice(lo, lo + step)
        a_, b_ = (None if part is None else part[at] for part in (a, b))
        y, state = some(r[at], w[at], k[at], v[at], a_, b_, bonus, state)
        rows.append(y)
    return mx.concatenate(rows), state


# -- one token --------------------------------------------------------------------------------------------


@partial(mx.compile, shapeless=False)
def _scan_one(
    x: mx.array, b: mx.array, c: mx.array, dt: mx.array, a: mx.array, state: mx.array
) -> tuple[mx.array, mx.array]:
    """x (heads, size), b, c (heads, states), dt (heads,), a (heads, 1 or states), state (heads, size, states)."""
    decay = mx.exp(dt[:, None] * a)[:, None]
    state = state * decay + (x * dt[:, None])[..., None] * b[:, None]
    return mx.sum(state * c[:, None], axis=-1), state


@partial(mx.compile, shapeless=False)
def _delta_one(
    q: mx.array, k: mx.array, v: mx.array, decay: mx.array, beta: mx.array, state: mx.array
) -> tuple[mx.array, mx.array]:
    """q, k (heads, dk), v (heads, dv), decay (heads, 1 or dk), beta (heads,), state (heads, dk, dv)."""
    state = state * mx.exp(decay)[..., None]
    new = (v - mx.sum(state * k[..., None], axis=1)) * beta[:, None]
    state = state + k[..., None] * new[:, None]
    return mx.sum(state * q[..., None], axis=1), state


def _wkv_one(
    r: mx.array,
    w: mx.array,
    k: mx.array,
    v: mx.array,
    a: mx.array | None,
    b: mx.array | None,
    bonus: mx.array | None,
    state: mx.array,
) -> tuple[mx.array, mx.array]:
    """All but the bonus, (heads, size), of shape (1, heads, size); state (heads, size, size)."""
    after = state * w[0, ..., None] + k[0, ..., None] * v[0, :, None]
    if a is not None and b is not None:
        after = after + b[0, ..., None] * mx.sum(state * a[0, ..., None], axis=1)[:, None]
    if bonus is None:
        return mx.sum(after * r[0, ..., None], axis=1)[None], after
    own = mx.sum(r * bonus * k, axis=-1, keepdims=True)
    return mx.sum(state * r[0, ..., None], axis=1)[None] + own * v, after


# -- chunks -----------------------------------------------------------------------------------------------


def _scan_chunks(
    x: mx.array, b: mx.array, c: mx.array, dt: mx.array, space: StateSpace, state: mx.array
) -> tuple[mx.array, mx.array]:
    """x (n, heads, size), b, c (n, groups, states), dt (n, heads): all but what D lets through."""
    n, length, groups = len(x), min(len(x), _ALIKE), space.groups
    x = _by_group(_chunks(x * dt[..., None], length), groups)  # (chunks, groups, heads of one, length, size)
    b, c = (_by_group(_chunks(part, length), groups) for part in (b, c))  # (chunks, groups, 1, length, states)
    left = _by_group(mx.cumsum(_chunks(dt[..., None] * space.a, length), axis=-2), groups)
    last = left[..., -1:, :]  # (chunks, groups, heads of one, 1, 1)
    learned = mx.swapaxes(x * mx.exp(last - left), -1, -2) @ b  # (chunks, groups, heads of one, size, states)
    kept = mx.exp(last)
    state, states = state.reshape(groups, -1, space.size, space.states), []
    for old, new in zip(kept, learned, strict=True):
        states.append(state)
        state = state * old + new
    found = _weakened(c @ mx.swapaxes(b, -1, -2), left, left, _earlier(length, 0)) @ x
    found = found + mx.exp(left) * (c @ mx.swapaxes(mx.stack(states), -1, -2))
    found = found.reshape(len(found), -1, *found.shape[-2:])
    return _rows(found, n), state.reshape(-1, space.size, space.states)


def _delta_chunks(
    q: mx.array, k: mx.array, v: mx.array, decay: mx.array, beta: mx.array, state: mx.array
) -> tuple[mx.array, mx.array]:
    n, length = len(q), min(len(q), _ALIKE if decay.shape[2] == 1 else _EACH)
    q, k, v, decay, beta = (_chunks(part, length) for part in (q, k, v, decay, beta[..., None]))
    left = mx.cumsum(decay, axis=2)  # (chunks, heads, length, 1 or dk)
    last, learned = left[:, :, -1:], k * beta
    unlearned = _inverse(_products(k, left, learned, left, _earlier(length, 1)))  # (chunks, heads, length, length)
    news, known = unlearned @ v, unlearned @ (k * mx.exp(left))  # (chunks, heads, length, dv) and (…, dk)
    taught = mx.swapaxes(learned * mx.exp(last - left), -1, -2)  # (chunks, heads, dk, length)
    states, differences = [], []
    for old, new, seen, keys in zip(mx.exp(mx.swapaxes(last, -1, -2)), news, known, taught, strict=True):
        difference = new - seen @ state
        states.append(state)
        differences.append(difference)
        state = state * old + keys @ difference
    near = _products(q, left, learned, left, _earlier(length, 0))
    return _rows((q * mx.exp(left)) @ mx.stack(states) + near @ mx.stack(differences), n), state


def _wkv_chunks(
    r: mx.array,
    w: mx.array,
    k: mx.array,
    v: mx.array,
    a: mx.array | None,
    b: mx.array | None,
    bonus: mx.array | None,
    state: mx.array,
) -> tuple[mx.array, mx.array]:
    n, length = len(r), min(len(r), _EACH)
    own = None if bonus is None else mx.sum(r * bonus * k, axis=-1, keepdims=True) * v
    r, k, v = (_chunks(part, length) for part in (r, k, v))
    decay = _chunks(mx.log(mx.maximum(w, _LEAST)), length)
    after = mx.cumsum(decay, axis=2)  # (chunks, heads, length, size)
    before = after - decay
    read, first = (after, 0) if bonus is None else (before, 1)
    last = after[:, :, -1:]
    kept, rest = mx.exp(mx.swapaxes(last, -1, -2)), mx.exp(last - after)
    learned = mx.swapaxes(k * rest, -1, -2) @ v  # (chunks, heads, size, size)
    found = _products(r, read, k, after, _earlier(length, first)) @ v
    states, changes = [], []
    if a is None or b is None:
        for old, new in zip(kept, learned, strict=True):
            states.append(state)
            state = state * old + new
    else:
        a, b = _chunks(a, length), _chunks(b, length)
        strictly = _earlier(length, 1)
        unlearned = _inverse(-_products(a, before, b, after, strictly))
        news = unlearned @ (_products(a, before, k, after, strictly) @ v)
        known, taught = unlearned @ (a * mx.exp(before)), mx.swapaxes(b * rest, -1, -2)
        for old, new, change, seen, keys in zip(kept, learned, news, known, taught, strict=True):
            change = change + seen @ state  # noqa: PLW2901
            states.append(state)
            changes.append(change)
            state = state * old + (new + keys @ change)
        found = found + _products(r, read, b, after, _earlier(length, first)) @ mx.stack(changes)
    y = _rows(found + (r * mx.exp(read)) @ mx.stack(states), n)
    return y if own is None else y + own, state


def _chunks(x: mx.array, length: int) -> mx.array:
    """(n, heads, size) → (chunks, heads, length, size); tokens that are missing change no state."""
    if more := -len(x) % length:
        x = mx.pad(x, [(0, more), (0, 0), (0, 0)])
    return mx.swapaxes(x.reshape(-1, length, *x.shape[1:]), 1, 2)


def _rows(x: mx.array, n: int) -> mx.array:
    """Back: the first `n` tokens."""
    return mx.swapaxes(x, 1, 2).reshape(-1, x.shape[1], x.shape[3])[:n]


def _by_group(x: mx.array, groups: int) -> mx.array:
    """(chunks, heads, …) → (chunks, groups, heads of a group, …)."""
    return x.reshape(len(x), groups, -1, *x.shape[2:])


def _earlier(length: int, by: int) -> mx.array:
    """Which tokens s come at least so many before t: (t, s) bool."""
    return mx.tri(length, length, -by, dtype=mx.bool_)


def _products(x: mx.array, x_left: mx.array, y: mx.array, y_left: mx.array, seen: mx.array) -> mx.array:
    """x_t · e^(x_left_t − y_left_s) y_s of the pairs that are seen, and 0 of others: (…, length, length)."""
    if x_left.shape[-1] == 1:
        return _weakened(x @ mx.swapaxes(y, -1, -2), x_left, y_left, seen)
    return mx.where(seen, mx.sum(_each_weakened(x, x_left, y, y_left), axis=-1), 0)


@partial(mx.compile, shapeless=True)
def _weakened(products: mx.array, x_left: mx.array, y_left: mx.array, seen: mx.array) -> mx.array:
    """Products (…, t, s) times what is left of s at t; x_left, y_left (…, t, 1)."""
    left = mx.exp(mx.minimum(x_left - mx.swapaxes(y_left, -1, -2), 0))
    return mx.where(seen, products * left, 0)


@partial(mx.compile, shapeless=True)
def _each_weakened(x: mx.array, x_left: mx.array, y: mx.array, y_left: mx.array) -> mx.array:
    """The same for numbers that decay each by itself: (…, t, s, size), to be added up."""
    x, x_left = mx.expand_dims(x, -2), mx.expand_dims(x_left, -2)
    y, y_left = mx.expand_dims(y, -3), mx.expand_dims(y_left, -3)
    return x * y * mx.exp(mx.minimum(x_left - y_left, 0))


def _inverse(below: mx.array) -> mx.array:
    """(1 + below)⁻¹, `below` (…, n, n) having numbers under its diagonal only.

    Of two blocks on the diagonal whose inverses are known, A and B with C below A, the inverse of both has −B⁻¹ C A⁻¹
    there: so blocks of 1, 2, 4 … become one, for all at once. No powers of the matrix, which grow beyond float32.
    """
    n = below.shape[-1]
    at = mx.arange(n)
    inverse, size = mx.eye(n), 1
    while size < n:
        block = at // size
        between = (block[:, None] == block[None] + 1) & (block[:, None] % 2 == 1)
        joint = mx.where(between, below, 0)
        inverse = inverse - (joint if size == 1 else inverse @ joint @ inverse)
        size *= 2
    return mx.broadcast_to(inverse, below.shape)
