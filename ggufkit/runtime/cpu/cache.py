"""Keys and values of one layer in memory, as `planes` lays them out for `attention`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ggufkit.runtime.cpu.attention import attention_of
from ggufkit.runtime.cpu.calls import NOW, Calls
from ggufkit.runtime.cpu.levels import centre_keys, first_level, fit_codes, round_queries
from ggufkit.runtime.cpu.planes import key_bytes, layout_of, place_codes, value_bytes, write_codes, write_numbers
from ggufkit.runtime.kv.types import CacheType, Rotation, cache_type
from ggufkit.runtime.ops import AttentionSpec, CacheSpec
from ggufkit.runtime.sizes import CPU_STEP
from ggufkit.storage.memory import sparse_zeros
from ggufkit.turboquant.kernels import kernels_of, turn
from ggufkit.turboquant.rotation import hartley, part_of, signs_of
from ggufkit.turboquant.vectors import code_of

__all__ = ["LayerCache", "Turn"]

TILE = 16  # tokens of a tile of keys
# Where keys and values begin in their pages: Zen 5 reads them slower, by a quarter of a 1B model's step at 12,000
# tokens, where heads begin at multiples of 256 bytes.
_START = 192


class LayerCache:
    """Keys and values of one layer.

    Attributes
    ----------
    keys, values : arrays of bytes; see `planes`.
    centre : the mean key that keys are kept without, array of shape (kv_heads × head_k,); None where they are whole.
    addresses : of these arrays.
    key_type, value_type : their types; key_layout, value_layout : the same for kernels.
    tokens : how many fit, a multiple of 32.
    attend : the kernel that reads these types.
    key_turn, value_turn : how heads are rotated.
    """

    def __init__(self, spec: AttentionSpec, types: CacheSpec, length: int):
        keys, values = cache_type(types.keys, spec.head_k), cache_type(types.values, spec.head_v, values=True)
        self.centre: np.ndarray | None = None
        if keys.centred:
            spec.require_shifts()
            self.centre = np.zeros(spec.kv_heads * spec.head_k, np.float32)
            keys = replace(keys, centred=False)  # from here on they are as any keys
        self.heads = spec.kv_heads
        self.key_type, self.value_type = keys, values
        self.key_layout, self.value_layout = layout_of(keys, spec.head_k), layout_of(values, spec.head_v)
        self.attend = attention_of(keys, values)
        self.tokens = -(-length // CPU_STEP) * CPU_STEP
        # A conversation takes the memory of its tokens, not of all that fit.
        self.keys = _room(spec.kv_heads * self.tokens * key_bytes(keys, spec.head_k))
        self.values = _room(spec.kv_heads * self.tokens * value_bytes(values, spec.head_v))
        self.addresses = tuple(array.ctypes.data for array in self._arrays())
        self.key_turn = Turn(keys.rotation(spec.head_k, values=False))
        self.value_turn = Turn(values.rotation(spec.head_v, values=True))

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self._arrays())

    def _arrays(self) -> list[np.ndarray]:
        return [self.keys, self.values] + ([] if self.centre is None else [self.centre])

    def write(self, k: Any, v: Any, start: int, calls: Calls = NOW) -> None:
        """Keys (n, kv_heads × head_k) and values (n, kv_heads × head_v) of tokens `start …`; rotates them in place."""
        if self.centre is not None:
            calls.call(centre_keys, k, start, self.centre)
        self._write(k, self.keys, start, calls, keys=True)
        self._write(v, self.values, start, calls, keys=False)

    def turn_queries(self, q: Any, calls: Calls = NOW) -> None:
        """Rotate queries (n, heads × head_k) in place as the keys are, and round them where llama.cpp does."""
        self.key_turn.forward(q, calls)
        if self.key_type.rounds_queries:
            calls.call(round_queries, q.reshape(-1, 32))

    def _write(self, x: Any, data: np.ndarray, start: int, calls: Calls, *, keys: bool) -> None:
        kind, layout = (self.key_type, self.key_layout) if keys else (self.value_type, self.value_layout)
        if kind.rule != "turbo":  # whose encoder rotates
            (self.key_turn if keys else self.value_turn).forward(x, calls)
        if kind.leveled:
            codes, scales = _find_codes(kind, x, self.heads, calls)
            calls.call(place_codes, codes, scales, data, self.tokens, start, layout, keys)
        else:
            write = write_codes if kind.quantized else write_numbers
            calls.call(write, x, data, self.heads, self.tokens, start, layout, keys)

    def prefix(self, n: int) -> list[np.ndarray]:
        keys, values = self._by_token()
        return [keys[:, : -(-n // TILE)], values[:, :n]] + ([] if self.centre is None else [self.centre[None]])

    def restore(self, n: int, arrays: Sequence[np.ndarray]) -> None:
        own = [*self._by_token()] if self.centre is None else [*self._by_token(), self.centre[None]]
        for array, saved in zip(own, arrays, strict=True):
            if saved.dtype != array.dtype or saved.shape[1] > array.shape[1]:
                raise ValueError("another cache's")
            array[:, : saved.shape[1]] = saved

    def _by_token(self) -> tuple[np.ndarray, np.ndarray]:
        """Keys (kv_heads, tiles, bytes) and values (kv_heads, tokens, bytes)."""
        return self.keys.reshape(self.heads, self.tokens // TILE, -1), self.values.reshape(self.heads, self.tokens, -1)


def _room(n: int) -> np.ndarray:
    return sparse_zeros(_START + n)[_START:]


def _find_codes(kind: CacheType, x: Any, heads: int, calls: Calls = NOW) -> tuple[Any, Any]:
    """Codes of keys or values (n, heads × head) float32, contiguous, and the scales that go with them.

    Returns
    -------
    codes : array of shape (n, heads, head), uint8.
    scales : array of shape (n, heads, blocks), float32.
    """
    n, head = len(x), x.shape[1] // heads
    codes = calls.empty(n, heads, head, dtype=np.uint8)
    scales = calls.empty(n, heads, kind.blocks(head))
    if kind.rule == "turbo":
        rows, found = x.reshape(-1, head), codes.reshape(-1, head)
        encode, code = kernels_of(kind.bits).encode_codes, code_of(kind.bits, head)
        calls.call(encode, rows, code, found, scales.reshape(-1), 0, len(rows))
    else:
        rows, found = x.reshape(-1, kind.block), codes.reshape(-1, kind.block)
        calls.call(fit_codes, rows, found, scales.reshape(-1), first_level(kind))
    return codes, scales


class Turn:
    """A rotation of heads, in their place; None turns nothing."""

    def __init__(self, rotation: Rotation | None):
        self._size = 0 if rotation is None else rotation.size
        if rotation is not None:
            self._part = part_of(rotation.size)
            self._mix = hartley(rotation.size // self._part)
            self._signs = signs_of(rotation.size, 0) if rotation.random else np.ones(rotation.size, np.float32)

    def forward(self, x: Any, calls: Calls = NOW) -> None:
        """Rotate each run of numbers of `x`, contiguous rows of heads."""
        self._turn(x, calls, True)

    def back(self, x: Any, calls: Calls = NOW) -> None:
        """Undo it."""
        self._turn(x, calls, False)

    def _turn(self, x: Any, calls: Calls, before: bool) -> None:
        if self._size:
            calls.call(turn, x.reshape(-1, self._size), self._signs, self._mix, self._part, before)
