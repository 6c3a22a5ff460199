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

# Tokens of a chunk: as few as pay where there is no Metal; of state spaces, which have chunks there, too, more.
_CHUNK, _SPACE_CHUNK = 16, 64
_FEW = 4  # tokens that take fewer operations one after the other
_LEAST = 1e-37  # decays below are this one: its logarithm is finite


def scan(
    x: mx.array, b: mx.array, c: mx.array, dt: mx.array, space: StateSpace, state: mx.array
) -> tuple[mx.array, mx.array]:
    """What `Ops.scan` gives for the rows of one conversation, and its new state."""
    n, alike = len(x), space.a.shape[1] == 1
    if scans.takes_space(space) and (n < _SPACE_CHUNK or not alike):
        return scans.space(x, b, c, dt, space, state)
    x = x.reshape(n, space.heads, space.size)
    b, c = (part.reshape(n, space.groups, space.states) for part in (b, c))
    if n > _FEW and alike:
        y, state = _scan_chunks(x, b, c, dt, space, state)
    else:
        rows = []
        b, c = (mx.repeat(part, space.heads // space.groups, axis=1) for part in (b, c))
        for t in range(n):
            x_, b_, c_, dt_ = (_token(part, t) for part in (x, b, c, dt))
            y, state = _scan_one(x_, b_, c_, dt_, space.a, state)
            rows.append(y)
        y = mx.stack(rows)
    return (y + x * space.d[:, None]).reshape(n, -1), state


def delta(
    q: mx.array, k: mx.array, v: mx.array, decay: mx.array, beta: mx.array, state: mx.array
) -> tuple[mx.array, mx.array]:
    """What `Ops.delta` gives for the rows of one conversation, and its new state."""
    if scans.takes(state):
        return scans.delta(q, k, v, decay, beta, state)
    if len(q) > _FEW:
        return _delta_chunks(q, k, v, decay, beta, state)
    rows = []
    for t in range(len(q)):
        q_, k_, v_, decay_, beta_ = (_token(part, t) for part in (q, k, v, decay, beta))
        y, state = _delta_one(q_, k_, v_, decay_, beta_, state)
        rows.append(y)
    return mx.stack(rows), state


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
    if scans.takes(state):
        return scans.wkv(r, w, k, v, a, b, bonus, state)
    if len(r) > _FEW:
        return _wkv_chunks(r, w, k, v, a, b, bonus, state)
    rows = []
    for t in range(len(r)):
        r_, w_, k_, v_ = (_token(part, t) for part in (r, w, k, v))
        a_, b_ = (None if part is None else _token(part, t) for part in (a, b))
        y, state = _wkv_one(r_, w_, k_, v_, a_, b_, bonus, state)
        rows.append(y)
    return mx.stack(rows), state


def _token(x: mx.array, t: int) -> mx.array:
    """One of the rows; the only one is not looked up."""
    return x.reshape(x.shape[1:]) if len(x) == 1 else x[t]


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
    """All (heads, size), a, b and the bonus perhaps None; state (heads, size, size)."""
    after = state * w[..., None] + k[..., None] * v[:, None]
    if a is not None and b is not None:
        after = after + b[..., None] * mx.sum(state * a[..., None], axis=1)[:, None]
    if bonus is None:
        return mx.sum(after * r[..., None], axis=1), after
    own = mx.sum(r * bonus * k, axis=-1, keepdims=True)
    return mx.sum(state * r[..., None], axis=1) + own * v, after


# -- chunks -----------------------------------------------------------------------------------------------


def _scan_chunks(
    x: mx.array, b: mx.array, c: mx.array, dt: mx.array, space: StateSpace, state: mx.array
) -> tuple[mx.array, mx.array]:
    """x (n, heads, size), b, c (n, groups, states), dt (n, heads): all but what D lets through."""
    n, length, groups = len(x), _length(len(x), _SPACE_CHUNK), space.groups
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
    found = _weakened(c @ mx.swapaxes(b, -1, -2), left, left, mx.tri(length, length, dtype=mx.bool_)) @ x
    found = found + mx.exp(left) * (c @ mx.swapaxes(mx.stack(states), -1, -2))
    found = found.reshape(len(found), -1, *found.shape[-2:])
    return _rows(found, n), state.reshape(-1, space.size, space.states)


def _delta_chunks(
    q: mx.array, k: mx.array, v: mx.array, decay: mx.array, beta: mx.array, state: mx.array
) -> tuple[mx.array, mx.array]:
    n, length = len(q), _length(len(q))
    q, k, v, decay, beta = (_chunks(part, length) for part in (q, k, v, decay, beta[..., None]))
    left = mx.cumsum(decay, axis=2)  # (chunks, heads, length, 1 or dk)
    last, learned = left[:, :, -1:], k * beta
    near, known = _products([(q, left, 0), (k, left, 1)], [learned], left)  # (chunks, heads, length, length) each
    unlearned = _inverse(known)
    news, known = unlearned @ v, unlearned @ (k * mx.exp(left))  # (chunks, heads, length, dv) and (…, dk)
    taught = mx.swapaxes(learned * mx.exp(last - left), -1, -2)  # (chunks, heads, dk, length)
    states, differences = [], []
    for old, new, seen, keys in zip(mx.exp(mx.swapaxes(last, -1, -2)), news, known, taught, strict=True):
        difference = new - seen @ state
        states.append(state)
        differences.append(difference)
        state = state * old + keys @ difference
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
    n, length = len(r), _length(len(r))
    own = None if bonus is None else mx.sum(r * bonus * k, axis=-1, keepdims=True) * v
    r, k, v = (_chunks(part, length) for part in (r, k, v))
    decay = _chunks(mx.log(mx.maximum(w, _LEAST)), length)
    left = mx.cumsum(decay, axis=2)  # (chunks, heads, length, size)
    before = left - decay
    read, by = (left, 0) if bonus is None else (before, 1)
    last = left[:, :, -1:]
    kept, rest = mx.exp(mx.swapaxes(last, -1, -2)), mx.exp(last - left)
    learned = mx.swapaxes(k * rest, -1, -2) @ v  # (chunks, heads, size, size)
    states, changes = [], []
    if a is None or b is None:
        (near,) = _products([(r, read, by)], [k], left)
        for old, new in zip(kept, learned, strict=True):
            states.append(state)
            state = state * old + new
        found = near @ v
    else:
        a, b = _chunks(a, length), _chunks(b, length)
        near, nearby, seen, known = _products([(r, read, by), (a, before, 1)], [k, b], left)
        unlearned = _inverse(-known)
        news, known = unlearned @ (seen @ v), unlearned @ (a * mx.exp(before))
        taught = mx.swapaxes(b * rest, -1, -2)
        for old, new, change, seen, keys in zip(kept, learned, news, known, taught, strict=True):
            change = change + seen @ state  # noqa: PLW2901
            states.append(state)
            changes.append(change)
            state = state * old + (new + keys @ change)
        found = near @ v + nearby @ mx.stack(changes)
    y = _rows(found + (r * mx.exp(read)) @ mx.stack(states), n)
    return y if own is None else y + own, state


def _length(n: int, most: int = _CHUNK) -> int:
    """Tokens of a chunk: a power of two, not much more than there are."""
    return min(most, 1 << (n - 1).bit_length())


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


def _products(reads: list[tuple[mx.array, mx.array, int]], keys: list[mx.array], left: mx.array) -> list[mx.array]:
    """x_t · e^(x_left_t − left_s) y_s for each x of `reads` and then each y of `keys`: (…, length, length) each.

    Parameters
    ----------
    reads : x (…, length, size); logarithms of what is left of a state where it reads; and by how many tokens those come
        earlier that it sees, 0 or 1.
    keys : (…, length, size).
    left : of the state after each token, (…, length, 1 or size).
    """
    if left.shape[-1] == 1:
        length = left.shape[-2]
        seen = [mx.tri(length, length, -by, dtype=mx.bool_) for _, _, by in reads]
        return [
            _weakened(x @ mx.swapaxes(y, -1, -2), x_left, left, earlier)
            for (x, x_left, _), earlier in zip(reads, seen, strict=True)
            for y in keys
        ]
    own = [mx.zeros(x.shape[:-1]) if by else mx.sum(x * y, axis=-1) for x, _, by in reads for y in keys]
    # Of two halves of a chunk the later one reads what is left of the earlier one's end, the end what is left of its
    # tokens: two exponents that are not positive. The halves are chunks again; from the shortest on.
    blocks = mx.stack(own)[..., None, None]  # (products, …, blocks, size of one, size of one)
    while (size := blocks.shape[-1]) < left.shape[-2]:
        early, end = _half(left, size, 0), _half(left, size, 0)[..., -1:, :]
        late = [_half(x, size, 1) * mx.exp(_half(x_left, size, 1) - end) for x, x_left, _ in reads]
        taught = [_half(y, size, 0) * mx.exp(end - early) for y in keys]
        between = mx.stack([x @ mx.swapaxes(y, -1, -2) for x in late for y in taught])
        blocks = _joined(blocks, between)
    return [block[..., 0, :, :] for block in blocks]


@partial(mx.compile, shapeless=True)
def _weakened(products: mx.array, x_left: mx.array, y_left: mx.array, seen: mx.array) -> mx.array:
    """Products (…, t, s) times what is left of s at t; x_left, y_left (…, t, 1)."""
    left = mx.exp(mx.minimum(x_left - mx.swapaxes(y_left, -1, -2), 0))
    return mx.where(seen, products * left, 0)


def _half(x: mx.array, size: int, which: int) -> mx.array:
    """Of each pair of runs of `size` tokens one: (…, length, m) → (…, pairs, size, m)."""
    return x.reshape(*x.shape[:-2], -1, 2, size, x.shape[-1])[..., which, :, :]


def _joined(blocks: mx.array, between: mx.array) -> mx.array:
    """Blocks (…, 2 n, m, m) on a diagonal, and those below each pair (…, n, m, m) → (…, n, 2 m, 2 m)."""
    pairs = blocks.reshape(*between.shape[:-2], 2, *between.shape[-2:])
    upper = mx.concatenate([pairs[..., 0, :, :], mx.zeros_like(between)], axis=-1)
    return mx.concatenate([upper, mx.concatenate([between, pairs[..., 1, :, :]], axis=-1)], axis=-2)


def _inverse(below: mx.array) -> mx.array:
    """(1 + below)⁻¹, `below` (…, n, n) having numbers under its diagonal only.

    Of two blocks on the diagonal whose inverses are known, A and B with C below A, the inverse of both has −B⁻¹ C A⁻¹
    there: so blocks of 1, 2, 4 … become one, for all at once. No powers of the matrix, which grow beyond float32.
    """
    n = below.shape[-1]
    blocks = mx.ones((*below.shape[:-1], 1, 1))  # (…, blocks, size of one, size of one)
    while (size := blocks.shape[-1]) < n:
        pairs = below.reshape(*below.shape[:-2], n // (2 * size), 2 * size, n // (2 * size), 2 * size)
        joint = mx.moveaxis(mx.diagonal(pairs, 0, -4, -2), -1, -3)[..., size:, :size]
        inverses = blocks.reshape(*joint.shape[:-2], 2, size, size)
        blocks = _joined(blocks, -(inverses[..., 1, :, :] @ joint @ inverses[..., 0, :, :]))
    return blocks[..., 0, :, :]
