"""Keys and values in memory, laid out for `attention`.

Sixteen consecutive tokens are the lanes of a vector, so a tile of keys is (head_k, 16): the number d of all sixteen
side by side. A score is then a sum over d without any sum across lanes.

    keys      (kv_heads, tiles, tile)          tile     F32, F16   head_k × 16 numbers
                                                        Q8_0       head_k / 32 × (16 × f2 scale, 32 × 16 × i1)
                                                        Q4_0       head_k / 32 × (16 × f2 scale, 16 × 16 × u1)
    values    (kv_heads, tokens, row)          row      the format's blocks; F32, F16: filled up to a multiple of 32

A byte of a Q4_0 tile holds d in its low half and d + 16 in its high half, as the format's own blocks do.

Quantized keys and values are rotated by a Walsh–Hadamard transform first: outliers spread over the head. The transform
is its own inverse and keeps products, so queries are rotated too, and what attention finds is rotated back.

Source: `llama_kv_cache` in src/llama-kv-cache.cpp of llama.cpp (when it rotates, and by which sizes).
"""

from __future__ import annotations

import math

import numpy as np

from ggufkit.kernels.blocks import read_half_lanes, write_half
from ggufkit.kernels.jit import helper, kernel
from ggufkit.kernels.lane_math import load_float
from ggufkit.kernels.lanes import load, load_half, splat, store, to_f32
from ggufkit.runtime.kv import cache_type, rotation
from ggufkit.runtime.ops import AttentionSpec, CacheSpec

__all__ = ["KINDS", "LayerCache", "read_keys", "read_values", "rotate"]

F32, F16, Q8_0, Q4_0 = 0, 1, 2, 3
KINDS = {"F32": F32, "F16": F16, "Q8_0": Q8_0, "Q4_0": Q4_0}
_BLOCK_BYTES = {Q8_0: 34, Q4_0: 18}  # of 32 numbers
_NUMBER_BYTES = {F32: 4, F16: 2}
TILE = 16
STEP = 32  # tokens that attention reads at once

ZERO, ONE = np.float32(0), np.float32(1)


class LayerCache:
    """Keys and values of one layer.

    Attributes
    ----------
    keys, values : arrays of bytes; see above.
    key_kind, value_kind : of `KINDS`.
    tokens : how many fit, a multiple of 32.
    key_rotation, value_rotation : length of the transform, a power of two; 0 for none.
    """

    def __init__(self, spec: AttentionSpec, types: CacheSpec, length: int):
        key_type, value_type = cache_type(types.keys, spec.head_k), cache_type(types.values, spec.head_v)
        self.key_kind, self.value_kind = KINDS[key_type], KINDS[value_type]
        self.tokens = -(-length // STEP) * STEP
        if self.key_kind in _NUMBER_BYTES:
            row = spec.head_k * _NUMBER_BYTES[self.key_kind]
        else:
            row = spec.head_k // 32 * _BLOCK_BYTES[self.key_kind]
        # Pages are given by the system when they are first written.
        self.keys = np.zeros(spec.kv_heads * self.tokens * row, np.uint8)
        self.value_row = value_bytes(self.value_kind, spec.head_v)
        self.values = np.zeros(spec.kv_heads * self.tokens * self.value_row, np.uint8)
        self.key_rotation = rotation(key_type, spec.head_k, largest=True)
        self.value_rotation = rotation(value_type, spec.head_v, largest=False)

    @property
    def nbytes(self) -> int:
        return self.keys.nbytes + self.values.nbytes

    def write(self, k: np.ndarray, v: np.ndarray, start: int, spec: AttentionSpec) -> None:
        """Keys (n, kv_heads × head_k) and values (n, kv_heads × head_v) of tokens `start …`; rotates them in place."""
        if self.key_rotation:
            rotate(k, self.key_rotation)
        if self.value_rotation:
            rotate(v, self.value_rotation)
        write_keys(k, self.keys, spec.kv_heads, self.tokens, start, self.key_kind)
        write_values(v, self.values, spec.kv_heads, self.tokens, start, self.value_kind)


def value_bytes(kind: int, head: int) -> int:
    """Bytes of a token's values of one head."""
    if kind in _NUMBER_BYTES:
        return -(-head // 32) * 32 * _NUMBER_BYTES[kind]
    return head // 32 * _BLOCK_BYTES[kind]


def rotate(x: np.ndarray, size: int) -> None:
    """Walsh–Hadamard transform of each `size` consecutive numbers of `x`, in place."""
    _rotate(x.reshape(-1, size), np.float32(1 / math.sqrt(size)))


@kernel
def _rotate(x, factor):
    rows, size = x.shape
    for row in range(rows):
        half = 1
        while half < size:
            for lo in range(0, size, 2 * half):
                for i in range(lo, lo + half):
                    a, b = x[row, i], x[row, i + half]
                    x[row, i], x[row, i + half] = a + b, a - b
            half *= 2
        for i in range(size):
            x[row, i] *= factor


@helper
def _write_float(data, at, value):
    bits = np.float32(value).view(np.uint32)
    for i in range(4):
        data[at + i] = np.uint8(bits >> np.uint32(8 * i))


@helper
def _block_scale(x, row, lo, kind):
    """d of 32 numbers as the format's encoder takes it, and its inverse."""
    most, signed = ZERO, ZERO
    for i in range(lo, lo + 32):
        if abs(x[row, i]) > most:
            most, signed = abs(x[row, i]), x[row, i]
    d = most / np.float32(127) if kind == Q8_0 else signed / np.float32(-8)
    return d, ONE / d if d != ZERO else ZERO


@helper
def _level(x, inverse, kind):
    """Q8_0: rounded, ties away from zero. Q4_0: 0 … 15."""
    if kind == Q8_0:
        level = x * inverse
        return int(level + np.float32(0.49999997) if level >= ZERO else level - np.float32(0.49999997))
    return min(15, int(x * inverse + np.float32(8.5)))


@kernel
def write_keys(k, data, kv_heads, tokens, start, kind):
    """Rows of `k` into their lanes of the tiles."""
    n, width = k.shape
    head = width // kv_heads
    row_bytes = data.shape[0] // (kv_heads * tokens)
    for token in range(n):
        tile, lane = (start + token) // 16, (start + token) % 16
        for h in range(kv_heads):
            at, lo = (h * tokens + tile * 16) * row_bytes, h * head
            if kind == F32:
                for d in range(head):
                    _write_float(data, at + (d * 16 + lane) * 4, k[token, lo + d])
            elif kind == F16:
                for d in range(head):
                    write_half(data, at + (d * 16 + lane) * 2, k[token, lo + d])
            else:
                for block in range(0, head, 32):
                    d, inverse = _block_scale(k, token, lo + block, kind)
                    write_half(data, at + 2 * lane, d)
                    at += 32
                    if kind == Q8_0:
                        for i in range(32):
                            data[at + i * 16 + lane] = np.uint8(_level(k[token, lo + block + i], inverse, kind))
                        at += 512
                    else:
                        for i in range(16):
                            low = _level(k[token, lo + block + i], inverse, kind)
                            high = _level(k[token, lo + block + i + 16], inverse, kind)
                            data[at + i * 16 + lane] = np.uint8(low | high << 4)
                        at += 256


@kernel
def write_values(v, data, kv_heads, tokens, start, kind):
    """Rows of `v` as rows of blocks."""
    n, width = v.shape
    head = width // kv_heads
    row_bytes = data.shape[0] // (kv_heads * tokens)
    for token in range(n):
        for h in range(kv_heads):
            at, lo = (h * tokens + start + token) * row_bytes, h * head
            if kind == F32:
                for d in range(head):
                    _write_float(data, at + d * 4, v[token, lo + d])
            elif kind == F16:
                for d in range(head):
                    write_half(data, at + d * 2, v[token, lo + d])
            else:
                for block in range(0, head, 32):
                    d, inverse = _block_scale(v, token, lo + block, kind)
                    write_half(data, at, d)
                    at += 2
                    if kind == Q8_0:
                        for i in range(32):
                            data[at + i] = np.uint8(_level(v[token, lo + block + i], inverse, kind))
                        at += 32
                    else:
                        for i in range(16):
                            low = _level(v[token, lo + block + i], inverse, kind)
                            high = _level(v[token, lo + block + i + 16], inverse, kind)
                            data[at + i] = np.uint8(low | high << 4)
                        at += 16


@helper
def read_keys(data, at, head, kind, out):
    """A tile at byte `at` as float32: (head, 16), flat."""
    if kind == F32:
        for d in range(head):
            store(out, d * 16, load_float(data, at + d * 64))
    elif kind == F16:
        for d in range(head):
            store(out, d * 16, load_half(data, at + d * 32))
    elif kind == Q8_0:
        for block in range(0, head, 32):
            scale = load_half(data, at)
            at += 32
            for i in range(32):
                # The sign of a byte that was read without one.
                level = (load(data, at + i * 16) ^ splat(np.int32(128))) - splat(np.int32(128))
                store(out, (block + i) * 16, to_f32(level) * scale)
            at += 512
    else:
        for block in range(0, head, 32):
            scale = load_half(data, at)
            at += 32
            for i in range(16):
                both = load(data, at + i * 16)
                low = (both & splat(np.int32(15))) - splat(np.int32(8))
                high = (both >> splat(np.int32(4))) - splat(np.int32(8))
                store(out, (block + i) * 16, to_f32(low) * scale)
                store(out, (block + i + 16) * 16, to_f32(high) * scale)
            at += 256


@helper
def read_values(data, at, head, kind, out, base):
    """One token's values at byte `at` as float32, from `out[base]` on."""
    if kind == F32:
        for d in range(0, head, 16):
            store(out, base + d, load_float(data, at + d * 4))
    elif kind == F16:
        for d in range(0, head, 16):
            store(out, base + d, load_half(data, at + d * 2))
    elif kind == Q8_0:
        for block in range(0, head, 32):
            scale = read_half_lanes(data, at)
            for i in range(0, 32, 16):
                level = (load(data, at + 2 + i) ^ splat(np.int32(128))) - splat(np.int32(128))
                store(out, base + block + i, to_f32(level) * scale)
            at += 34
    else:
        for block in range(0, head, 32):
            scale = read_half_lanes(data, at)
            both = load(data, at + 2)
            low = (both & splat(np.int32(15))) - splat(np.int32(8))
            high = (both >> splat(np.int32(4))) - splat(np.int32(8))
            store(out, base + block, to_f32(low) * scale)
            store(out, base + block + 16, to_f32(high) * scale)
            at += 18
