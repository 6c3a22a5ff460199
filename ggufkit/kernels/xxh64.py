"""XXH64: a fast hash, not a cryptographic one.

    stripe of 32 bytes:   ┌ word 0 ┬ word 1 ┬ word 2 ┬ word 3 ┐
                          ▼        ▼        ▼        ▼
    accumulators:         v0       v1       v2       v3         v = rotl(v + word · P2, 31) · P1

The four accumulators are folded into one number, then the bytes after the last whole stripe. Seed 0.

Source: doc/xxhash_spec.md of xxHash.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ggufkit.kernels.jit import inlined, kernel

__all__ = ["XXH64"]

_P1 = 0x9E3779B185EBCA87
_P2 = 0xC2B2AE3D27D4EB4F
_P3 = 0x165667B19E3779F9
_P4 = 0x85EBCA77C2B2AE63
_P5 = 0x27D4EB2F165667C5
_MASK = (1 << 64) - 1
_STRIPE = 32


class XXH64:
    """The hash of bytes that come in pieces, with the interface of `hashlib`."""

    name = "xxh64"

    def __init__(self) -> None:
        start = [(_P1 + _P2) & _MASK, _P2, 0, -_P1 & _MASK]
        self._accumulators = np.array(start, np.uint64)
        self._rest = b""  # bytes after the last whole stripe
        self._length = 0

    def update(self, data: Any) -> None:
        """Add bytes, or another buffer of contiguous memory."""
        view = memoryview(data).cast("B")
        self._length += len(view)
        if self._rest:
            taken = min(_STRIPE - len(self._rest), len(view))
            self._rest += bytes(view[:taken])
            if len(self._rest) < _STRIPE:
                return
            xxh64_stripes(np.frombuffer(self._rest, "<u8"), self._accumulators)
            view = view[taken:]
        whole = len(view) - len(view) % _STRIPE
        self._rest = bytes(view[whole:])
        if whole:
            words = np.frombuffer(view[:whole], "<u8")
            if not words.flags.aligned:
                words = words.copy()
            words.flags.writeable = False
            xxh64_stripes(words, self._accumulators)

    def digest(self) -> bytes:
        return self._fold().to_bytes(8, "big")

    def hexdigest(self) -> str:
        return self.digest().hex()

    def _fold(self) -> int:
        v = [int(x) for x in self._accumulators]
        if self._length >= _STRIPE:
            h = sum(_rotl(x, n) for x, n in zip(v, (1, 7, 12, 18), strict=True)) & _MASK
            for x in v:
                h = ((h ^ _round(0, x)) * _P1 + _P4) & _MASK
        else:
            h = _P5
        h = (h + self._length) & _MASK
        rest = self._rest
        while len(rest) >= 8:
            h = (_rotl(h ^ _round(0, int.from_bytes(rest[:8], "little")), 27) * _P1 + _P4) & _MASK
            rest = rest[8:]
        if len(rest) >= 4:
            h = (_rotl(h ^ (int.from_bytes(rest[:4], "little") * _P1 & _MASK), 23) * _P2 + _P3) & _MASK
            rest = rest[4:]
        for byte in rest:
            h = _rotl(h ^ (byte * _P5 & _MASK), 11) * _P1 & _MASK
        h = (h ^ h >> 33) * _P2 & _MASK
        h = (h ^ h >> 29) * _P3 & _MASK
        return h ^ h >> 32


def _rotl(x: int, n: int) -> int:
    return (x << n | x >> 64 - n) & _MASK


def _round(v: int, word: int) -> int:
    return _rotl((v + word * _P2) & _MASK, 31) * _P1 & _MASK


_K1, _K2 = np.uint64(_P1), np.uint64(_P2)
_LEFT, _RIGHT = np.uint64(31), np.uint64(64 - 31)


@inlined
def _mix(v, word):
    v = np.uint64(v + word * _K2)
    return np.uint64(((v << _LEFT) | (v >> _RIGHT)) * _K1)


@kernel
def xxh64_stripes(words, accumulators):
    """Mix whole stripes, array of shape (4 · stripes,), uint64, into the four accumulators."""
    v0, v1, v2, v3 = accumulators[0], accumulators[1], accumulators[2], accumulators[3]
    for i in range(0, len(words), 4):
        v0 = _mix(v0, words[i])
        v1 = _mix(v1, words[i + 1])
        v2 = _mix(v2, words[i + 2])
        v3 = _mix(v3, words[i + 3])
    accumulators[0], accumulators[1], accumulators[2], accumulators[3] = v0, v1, v2, v3
