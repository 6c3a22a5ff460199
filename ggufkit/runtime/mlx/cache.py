"""Keys and values on MLX's device: numbers, or Q8_0 and Q4_0 as MLX's quantized arrays.

Room grows with the conversation, in steps. What is quantized is rotated by a Walsh–Hadamard transform first, as on the
CPU, and has the numbers that GGML's encoders give.
"""

from __future__ import annotations

import math

import mlx.core as mx

from ggufkit.runtime.kv import cache_type, rotation
from ggufkit.runtime.ops import AttentionSpec, CacheSpec

__all__ = ["LayerCache", "Stored", "rotated"]

_STEP = 256  # tokens
_GROUP = 32

_DTYPES = {"F32": mx.float32, "F16": mx.float16}
_BITS = {"Q8_0": 8, "Q4_0": 4}


class Stored:
    """Keys, or values, of one layer: (kv_heads, tokens, head) in one of the cache's types."""

    def __init__(self, kind: str, heads: int, head: int, largest_rotation: bool):
        self.kind, self.heads = cache_type(kind, head), heads
        self.rotation = rotation(self.kind, head, largest_rotation)
        self._arrays: list[mx.array] = []

    @property
    def bits(self) -> int | None:
        return _BITS.get(self.kind)

    def write(self, x: mx.array, start: int) -> None:
        """x (kv_heads, n, head) float32, for the tokens from `start` on."""
        if self.rotation:
            x = rotated(x, self.rotation)
        parts = [x.astype(_DTYPES[self.kind])] if self.bits is None else _quantized(x, self.bits)
        end = start + x.shape[1]
        self._grow(parts, end)
        for array, part in zip(self._arrays, parts, strict=True):
            array[:, start:end] = part

    def _grow(self, parts: list[mx.array], tokens: int) -> None:
        have = self._arrays[0].shape[1] if self._arrays else 0
        if tokens <= have:
            return
        more = -(-(tokens - have) // _STEP) * _STEP
        rooms = [mx.zeros((self.heads, more, part.shape[-1]), part.dtype) for part in parts]
        if self._arrays:
            rooms = [mx.concatenate([old, new], axis=1) for old, new in zip(self._arrays, rooms, strict=True)]
        self._arrays = rooms

    def read(self, lo: int, hi: int) -> list[mx.array]:
        """What is stored of tokens lo:hi: the numbers, or codes, scales and biases."""
        return [array[:, lo:hi] for array in self._arrays]

    @property
    def arrays(self) -> list[mx.array]:
        return self._arrays


class LayerCache:
    """Keys and values of one layer."""

    def __init__(self, spec: AttentionSpec, types: CacheSpec):
        self.keys = Stored(types.keys, spec.kv_heads, spec.head_k, True)
        self.values = Stored(types.values, spec.kv_heads, spec.head_v, False)


def rotated(x: mx.array, length: int) -> mx.array:
    """Runs of `length` numbers of the last dimension through a Walsh–Hadamard transform; its own inverse."""
    runs = x.reshape(*x.shape[:-1], -1, length)
    return mx.hadamard_transform(runs, scale=1 / math.sqrt(length)).reshape(x.shape)


def _quantized(x: mx.array, bits: int) -> list[mx.array]:
    """The numbers of Q8_0 or Q4_0: x (…, head) → codes (…, head · bits / 32), scales and biases (…, head / 32)."""
    groups = x.reshape(*x.shape[:-1], -1, _GROUP)
    zero = 1 << (bits - 1)
    if bits == 8:
        d = mx.max(mx.abs(groups), axis=-1, keepdims=True) / 127
    else:
        at = mx.argmax(mx.abs(groups), axis=-1, keepdims=True)
        d = mx.take_along_axis(groups, at, axis=-1) / -8
    inverse = mx.where(d == 0, 0, 1 / d)
    scaled = groups * inverse
    # Q8_0 rounds halves away from zero, Q4_0 adds 8.5 and cuts off.
    q = mx.sign(scaled) * mx.floor(mx.abs(scaled) + 0.5) + zero if bits == 8 else mx.floor(scaled + 8.5)
    codes = mx.clip(q, 0, (1 << bits) - 1).astype(mx.uint32).reshape(*x.shape[:-1], -1, 32 // bits)
    packed = mx.sum(codes << mx.arange(0, 32, bits, dtype=mx.uint32), axis=-1)
    scales = d[..., 0].astype(mx.float16).astype(mx.float32)
    return [packed, scales, scales * -zero]
