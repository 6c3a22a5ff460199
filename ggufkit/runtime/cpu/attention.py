"""Attention in one stream over the cache: no matrix of scores, however long the context.

Rows are (token, head) pairs of the queries that share a key-value head, 32 at a time; tokens of the cache come 32 at a
time, too. For each such pair of blocks

    s = q · k          (rows, 32)        soft cap, mask
    m' = max(m, s)     what was summed so far shrinks by e^(m − m')
    p = e^(s − m')
    sum = sum + p      values = values + p · v

and at the end values / sum.

Source: Milakov, Gimelshein, "Online normalizer calculation for softmax", 2018; Dao et al., "FlashAttention", 2022.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import numpy as np

from ggufkit.kernels.jit import CPU_FEATURES, helper, inlined, specialised
from ggufkit.kernels.lane_math import exp, tanh
from ggufkit.kernels.lanes import (
    fabs,
    highest,
    lane_numbers,
    load,
    maximum,
    multiply_add,
    select,
    splat,
    store,
    sum_lanes,
    to_f32,
)
from ggufkit.runtime.cpu.planes import Reader, key_reader, read_float_keys, read_float_values, value_reader
from ggufkit.runtime.kv.types import CacheType

__all__ = ["ROWS", "Pass", "attention_of"]

ROWS = 32
# Eight sums of sixteen lanes do not wait for one another; registers of half the width have room for four.
_TWO_TILES = "avx512f" in CPU_FEATURES
ZERO, ONE = np.float32(0), np.float32(1)
# `attention_of` binds these anew for each pair of types.
read_keys, KEY_LOW, KEY_HIGH = read_float_keys, 0, 0
read_values, VALUE_LOW, VALUE_HIGH = read_float_values, 0, 0
_LEAST = np.float32(-1e30)  # the score of what is not seen: finite, so that differences are numbers


class Pass(NamedTuple):
    """The numbers of one call; see `AttentionSpec` and `LayerCache`.

    `start` is the first query's position, `seen` how many tokens the cache holds, these queries' included.
    """

    heads: int
    kv_heads: int
    head_k: int
    head_v: int
    tokens: int
    key_layout: int
    value_layout: int
    start: int
    seen: int
    window: int
    chunked: bool
    two_sided: bool
    causal: bool
    scale: np.float32
    cap: np.float32


def _attend(q, keys, values, sinks, slopes, call, out, lo, hi):
    """Items `lo:hi` of (kv_head, block of 32 rows).

    Parameters
    ----------
    q : (n, heads × head_k) float32.
    keys, values : bytes of a `LayerCache`.
    sinks, slopes : (heads,) float32, or empty.
    call : a `Pass`.
    out : (n, heads × head_v) float32.
    """
    n = q.shape[0]
    group = call.heads // call.kv_heads
    rows_all = n * group
    blocks = (rows_all + ROWS - 1) // ROWS
    padded = (call.head_v + 31) // 32 * 32
    queries = np.empty(ROWS * call.head_k, np.float32)
    tile = np.empty(2 * 16 * call.head_k, np.float32)
    second = tile[16 * call.head_k :]
    key_bytes = keys.shape[0] // (call.kv_heads * call.tokens)
    value_bytes = values.shape[0] // (call.kv_heads * call.tokens)
    rows_v = np.empty(32 * padded, np.float32)
    found = np.empty(ROWS * padded, np.float32)
    scores = np.empty(ROWS * 32, np.float32)
    best = np.empty(ROWS, np.float32)
    total = np.empty(ROWS * 16, np.float32)
    for item in range(lo, hi):
        kv_head, first_row = item // blocks, item % blocks * ROWS
        rows = min(ROWS, rows_all - first_row)
        fours = (rows + 3) // 4 * 4
        _gather_queries(q, call, kv_head, first_row, rows, fours, queries)
        for i in range(fours * padded):
            found[i] = ZERO
        for i in range(fours * 16):
            total[i] = ZERO
        for r in range(fours):
            best[r] = _LEAST
        first_token = call.start + first_row // group
        last_token = call.start + (first_row + rows - 1) // group
        begin, end = max(0, _first_seen(call, first_token)) // 32 * 32, _last_seen(call, last_token)
        for at in range(begin, end, 32):
            count = min(32, call.seen - at)
            first = kv_head * call.tokens + at
            read_keys(keys, first * key_bytes, call.head_k, call.key_layout, KEY_LOW, KEY_HIGH, tile)
            if count > 16:
                after = (first + 16) * key_bytes
                read_keys(keys, after, call.head_k, call.key_layout, KEY_LOW, KEY_HIGH, second)
            else:
                second[:] = ZERO
            read_values(
                values,
                first * value_bytes,
                value_bytes,
                count,
                call.head_v,
                call.value_layout,
                VALUE_LOW,
                VALUE_HIGH,
                rows_v,
                padded,
            )
            for i in range(count * padded, 32 * padded):
                rows_v[i] = ZERO
            _score(queries, tile, call.head_k, fours, scores)
            for r in range(rows):
                position = call.start + (first_row + r) // group
                if slopes.shape[0]:
                    _lean(scores, r, at, position, slopes[kv_head * group + (first_row + r) % group])
                lower, upper = _first_seen(call, position), _last_seen(call, position)
                _soften(scores, r, at, lower, upper, call.cap, best, total, found, padded)
            for r in range(rows * 32, fours * 32):
                scores[r] = ZERO
            _collect(scores, rows_v, padded, fours, found)
        for r in range(rows):
            row = first_row + r
            head = kv_head * group + row % group
            amount = sum_lanes(load(total, r * 16))
            shrink = ONE
            if sinks.shape[0]:
                most = max(best[r], sinks[head])
                shrink = np.exp(best[r] - most)
                amount = amount * shrink + np.exp(sinks[head] - most)
            factor = shrink / amount
            for d in range(call.head_v):
                out[row // group, head * call.head_v + d] = found[r * padded + d] * factor


def attention_of(keys: CacheType, values: CacheType) -> Callable[..., None]:
    """The kernel for keys and values of these types, see `_attend`; types that are read alike share one."""
    return _attention_with(key_reader(keys), value_reader(values))


@cache
def _attention_with(key: Reader, value: Reader) -> Callable[..., None]:
    return specialised(
        _attend,
        f"attend_{key.name}_{value.name}",
        __file__,
        read_keys=key.function,
        KEY_LOW=key.low,
        KEY_HIGH=key.high,
        read_values=value.function,
        VALUE_LOW=value.low,
        VALUE_HIGH=value.high,
    )


@inlined
def _first_seen(call, position):
    """The first token that a query sees."""
    if not call.window:
        return 0
    if call.chunked:
        return position // call.window * call.window
    return position - call.window // 2 if call.two_sided else position - call.window + 1


@inlined
def _last_seen(call, position):
    """One beyond the last token that it sees."""
    if call.window and call.two_sided:
        return min(position + call.window // 2 + 1, call.seen)
    return position + 1 if call.causal else call.seen


@inlined
def _gather_queries(q, call, kv_head, first_row, rows, fours, queries):
    """The rows of one block, scaled; filled up with zeros to a multiple of four."""
    group = call.heads // call.kv_heads
    for r in range(rows):
        row = first_row + r
        at = (kv_head * group + row % group) * call.head_k
        for d in range(call.head_k):
            queries[r * call.head_k + d] = q[row // group, at + d] * call.scale
    for i in range(rows * call.head_k, fours * call.head_k):
        queries[i] = ZERO


@inlined
def _score(queries, tile, head, fours, scores):
    """q · k of 32 tokens: sums that do not wait for one another, as many as there are registers for."""
    for r in range(0, fours, 4):
        if _TWO_TILES:
            _score_two(queries, tile, head, r, scores)
        else:
            _score_one(queries, tile, 0, head, r, scores, r * 32)
            _score_one(queries, tile, head * 16, head, r, scores, r * 32 + 16)


@inlined
def _score_one(queries, tile, first, head, r, scores, at):
    """Four rows with one tile of 16 tokens."""
    a, b, c, d = splat(ZERO), splat(ZERO), splat(ZERO), splat(ZERO)
    for i in range(head):
        x, q = load(tile, first + i * 16), r * head + i
        a = multiply_add(splat(queries[q]), x, a)
        b = multiply_add(splat(queries[q + head]), x, b)
        c = multiply_add(splat(queries[q + 2 * head]), x, c)
        d = multiply_add(splat(queries[q + 3 * head]), x, d)
    store(scores, at, a)
    store(scores, at + 32, b)
    store(scores, at + 64, c)
    store(scores, at + 96, d)


@inlined
def _score_two(queries, tile, head, r, scores):
    """Four rows with two tiles."""
    second = head * 16
    a, b, c, d = splat(ZERO), splat(ZERO), splat(ZERO), splat(ZERO)
    e, f, g, h = splat(ZERO), splat(ZERO), splat(ZERO), splat(ZERO)
    q0, q1, q2, q3 = r * head, (r + 1) * head, (r + 2) * head, (r + 3) * head
    for i in range(head):
        x, y = load(tile, i * 16), load(tile, second + i * 16)
        w = splat(queries[q0 + i])
        a, e = multiply_add(w, x, a), multiply_add(w, y, e)
        w = splat(queries[q1 + i])
        b, f = multiply_add(w, x, b), multiply_add(w, y, f)
        w = splat(queries[q2 + i])
        c, g = multiply_add(w, x, c), multiply_add(w, y, g)
        w = splat(queries[q3 + i])
        d, h = multiply_add(w, x, d), multiply_add(w, y, h)
    at = r * 32
    store(scores, at, a)
    store(scores, at + 16, e)
    store(scores, at + 32, b)
    store(scores, at + 48, f)
    store(scores, at + 64, c)
    store(scores, at + 80, g)
    store(scores, at + 96, d)
    store(scores, at + 112, h)


@helper
def _lean(scores, r, at, position, slope):
    """Scores of one row less the slope times the distance of each token."""
    token = to_f32(lane_numbers() + splat(np.int32(at - position)))
    low, high = load(scores, r * 32), load(scores, r * 32 + 16)
    store(scores, r * 32, low - fabs(token) * splat(slope))
    store(scores, r * 32 + 16, high - fabs(token + splat(np.float32(16))) * splat(slope))


@inlined
def _soften(scores, r, at, lower, upper, cap, best, total, found, padded):
    """Scores of one row to e^(s − m), 0 for tokens outside `lower … upper`; shrinks what was summed before."""
    x, y = load(scores, r * 32), load(scores, r * 32 + 16)
    if cap != ZERO:
        x = tanh(x / splat(cap)) * splat(cap)
        y = tanh(y / splat(cap)) * splat(cap)
    if at < lower or at + 32 > upper:
        token = lane_numbers() + splat(np.int32(at))
        low, high = splat(np.int32(lower)), splat(np.int32(upper))
        x = select((token >= low) & (token < high), x, splat(_LEAST))
        token = token + splat(np.int32(16))
        y = select((token >= low) & (token < high), y, splat(_LEAST))
    most = highest(maximum(x, y))
    if most > best[r]:
        shrink = np.exp(best[r] - most) if best[r] > _LEAST else ZERO
        best[r] = most
        store(total, r * 16, load(total, r * 16) * splat(shrink))
        for d in range(0, padded, 16):
            store(found, r * padded + d, load(found, r * padded + d) * splat(shrink))
    elif best[r] == _LEAST:
        # Nothing of this step is seen, nor of those before.
        store(scores, r * 32, splat(ZERO))
        store(scores, r * 32 + 16, splat(ZERO))
        return
    m = splat(best[r])
    unseen = splat(np.float32(-1e29))
    x = select(x > unseen, exp(x - m), splat(ZERO))
    y = select(y > unseen, exp(y - m), splat(ZERO))
    store(scores, r * 32, x)
    store(scores, r * 32 + 16, y)
    store(total, r * 16, load(total, r * 16) + x + y)


@inlined
def _collect(scores, rows_v, padded, fours, found):
    """found += p · v."""
    for r in range(0, fours, 4):
        if _TWO_TILES:
            for lo in range(0, padded, 32):
                _collect_two(scores, rows_v, padded, r, lo, found)
        else:
            for lo in range(0, padded, 16):
                _collect_one(scores, rows_v, padded, r, lo, found)


@inlined
def _collect_one(scores, rows_v, padded, r, lo, found):
    """Four rows by 16 numbers."""
    at, s = r * padded + lo, r * 32
    a, b = load(found, at), load(found, at + padded)
    c, d = load(found, at + 2 * padded), load(found, at + 3 * padded)
    for t in range(32):
        x = load(rows_v, t * padded + lo)
        a = multiply_add(splat(scores[s + t]), x, a)
        b = multiply_add(splat(scores[s + 32 + t]), x, b)
        c = multiply_add(splat(scores[s + 64 + t]), x, c)
        d = multiply_add(splat(scores[s + 96 + t]), x, d)
    store(found, at, a)
    store(found, at + padded, b)
    store(found, at + 2 * padded, c)
    store(found, at + 3 * padded, d)


@inlined
def _collect_two(scores, rows_v, padded, r, lo, found):
    """Four rows by 32 numbers."""
    f0, f1, f2, f3 = r * padded + lo, (r + 1) * padded + lo, (r + 2) * padded + lo, (r + 3) * padded + lo
    a, e = load(found, f0), load(found, f0 + 16)
    b, f = load(found, f1), load(found, f1 + 16)
    c, g = load(found, f2), load(found, f2 + 16)
    d, h = load(found, f3), load(found, f3 + 16)
    for t in range(32):
        x, y = load(rows_v, t * padded + lo), load(rows_v, t * padded + lo + 16)
        p = splat(scores[r * 32 + t])
        a, e = multiply_add(p, x, a), multiply_add(p, y, e)
        p = splat(scores[r * 32 + 32 + t])
        b, f = multiply_add(p, x, b), multiply_add(p, y, f)
        p = splat(scores[r * 32 + 64 + t])
        c, g = multiply_add(p, x, c), multiply_add(p, y, g)
        p = splat(scores[r * 32 + 96 + t])
        d, h = multiply_add(p, x, d), multiply_add(p, y, h)
    store(found, f0, a)
    store(found, f0 + 16, e)
    store(found, f1, b)
    store(found, f1 + 16, f)
    store(found, f2, c)
    store(found, f2 + 16, g)
    store(found, f3, d)
    store(found, f3 + 16, h)
