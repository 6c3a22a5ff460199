"""Gradients of what goes from token to token: state spaces and the gated delta rule, one conversation at a time.

    scan     S_t = e^(dt A) S_{t−1} + dt x bᵀ                      y = S_t c + D x
    delta    S′ = e^decay S_{t−1}     u = beta (v − S′ᵀ k)     S_t = S′ + k uᵀ     y = S_tᵀ q

States are computed once more from the first token on, and kept; then gradients go from the last token to the first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ggufkit.calibrate.elementwise import exp
from ggufkit.runtime.ops import Span, StateSpace

__all__ = ["delta_back", "fresh", "scan_back"]


@dataclass
class _State:
    arrays: list[np.ndarray]


def fresh(spans: Sequence[Span]) -> list[Span]:
    """The same conversations before their first tokens: states of zeros, as NumPy's."""
    return [replace(span, cache=_State([np.zeros(span.cache.arrays[-1].shape, np.float32)])) for span in spans]


def scan_back(
    x: np.ndarray, b: np.ndarray, c: np.ndarray, dt: np.ndarray, g: np.ndarray, space: StateSpace
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The gradients of x, b, c and dt from that of `Ops.scan`'s result, all of one conversation.

    Parameters
    ----------
    x, g : (n, heads × size).
    b, c : (n, groups × states).
    dt : (n, heads).
    """
    n, heads, size, groups, states = len(x), space.heads, space.size, space.groups, space.states
    a, each = np.asarray(space.a, np.float32), heads // groups
    shaped, gy = x.reshape(n, heads, size), g.reshape(n, heads, size)
    bs, cs = (np.repeat(v.reshape(n, groups, states), each, axis=1) for v in (b, c))  # (n, heads, states)
    decay = exp(dt[:, :, None] * a)  # (n, heads, 1 or states)
    S = np.zeros((n + 1, heads, size, states), np.float32)
    for t in range(n):
        S[t + 1] = S[t] * decay[t][:, None] + (dt[t][:, None] * shaped[t])[:, :, None] * bs[t][:, None]
    dx, ddt = np.asarray(space.d, np.float32)[:, None] * gy, np.empty_like(dt)
    db, dc = np.empty_like(bs), np.empty_like(cs)
    dS = np.zeros(S.shape[1:], np.float32)
    for t in range(n - 1, -1, -1):
        dS += gy[t][:, :, None] * cs[t][:, None]
        dc[t] = (S[t + 1] * gy[t][:, :, None]).sum(1)
        along = (dS * bs[t][:, None]).sum(-1)  # (heads, size)
        dx[t] += dt[t][:, None] * along
        db[t] = dt[t][:, None] * (dS * shaped[t][:, :, None]).sum(1)
        kept = dS * decay[t][:, None]
        ddt[t] = (along * shaped[t]).sum(-1) + (kept * S[t] * a[:, None]).sum((1, 2))
        dS = kept
    db, dc = (v.reshape(n, groups, each, states).sum(2).reshape(n, -1) for v in (db, dc))
    return dx.reshape(x.shape), db, dc, ddt


def delta_back(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, decay: np.ndarray, beta: np.ndarray, g: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The gradients of q, k, v, decay and beta from that of `Ops.delta`'s result, all of one conversation.

    Parameters
    ----------
    q, k : (n, heads, dk).
    v, g : (n, heads, dv).
    decay : (n, heads, 1 or dk), logarithms.
    beta : (n, heads).
    """
    n, factor = len(q), exp(decay)
    S = np.zeros((n + 1, *q.shape[1:], v.shape[2]), np.float32)  # (heads, dk, dv) each
    left = np.empty_like(v)  # v − S′ᵀ k
    for t in range(n):
        faded = S[t] * factor[t][:, :, None]
        left[t] = v[t] - (faded * k[t][:, :, None]).sum(1)
        S[t + 1] = faded + k[t][:, :, None] * (beta[t][:, None] * left[t])[:, None]
    dq, dk, dv, dbeta = np.empty_like(q), np.empty_like(k), np.empty_like(v), np.empty_like(beta)
    ddecay = np.empty_like(decay)
    dS = np.zeros(S.shape[1:], np.float32)
    for t in range(n - 1, -1, -1):
        dq[t] = (S[t + 1] * g[t][:, None]).sum(-1)
        dS += q[t][:, :, None] * g[t][:, None]
        u = beta[t][:, None] * left[t]  # (heads, dv)
        du = (dS * k[t][:, :, None]).sum(1)
        dbeta[t] = (du * left[t]).sum(-1)
        dv[t] = beta[t][:, None] * du
        faded = S[t] * factor[t][:, :, None]
        dk[t] = (dS * u[:, None]).sum(-1) - (faded * dv[t][:, None]).sum(-1)
        dS = dS - k[t][:, :, None] * dv[t][:, None]  # by S′
        by_factor = dS * faded
        ddecay[t] = by_factor.sum((1, 2))[:, None] if decay.shape[2] == 1 else by_factor.sum(-1)
        dS = dS * factor[t][:, :, None]
    return dq, dk, dv, ddecay, dbeta
