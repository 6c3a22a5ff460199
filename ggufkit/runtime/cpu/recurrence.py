"""Convolutions, state spaces, delta nets, RWKV: what every token changes and then reads.

Heads do not depend on each other, nor do a convolution's channels, so threads share them; a head's state stays in the
core's cache while all tokens pass.
"""

from __future__ import annotations

import numpy as np

from ggufkit.kernels.jit import kernel
from ggufkit.kernels.lane_math import exp
from ggufkit.kernels.lanes import load, multiply_add, splat, store, sum_lanes

__all__ = ["convolve", "delta", "scan", "shift", "wkv"]

ZERO = np.float32(0)


@kernel
def convolve(x, weights, bias, state, apart, out, lo, hi):
    """Channels `lo:hi` of a causal convolution (see `Ops.convolve`).

    Parameters
    ----------
    x, out : (n, channels) float32.
    weights : (taps, channels).
    bias : (channels,), or of length 0 for none.
    state : ((taps − 1) · apart, channels), changed.
    """
    n, taps, before = x.shape[0], weights.shape[0], state.shape[0]
    for t in range(n):
        for tap in range(taps):
            at = t + tap * apart - before
            for c in range(lo, hi):
                part = (x[at, c] if at >= 0 else state[at + before, c]) * weights[tap, c]
                out[t, c] = out[t, c] + part if tap else part
        if bias.shape[0]:
            for c in range(lo, hi):
                out[t, c] += bias[c]
    for row in range(before):
        at = n + row - before
        for c in range(lo, hi):
            state[row, c] = x[at, c] if at >= 0 else state[at + before, c]


@kernel
def shift(x, state, out):
    """Each row's predecessor: x, out (n, width); state (1, width), changed."""
    n, width = x.shape
    for c in range(width):
        out[0, c] = state[0, c]
        state[0, c] = x[n - 1, c]
    for t in range(1, n):
        for c in range(width):
            out[t, c] = x[t - 1, c]


@kernel
def scan(x, b, c, dt, a, d, state, groups, out, lo, hi):
    """Heads `lo:hi` of a state space (see `Ops.scan`).

    Parameters
    ----------
    x, out : (n, heads × size) float32.
    b, c : (n, groups × states).
    dt : (n, heads).
    a, d : (heads, 1 or states) and (heads,).
    state : (heads, size, states), changed.
    """
    heads, size, states = state.shape
    whole, alike = states // 16 * 16, a.shape[1] == 1
    flat, flat_b, flat_c, rates = state.reshape(-1), b.reshape(-1), c.reshape(-1), a.reshape(-1)
    for head in range(lo, hi):
        group = head // (heads // groups) * states
        for t in range(x.shape[0]):
            step, at = dt[t, head], t * groups * states + group
            same = np.exp(step * rates[head]) if alike else ZERO
            for p in range(size):
                base = (head * size + p) * states
                v = x[t, head * size + p]
                amount, total, rest = splat(step * v), splat(ZERO), ZERO
                for i in range(0, whole, 16):
                    decay = splat(same) if alike else exp(splat(step) * load(rates, head * states + i))
                    s = multiply_add(amount, load(flat_b, at + i), load(flat, base + i) * decay)
                    store(flat, base + i, s)
                    total = multiply_add(s, load(flat_c, at + i), total)
                for i in range(whole, states):
                    decay = same if alike else np.exp(step * rates[head * states + i])
                    flat[base + i] = flat[base + i] * decay + step * v * flat_b[at + i]
                    rest += flat[base + i] * flat_c[at + i]
                out[t, head * size + p] = sum_lanes(total) + rest + d[head] * v


@kernel
def delta(q, k, v, decay, beta, state, out, lo, hi):
    """Heads `lo:hi` of the gated delta rule (see `Ops.delta`).

    Parameters
    ----------
    q, k : (n, heads, dk) float32.
    v, out : (n, heads, dv).
    decay : (n, heads, 1 or dk), the factors themselves.
    beta : (n, heads).
    state : (heads, dk, dv), changed.
    """
    n, heads, dk = q.shape
    dv, alike = v.shape[2], decay.shape[2] == 1
    fours, whole = dv // 64 * 64, dv // 16 * 16
    flat, flat_v, flat_out = state.reshape(-1), v.reshape(-1), out.reshape(-1)
    for head in range(lo, hi):
        base = head * dk * dv
        for t in range(n):
            row, amount = (t * heads + head) * dv, splat(beta[t, head])
            for j in range(0, fours, 64):
                # Four sums at a time: each waits for its own last addition only.
                first, second, third, fourth = splat(ZERO), splat(ZERO), splat(ZERO), splat(ZERO)
                for i in range(dk):
                    at, key = base + i * dv + j, splat(k[t, head, i])
                    kept = splat(decay[t, head, 0 if alike else i])
                    s0, s1 = load(flat, at) * kept, load(flat, at + 16) * kept
                    s2, s3 = load(flat, at + 32) * kept, load(flat, at + 48) * kept
                    first, second = multiply_add(s0, key, first), multiply_add(s1, key, second)
                    third, fourth = multiply_add(s2, key, third), multiply_add(s3, key, fourth)
                new0, new1 = (load(flat_v, row + j) - first) * amount, (load(flat_v, row + j + 16) - second) * amount
                new2, new3 = (
                    (load(flat_v, row + j + 32) - third) * amount,
                    (load(flat_v, row + j + 48) - fourth) * amount,
                )
                first, second, third, fourth = splat(ZERO), splat(ZERO), splat(ZERO), splat(ZERO)
                for i in range(dk):
                    at, key, query = base + i * dv + j, splat(k[t, head, i]), splat(q[t, head, i])
                    kept = splat(decay[t, head, 0 if alike else i])
                    s0, s1 = load(flat, at) * kept, load(flat, at + 16) * kept
                    s2, s3 = load(flat, at + 32) * kept, load(flat, at + 48) * kept
                    s0, s1 = multiply_add(new0, key, s0), multiply_add(new1, key, s1)
                    s2, s3 = multiply_add(new2, key, s2), multiply_add(new3, key, s3)
                    store(flat, at, s0)
                    store(flat, at + 16, s1)
                    store(flat, at + 32, s2)
                    store(flat, at + 48, s3)
                    first, second = multiply_add(s0, query, first), multiply_add(s1, query, second)
                    third, fourth = multiply_add(s2, query, third), multiply_add(s3, query, fourth)
                store(flat_out, row + j, first)
                store(flat_out, row + j + 16, second)
                store(flat_out, row + j + 32, third)
                store(flat_out, row + j + 48, fourth)
            for j in range(fours, whole, 16):
                known = splat(ZERO)
                for i in range(dk):
                    at = base + i * dv + j
                    s = load(flat, at) * splat(decay[t, head, 0 if alike else i])
                    store(flat, at, s)
                    known = multiply_add(s, splat(k[t, head, i]), known)
                new, found = (load(flat_v, row + j) - known) * amount, splat(ZERO)
                for i in range(dk):
                    at = base + i * dv + j
                    s = multiply_add(new, splat(k[t, head, i]), load(flat, at))
                    store(flat, at, s)
                    found = multiply_add(s, splat(q[t, head, i]), found)
                store(flat_out, row + j, found)
            for j in range(whole, dv):
                known = ZERO
                for i in range(dk):
                    at = base + i * dv + j
                    flat[at] *= decay[t, head, 0 if alike else i]
                    known += flat[at] * k[t, head, i]
                new, found = (flat_v[row + j] - known) * beta[t, head], ZERO
                for i in range(dk):
                    at = base + i * dv + j
                    flat[at] += new * k[t, head, i]
                    found += flat[at] * q[t, head, i]
                flat_out[row + j] = found


@kernel
def wkv(r, w, k, v, a, b, bonus, state, out, lo, hi):
    """Heads `lo:hi` of RWKV's recurrence (see `Ops.wkv`).

    Parameters
    ----------
    r, w, k, v, a, b, out : (n, heads, size) float32; a and b of length 0 for none.
    bonus : (heads, size), or of length 0 for none.
    state : (heads, size, size), changed.
    """
    n, heads, size = v.shape
    whole, unlearns, itself = size // 16 * 16, a.shape[0] > 0, bonus.shape[0] > 0
    flat, flat_v, flat_out = state.reshape(-1), v.reshape(-1), out.reshape(-1)
    for head in range(lo, hi):
        base = head * size * size
        for t in range(n):
            row = (t * heads + head) * size
            for j in range(0, whole, 16):
                value, known, found = load(flat_v, row + j), splat(ZERO), splat(ZERO)
                if unlearns:
                    for i in range(size):
                        known = multiply_add(load(flat, base + i * size + j), splat(a[t, head, i]), known)
                for i in range(size):
                    at = base + i * size + j
                    s, read = load(flat, at), splat(r[t, head, i])
                    if itself:
                        own = multiply_add(value, splat(bonus[head, i] * k[t, head, i]), s)
                        found = multiply_add(own, read, found)
                    s = multiply_add(value, splat(k[t, head, i]), s * splat(w[t, head, i]))
                    if unlearns:
                        s = multiply_add(known, splat(b[t, head, i]), s)
                    store(flat, at, s)
                    if not itself:
                        found = multiply_add(s, read, found)
                store(flat_out, row + j, found)
            for j in range(whole, size):
                value, known, found = flat_v[row + j], ZERO, ZERO
                if unlearns:
                    for i in range(size):
                        known += flat[base + i * size + j] * a[t, head, i]
                for i in range(size):
                    at = base + i * size + j
                    if itself:
                        found += (flat[at] + value * (bonus[head, i] * k[t, head, i])) * r[t, head, i]
                    flat[at] = flat[at] * w[t, head, i] + value * k[t, head, i]
                    if unlearns:
                        flat[at] += known * b[t, head, i]
                    if not itself:
                        found += flat[at] * r[t, head, i]
                flat_out[row + j] = found
