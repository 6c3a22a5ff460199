"""The recurrences of `runtime.ops`, token by token, as their docstrings have them, in float64."""

from __future__ import annotations

import numpy as np

__all__ = ["delta", "scan", "wkv"]


def scan(x, b, c, dt, a, d, state):
    """x (n, heads, size), b, c (n, groups, states), dt (n, heads), a (heads, 1 or states), d (heads,), state."""
    each, found = x.shape[1] // b.shape[1], []
    for t in range(len(x)):
        keys, reads = np.repeat(b[t], each, axis=0), np.repeat(c[t], each, axis=0)  # (heads, states)
        learned = np.einsum("hp,hs->hps", x[t] * dt[t][:, None], keys)
        state = state * np.exp(dt[t][:, None] * a)[:, None] + learned
        found.append(np.einsum("hps,hs->hp", state, reads) + d[:, None] * x[t])
    return np.stack(found), state


def delta(q, k, v, decay, beta, state):
    """q, k (n, heads, dk), v (n, heads, dv), decay (n, heads, 1 or dk), beta (n, heads), state (heads, dk, dv)."""
    found = []
    for t in range(len(q)):
        state = state * np.exp(decay[t])[..., None]
        news = (v[t] - np.einsum("hij,hi->hj", state, k[t])) * beta[t][:, None]
        state = state + np.einsum("hi,hj->hij", k[t], news)
        found.append(np.einsum("hij,hi->hj", state, q[t]))
    return np.stack(found), state


def wkv(r, w, k, v, a, b, bonus, state):
    """All (n, heads, size) but the bonus, (heads, size); a and b, or the bonus, may be None."""
    found = []
    for t in range(len(r)):
        after = state * w[t][..., None] + np.einsum("hi,hj->hij", k[t], v[t])
        if a is not None:
            known = np.einsum("hij,hi->hj", state, a[t])
            after = after + np.einsum("hi,hj->hij", b[t], known)
        if bonus is None:
            found.append(np.einsum("hij,hi->hj", after, r[t]))
        else:
            own = (r[t] * bonus * k[t]).sum(axis=-1, keepdims=True)
            found.append(np.einsum("hij,hi->hj", state, r[t]) + own * v[t])
        state = after
    return np.stack(found), state
