"""Keys and values of one layer in memory, as `planes` lays them out for `attention`."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ggufkit.kernels.jit import kernel
from ggufkit.runtime.cpu.planes import key_bytes, layout_of, value_bytes, write_keys, write_values
from ggufkit.runtime.kv.types import cache_type
from ggufkit.runtime.ops import AttentionSpec, CacheSpec

__all__ = ["STEP", "LayerCache", "rotate"]

STEP = 32  # tokens that attention reads at once
TILE = 16  # tokens of a tile of keys


class LayerCache:
    """Keys and values of one layer.

    Attributes
    ----------
    keys, values : arrays of bytes; see `planes`.
    key_layout, value_layout : their types.
    tokens : how many fit, a multiple of 32.
    key_rotation, value_rotation : length of the transform, a power of two; 0 for none.
    """

    def __init__(self, spec: AttentionSpec, types: CacheSpec, length: int):
        keys, values = cache_type(types.keys, spec.head_k), cache_type(types.values, spec.head_v)
        self.heads = spec.kv_heads
        self.key_layout, self.value_layout = layout_of(keys), layout_of(values)
        self.tokens = -(-length // STEP) * STEP
        # Pages are given by the system when they are first written.
        self.keys = np.zeros(spec.kv_heads * self.tokens * key_bytes(keys, spec.head_k), np.uint8)
        self.values = np.zeros(spec.kv_heads * self.tokens * value_bytes(values, spec.head_v), np.uint8)
        self.key_rotation = keys.rotation(spec.head_k, values=False)
        self.value_rotation = values.rotation(spec.head_v, values=True)

    @property
    def nbytes(self) -> int:
        return self.keys.nbytes + self.values.nbytes

    def write(self, k: np.ndarray, v: np.ndarray, start: int) -> None:
        """Keys (n, kv_heads × head_k) and values (n, kv_heads × head_v) of tokens `start …`; rotates them in place."""
        if self.key_rotation:
            rotate(k, self.key_rotation)
        if self.value_rotation:
            rotate(v, self.value_rotation)
        write_keys(k, self.keys, self.heads, self.tokens, start, self.key_layout)
        write_values(v, self.values, self.heads, self.tokens, start, self.value_layout)

    def prefix(self, n: int) -> list[np.ndarray]:
        keys, values = self._by_token()
        return [keys[:, : -(-n // TILE)], values[:, :n]]

    def restore(self, n: int, arrays: Sequence[np.ndarray]) -> None:
        for own, saved in zip(self._by_token(), arrays, strict=True):
            if saved.dtype != own.dtype or saved.shape[1] > own.shape[1]:
                raise ValueError("another cache's")
            own[:, : saved.shape[1]] = saved

    def _by_token(self) -> tuple[np.ndarray, np.ndarray]:
        """Keys (kv_heads, tiles, bytes) and values (kv_heads, tokens, bytes)."""
        return self.keys.reshape(self.heads, self.tokens // TILE, -1), self.values.reshape(self.heads, self.tokens, -1)


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
