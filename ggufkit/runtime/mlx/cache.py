"""Keys and values on MLX's device: numbers, or codes as MLX's quantized arrays.

Room grows with the conversation, in steps. What is quantized is rotated and rounded as `kv.types` says, so it has the
numbers that the CPU's cache has.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import mlx.core as mx
import numpy as np

from ggufkit.runtime.kv.types import CacheType, cache_type
from ggufkit.runtime.ops import AttentionSpec, CacheSpec

__all__ = ["LayerCache", "Stored", "rotated"]

_STEP = 256  # tokens
_NUMBERS = {32: mx.float32, 16: mx.float16}


class Stored:
    """Keys, or values, of one layer: (kv_heads, tokens, head) in one of the cache's types."""

    def __init__(self, name: str, heads: int, head: int, *, values: bool):
        self.type, self.heads = cache_type(name, head), heads
        self.rotation = self.type.rotation(head, values)
        self._arrays: list[mx.array] = []

    def write(self, x: mx.array, start: int) -> None:
        """x (kv_heads, n, head) float32, for the tokens from `start` on."""
        if self.rotation:
            x = rotated(x, self.rotation)
        parts = _quantized(x, self.type) if self.type.quantized else [x.astype(_NUMBERS[self.type.bits])]
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

    def restore(self, n: int, arrays: Sequence[np.ndarray]) -> None:
        """Hold what was read of the first `n` tokens of another."""
        if not n:
            return
        self._grow([mx.array(array) for array in arrays], n)
        for own, saved in zip(self._arrays, arrays, strict=True):
            if own[:, :n].shape != saved.shape:
                raise ValueError("another cache's")
            own[:, :n] = mx.array(saved)

    @property
    def arrays(self) -> list[mx.array]:
        return self._arrays


class LayerCache:
    """Keys and values of one layer."""

    def __init__(self, spec: AttentionSpec, types: CacheSpec):
        self.keys = Stored(types.keys, spec.kv_heads, spec.head_k, values=False)
        self.values = Stored(types.values, spec.kv_heads, spec.head_v, values=True)

    def prefix(self, n: int) -> list[np.ndarray]:
        return [np.array(array) for stored in (self.keys, self.values) for array in stored.read(0, n)]

    def restore(self, n: int, arrays: Sequence[np.ndarray]) -> None:
        half = len(arrays) if not n else 3 if self.keys.type.quantized else 1
        self.keys.restore(n, arrays[:half])
        self.values.restore(n, arrays[half:])


def rotated(x: mx.array, length: int) -> mx.array:
    """Runs of `length` numbers of the last dimension through a Walsh–Hadamard transform; its own inverse."""
    runs = x.reshape(*x.shape[:-1], -1, length)
    return mx.hadamard_transform(runs, scale=1 / math.sqrt(length)).reshape(x.shape)


def _quantized(x: mx.array, kind: CacheType) -> list[mx.array]:
    """x (…, head) → codes (…, head · bits / 32), scales and biases (…, head / block): x ≈ scale · code + bias."""
    blocks = x.reshape(*x.shape[:-1], -1, kind.block)
    top = (1 << kind.bits) - 1
    least = mx.min(blocks, axis=-1, keepdims=True) if kind.rule == "range" else mx.array(0.0)
    if kind.rule == "range":
        scale = (mx.max(blocks, axis=-1, keepdims=True) - least) / top
    elif kind.rule == "absolute":
        scale = mx.max(mx.abs(blocks), axis=-1, keepdims=True) / (kind.zero - 1)
    else:
        farthest = mx.argmax(mx.abs(blocks), axis=-1, keepdims=True)
        scale = mx.take_along_axis(blocks, farthest, axis=-1) / -kind.zero
    levels = (blocks - least) * mx.where(scale == 0, 0, 1 / scale)
    if kind.rule == "absolute":
        levels = mx.sign(levels) * mx.floor(mx.abs(levels) + 0.5) + kind.zero
    else:
        levels = mx.floor(levels + (kind.zero + 0.5))
    codes = mx.clip(levels, 0, top).astype(mx.uint32).reshape(x.shape)
    scales = _rounded(scale)
    return [_packed(codes, kind.bits), scales, _rounded(least) if kind.minimum else scales * -kind.zero]


def _rounded(numbers: mx.array) -> mx.array:
    """A number a block, (…, blocks, 1), to float16 and back: (…, blocks)."""
    return numbers[..., 0].astype(mx.float16).astype(mx.float32)


def _packed(codes: mx.array, bits: int) -> mx.array:
    """Codes (…, n) as one string of bits, low ones first: (…, n · bits / 32) uint32."""
    if 32 % bits:
        places = mx.arange(bits, dtype=mx.uint32)
        codes, bits = codes[..., None] >> places & 1, 1  # (…, n, bits)
        codes = codes.reshape(*codes.shape[:-2], -1)
    words = codes.reshape(*codes.shape[:-1], -1, 32 // bits)
    return mx.sum(words << mx.arange(0, 32, bits, dtype=mx.uint32), axis=-1)
