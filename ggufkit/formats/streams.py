"""Streams of bits to bytes, and bytes to blocks: what unpacking a checkpoint spends its time with."""

from __future__ import annotations

import numpy as np

from ggufkit.formats.codec import frozen
from ggufkit.kernels.columns import store_bytes, store_nibbles
from ggufkit.kernels.jit import kernel
from ggufkit.kernels.lanes import LANES, flat, view

__all__ = ["LANES", "columns_to_blocks", "different_halves", "q4_0_blocks", "range_of_codes", "unpack_stream"]

# Columns whose blocks are made in turn: as many as a few lines of the cache have of a row of words.
_TILE = 4 * LANES

# A one in each code of a word.
_EACH = {4: 0x11111111, 8: 0x01010101}


@kernel
def unpack_stream(data, bits, out):
    """Codes of `bits` bits, the first in the lowest. data: (n, bytes) uint8; out: (n, bytes · 8 / bits) uint8.

    A group of eight codes fills `bits` bytes, so rows are whole numbers of these.
    """
    mask = np.uint64((1 << bits) - 1)
    for row in range(data.shape[0]):
        if bits == 4:
            for i in range(data.shape[1]):
                out[row, 2 * i] = data[row, i] & 15
                out[row, 2 * i + 1] = data[row, i] >> 4
            continue
        for group in range(data.shape[1] // bits):
            word = np.uint64(0)
            for i in range(bits):
                word |= np.uint64(data[row, group * bits + i]) << np.uint64(8 * i)
            for i in range(8):
                out[row, 8 * group + i] = np.uint8(word >> np.uint64(bits * i) & mask)


@kernel
def q4_0_blocks(codes, scales, out):
    """codes: (n, 32) uint8, 0 to 15; scales: (n,) uint16, float16's bits; out: (n, 18) uint8.

    qs[j]   BBBBAAAA    A = code j, B = code j + 16
    """
    for block in range(codes.shape[0]):
        out[block, 0] = scales[block] & 255
        out[block, 1] = scales[block] >> 8
        for j in range(16):
            out[block, 2 + j] = codes[block, j] | codes[block, j + 16] << 4


@kernel
def _columns_to_blocks(words, lo, scales, scales_lo, groups, block, added, out):
    """See `columns_to_blocks`. words and scales: their bytes, which may lie anywhere; added: repeated in a word."""
    stride, row, per_block = words.shape[1] // 4, out.shape[1], out.shape[1] // groups.shape[0]
    bits = (per_block - 2) // 4
    every, halves, target = view(words, np.uint32), view(scales, np.uint16), flat(out)
    for tile in range(0, out.shape[0], _TILE):
        end = min(tile + _TILE, out.shape[0])
        for k in range(words.shape[0] // bits):
            group = groups[block + k]
            for start in range(tile, end, LANES):
                first = min(start, out.shape[0] - LANES)
                at = first * row + (block + k) * per_block
                source = k * bits * stride + lo + first
                scale = group * (scales.shape[1] // 2) + scales_lo + first
                if bits == 4:
                    store_nibbles(every, source, stride, added, halves, scale, target, at, row)
                else:
                    store_bytes(every, source, stride, added, halves, scale, target, at, row)


def columns_to_blocks(
    words: np.ndarray,
    lo: int,
    scales: np.ndarray,
    scales_lo: int,
    groups: np.ndarray,
    block: int,
    added: int,
    out: np.ndarray,
) -> None:
    """Blocks of Q4_0 or Q8_0 from words of 4 or 8 bit codes that lie one below the other, as in GPTQ's `qweight`.

    Parameters
    ----------
    words : array of shape (rows, columns), 32-bit, of whole blocks: 4 rows, or 8, each. At least LANES columns.
    lo : its first column that is meant.
    scales : array of shape (groups, …), float16. scales_lo : the column there.
    groups : array of shape (blocks of a row,): where the scale of each is.
    block : the one that `words` begin with.
    added : to each code, modulo 2^bits, for the middle of the format to be 2^(bits - 1).
    out : array of shape (n, bytes of a row), uint8.
    """
    per_block = out.shape[1] // len(groups)
    bits = (per_block - 2) // 4
    added = added ^ 128 if bits == 8 else added  # Q8_0 has 0 for the middle
    repeated = np.uint32(added * _EACH[bits])
    data, halves, groups = frozen(words.view(np.uint8)), frozen(scales.view(np.uint8)), frozen(groups)
    if len(out) >= LANES:
        _columns_to_blocks(data, lo, halves, scales_lo, groups, block, repeated, out)
        return
    before = max(0, lo + LANES - words.shape[1])
    tile = np.empty((LANES, out.shape[1]), np.uint8)
    _columns_to_blocks(data, lo - before, halves, scales_lo - before, groups, block, repeated, tile)
    made = slice(block * per_block, (block + len(words) // bits) * per_block)
    out[:, made] = tile[before : before + len(out), made]


@kernel
def _collect(halves, seen, found):
    """Each number once, as it comes; how many there are. seen: zeros, (65536,); found: (65536,) uint16."""
    n = 0
    for i in range(halves.shape[0]):
        if not seen[halves[i]]:
            seen[halves[i]] = 1
            found[n] = halves[i]
            n += 1
    return n


def different_halves(halves: np.ndarray) -> np.ndarray:
    """The different numbers among float16: array of shape (n,), float32."""
    found = np.empty(1 << 16, np.uint16)
    n = _collect(frozen(np.ascontiguousarray(halves).reshape(-1).view(np.uint16)), np.zeros(1 << 16, np.uint8), found)
    return np.sort(found[:n]).view(np.float16).astype(np.float32)


@kernel
def _code_range(data, bits):
    """(lowest, highest) of codes of 4 or 8 bits; data: (n,) uint8."""
    low, high = np.uint8(255), np.uint8(0)
    if bits == 4:
        for i in range(data.shape[0]):
            low = min(low, data[i] & np.uint8(15), data[i] >> np.uint8(4))
            high = max(high, data[i] & np.uint8(15), data[i] >> np.uint8(4))
    else:
        for i in range(data.shape[0]):
            low, high = min(low, data[i]), max(high, data[i])
    return low, high


def range_of_codes(data: np.ndarray, bits: int) -> tuple[int, int]:
    """The lowest and the highest code of 4 or 8 bits among bytes."""
    low, high = _code_range(frozen(data.reshape(-1)), bits)
    return int(low), int(high)
