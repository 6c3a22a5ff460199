"""Keys and values on MLX's device: numbers, or codes as MLX's quantized arrays.

Room grows with the conversation, in steps. What is quantized is rotated and rounded as `kv.types` says, so it has the
numbers that the CPU's cache has.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import numpy as np

from ggufkit.runtime.kv.types import FEW, UNLIKE, CacheType, cache_type
from ggufkit.runtime.mlx.levels import planes, turned
from ggufkit.runtime.ops import AttentionSpec, CacheSpec
from ggufkit.runtime.sizes import MLX_STEP

__all__ = ["LayerCache", "Stored"]

_NUMBERS = {"F32": mx.float32, "F16": mx.float16, "BF16": mx.bfloat16}


class Stored:
    """Keys, or values, of one layer: (kv_heads, tokens, head) in one of the cache's types."""

    def __init__(self, name: str, heads: int, head: int, *, values: bool):
        self.type, self.heads = cache_type(name, head, values=values), heads
        # The mean key, (kv_heads, 1, head) float32, that keys are kept without.
        self.centre = mx.zeros((heads, 1, head)) if self.type.centred else None
        self.rotation = self.type.rotation(head, values)
        self._arrays: list[mx.array] = []

    def write(self, x: mx.array, start: int) -> None:
        """x (kv_heads, n, head) float32, for the tokens from `start` on."""
        if self.centre is not None:
            if start == 0:
                mean = mx.mean(x[:, UNLIKE:], axis=1, keepdims=True)
                self.centre = mean if x.shape[1] >= FEW else mx.zeros_like(self.centre)
            x = x - self.centre
        x = turned(x, self.rotation)
        if self.type.leveled:
            parts = planes(x, self.type)
        elif self.type.quantized:
            parts = _quantized(x, self.type)
        else:
            parts = [x.astype(_NUMBERS[self.type.name])]
        end = start + x.shape[1]
        self._grow(parts, end)
        for array, part in zip(self._arrays, parts, strict=True):
            array[:, start:end] = part

    def _grow(self, parts: list[mx.array], tokens: int) -> None:
        have = self._arrays[0].shape[1] if self._arrays else 0
        if tokens <= have:
            return
        more = -(-(tokens - have) // MLX_STEP) * MLX_STEP
        rooms = [mx.zeros((self.heads, more, part.shape[-1]), part.dtype) for part in parts]
        if self._arrays:
            rooms = [mx.concatenate([old, new], axis=1) for old, new in zip(self._arrays, rooms, strict=True)]
        self._arrays = rooms

    def read(self, lo: int, hi: int) -> list[mx.array]:
        """What is stored of tokens lo:hi: the numbers, or codes, scales and biases, or what `levels.planes` gives."""
        return [array[:, lo:hi] for array in self._arrays]

    def restore(self, n: int, arrays: Sequence[np.ndarray]) -> None:
        """Hold what was read of the first `n` tokens of another."""
        if not n:
            return
        saved = [mx.array(array) for array in arrays]
        if self.type.name == "BF16":
            saved = [array.view(mx.bfloat16) for array in saved]
        self._grow(saved, n)
        for own, array in zip(self._arrays, saved, strict=True):
            if own[:, :n].shape != array.shape:
                raise ValueError("another cache's")
            own[:, :n] = array

    @property
    def parts(self) -> int:
        """How many arrays hold what is stored."""
        if self.type.leveled:
            return 3 if self.type.planes[1] else 2
        return 3 if self.type.quantized else 1

    @property
    def arrays(self) -> list[mx.array]:
        return self._arrays


class LayerCache:
    """Keys and values of one layer."""

    def __init__(self, spec: AttentionSpec, types: CacheSpec):
        self.keys = Stored(types.keys, spec.kv_heads, spec.head_k, values=False)
        if self.keys.centre is not None:
            spec.require_shifts()
        self.values = Stored(types.values, spec.kv_heads, spec.head_v, values=True)

    def prefix(self, n: int) -> list[np.ndarray]:
        arrays = [array for stored in (self.keys, self.values) for array in stored.read(0, n)]
        if self.keys.centre is not None:
            arrays.append(self.keys.centre)
        return [np.array(array.view(mx.uint16) if array.dtype == mx.bfloat16 else array) for array in arrays]

    def restore(self, n: int, arrays: Sequence[np.ndarray]) -> None:
        if self.keys.centre is not None:
            *arrays, centre = arrays
            self.keys.centre = mx.array(centre).reshape(self.keys.centre.shape)
        half = len(arrays) if not n else self.keys.parts
        self.keys.restore(n, arrays[:half])
        self.values.restore(n, arrays[half:])


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
