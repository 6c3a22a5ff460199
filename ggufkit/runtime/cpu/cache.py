"""Keys and values of one layer in memory, as `planes` lays them out for `attention`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ggufkit.runtime.cpu.attention import attention_of
from ggufkit.runtime.cpu.levels import find_codes, round_queries
from ggufkit.runtime.cpu.planes import key_bytes, layout_of, place_codes, value_bytes, write_keys, write_values
from ggufkit.runtime.kv.types import Rotation, cache_type
from ggufkit.runtime.ops import AttentionSpec, CacheSpec
from ggufkit.runtime.sizes import CPU_STEP
from ggufkit.turboquant.kernels import turn
from ggufkit.turboquant.rotation import hartley, part_of, signs_of

__all__ = ["LayerCache", "Turn"]

TILE = 16  # tokens of a tile of keys


class LayerCache:
    """Keys and values of one layer.

    Attributes
    ----------
    keys, values : arrays of bytes; see `planes`.
    key_type, value_type : their types; key_layout, value_layout : the same for kernels.
    tokens : how many fit, a multiple of 32.
    attend : the kernel that reads these types.
    key_turn, value_turn : how heads are rotated.
    """

    def __init__(self, spec: AttentionSpec, types: CacheSpec, length: int):
        keys, values = cache_type(types.keys, spec.head_k), cache_type(types.values, spec.head_v)
        self.heads = spec.kv_heads
        self.key_type, self.value_type = keys, values
        self.key_layout, self.value_layout = layout_of(keys, spec.head_k), layout_of(values, spec.head_v)
        self.attend = attention_of(keys, values)
        self.tokens = -(-length // CPU_STEP) * CPU_STEP
        # Pages are given by the system when they are first written.
        self.keys = np.zeros(spec.kv_heads * self.tokens * key_bytes(keys, spec.head_k), np.uint8)
        self.values = np.zeros(spec.kv_heads * self.tokens * value_bytes(values, spec.head_v), np.uint8)
        self.key_turn = Turn(keys.rotation(spec.head_k, values=False))
        self.value_turn = Turn(values.rotation(spec.head_v, values=True))

    @property
    def nbytes(self) -> int:
        return self.keys.nbytes + self.values.nbytes

    def write(self, k: np.ndarray, v: np.ndarray, start: int) -> None:
        """Keys (n, kv_heads × head_k) and values (n, kv_heads × head_v) of tokens `start …`; rotates them in place."""
        self._write(k, self.keys, start, keys=True)
        self._write(v, self.values, start, keys=False)

    def turn_queries(self, q: np.ndarray) -> None:
        """Rotate queries (n, heads × head_k) in place as the keys are, and round them where llama.cpp does."""
        self.key_turn.forward(q)
        if self.key_type.rounds_queries:
            round_queries(q.reshape(-1, 32))

    def _write(self, x: np.ndarray, data: np.ndarray, start: int, *, keys: bool) -> None:
        kind, layout = (self.key_type, self.key_layout) if keys else (self.value_type, self.value_layout)
        if kind.rule != "turbo":  # whose encoder rotates
            (self.key_turn if keys else self.value_turn).forward(x)
        if kind.leveled:
            codes, scales = find_codes(kind, x, self.heads)
            place_codes(codes, scales, data, self.tokens, start, layout, keys)
        else:
            (write_keys if keys else write_values)(x, data, self.heads, self.tokens, start, layout)

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


class Turn:
    """A rotation of heads, in their place; None turns nothing."""

    def __init__(self, rotation: Rotation | None):
        self._size = 0 if rotation is None else rotation.size
        if rotation is not None:
            self._part = part_of(rotation.size)
            self._mix = hartley(rotation.size // self._part)
            self._signs = signs_of(rotation.size, 0) if rotation.random else np.ones(rotation.size, np.float32)

    def forward(self, x: np.ndarray) -> None:
        """Rotate each run of numbers of `x`, contiguous rows of heads."""
        if self._size:
            turn(x.reshape(-1, self._size), self._signs, self._mix, self._part, True)

    def back(self, x: np.ndarray) -> None:
        """Undo it."""
        if self._size:
            turn(x.reshape(-1, self._size), self._signs, self._mix, self._part, False)
