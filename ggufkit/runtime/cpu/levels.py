"""Cache types whose codes are numbers of levels: the levels, and how codes are found; how queries are rounded.

Source: `quantize_row_iq4_nl_ref`, `quantize_row_q8_0_ref` of ggml/src/ggml-quants.c of llama.cpp; `ggufkit.turboquant`.
"""

from __future__ import annotations

import numpy as np

from ggufkit.formats.iquants import iq4
from ggufkit.kernels.jit import kernel
from ggufkit.kernels.lanes import float_to_half, half_to_float
from ggufkit.runtime.kv.types import FEW, TYPES, UNLIKE, CacheType
from ggufkit.turboquant.vectors import code_of

__all__ = ["LEVELS", "centre_keys", "first_level", "fit_codes", "round_queries"]

ZERO, ONE = np.float32(0), np.float32(1)
_LEAST = np.float32(1e-15)


def _levels_of(kind: CacheType) -> np.ndarray:
    """A multiple of sixteen float32."""
    if kind.rule == "fitted":
        return iq4.LEVELS
    return code_of(kind.bits, 64).levels


_TABLES = {kind.name: _levels_of(kind) for kind in TYPES.values() if kind.leveled}
_FIRST = dict(zip(_TABLES, np.cumsum([0, *map(len, _TABLES.values())]).tolist(), strict=False))

LEVELS = np.concatenate(list(_TABLES.values()))  # of all types, one after the other


def first_level(kind: CacheType) -> int:
    """Where a type's levels begin in `LEVELS`, a multiple of sixteen; 0 for one without."""
    return _FIRST.get(kind.name, 0)


@kernel
def fit_codes(blocks, codes, scales, base):
    """The rule "fitted", for rows of one block."""
    n, size = blocks.shape
    for b in range(n):
        most, signed = ZERO, ZERO
        for i in range(size):
            if abs(blocks[b, i]) > most:
                most, signed = abs(blocks[b, i]), blocks[b, i]
        inverse = LEVELS[base] / signed if most >= _LEAST else ZERO
        both, squares = ZERO, ZERO
        for i in range(size):
            value = blocks[b, i]
            scaled = value * inverse
            code = 0
            while code < 15 and scaled - LEVELS[base + code] >= LEVELS[base + code + 1] - scaled:
                code += 1
            level, weight = LEVELS[base + code], value * value
            both += weight * level * value
            squares += weight * level * level
            codes[b, i] = np.uint8(code)
        scales[b] = both / squares if squares > ZERO else ZERO


@kernel
def centre_keys(keys, start, centre):
    """Keys (n, heads × head) less `centre`, in place: their mean, found where a conversation begins, with `start` 0."""
    n, size = keys.shape
    if start == 0:
        centre[:] = ZERO
        if n >= FEW:
            for token in range(UNLIKE, n):
                for i in range(size):
                    centre[i] += keys[token, i]
            for i in range(size):
                centre[i] /= np.float32(n - UNLIKE)
    for token in range(n):
        for i in range(size):
            keys[token, i] -= centre[i]


@kernel
def round_queries(blocks):
    """Rows of 32 float32 to what Q8_0 holds of them, in place."""
    n, size = blocks.shape
    for b in range(n):
        most = ZERO
        for i in range(size):
            most = max(most, abs(blocks[b, i]))
        step = most / np.float32(127)
        inverse = ONE / step if step > ZERO else ZERO
        scale = half_to_float(float_to_half(step))
        for i in range(size):
            blocks[b, i] = np.rint(blocks[b, i] * inverse) * scale
