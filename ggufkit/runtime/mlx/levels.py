"""Cache types with tables of levels on MLX's device: planes of bits, scales, and the numbers they stand for.

MLX's own quantized arrays have evenly spaced levels only. Codes lie in bytes, low bits first; the numbers are looked up
when they are used, inside the graph of one attention.

Source: see `runtime.cpu.levels`, of which these are the numbers.
"""

from __future__ import annotations

import math
from functools import cache

import mlx.core as mx
import numpy as np

from ggufkit.runtime.kv.types import CacheType, Rotation
from ggufkit.turboquant.codebooks import codebook
from ggufkit.turboquant.rotation import hartley, part_of, signs_of

__all__ = ["numbers", "planes", "rounded_queries", "turned", "turned_back"]


def turned(x: mx.array, rotation: Rotation | None) -> mx.array:
    """Heads (…, head) rotated; see `kv.types.Rotation`."""
    if rotation is None:
        return x
    runs = x.reshape(*x.shape[:-1], -1, rotation.size)
    return _mixed(runs * _signs(rotation.size) if rotation.random else runs, rotation.size).reshape(x.shape)


def turned_back(x: mx.array, rotation: Rotation | None) -> mx.array:
    """The inverse of `turned`."""
    if rotation is None:
        return x
    runs = _mixed(x.reshape(*x.shape[:-1], -1, rotation.size), rotation.size)
    return (runs * _signs(rotation.size) if rotation.random else runs).reshape(x.shape)


def _mixed(x: mx.array, size: int) -> mx.array:
    """Runs of `size` numbers through the transform, which is its own inverse."""
    part = part_of(size)
    parts = mx.hadamard_transform(x.reshape(*x.shape[:-1], -1, part), scale=1 / math.sqrt(size))
    return (parts if size == part else _mix(size // part) @ parts).reshape(x.shape)


@cache
def _signs(size: int) -> mx.array:
    return mx.array(signs_of(size, 0))


@cache
def _mix(parts: int) -> mx.array:
    return mx.array(hartley(parts))


def rounded_queries(q: mx.array) -> mx.array:
    """Queries (…, head) as Q8_0 holds them."""
    blocks = q.reshape(*q.shape[:-1], -1, 32)
    step = mx.max(mx.abs(blocks), axis=-1, keepdims=True) / 127
    codes = mx.round(blocks * mx.where(step > 0, 1 / step, 0))
    return (codes * step.astype(mx.float16).astype(mx.float32)).reshape(q.shape)


@cache
def _levels(kind: CacheType) -> mx.array:
    from ggufkit.formats.iquants import iq4

    return mx.array(iq4.LEVELS if kind.rule == "fitted" else codebook(kind.bits).astype(np.float32))


@cache
def _borders(kind: CacheType) -> mx.array:
    levels = np.array(_levels(kind), np.float32)
    return mx.array((levels[1:] + levels[:-1]) / 2)


def _nearest(x: mx.array, kind: CacheType) -> mx.array:
    """Numbers of the levels nearest to x: by halves, in as many steps as a code has bits."""
    found = mx.zeros(x.shape, mx.int32)
    for bit in reversed(range(kind.bits)):
        border = mx.take(_borders(kind), found + ((1 << bit) - 1))
        beyond = x >= border if kind.rule == "fitted" else x > border
        found = found + beyond.astype(mx.int32) * (1 << bit)
    return found


def planes(x: mx.array, kind: CacheType) -> list[mx.array]:
    """Rotated heads x (…, head) → low plane and high plane, uint8, if there is one, and scales (…, blocks)."""
    head = x.shape[-1]
    blocks = x.reshape(*x.shape[:-1], kind.blocks(head), -1)
    if kind.rule == "turbo":
        norm = mx.sqrt(mx.sum(blocks * blocks, axis=-1, keepdims=True))
        codes = _nearest(blocks * mx.where(norm > 0, math.sqrt(head) / norm, 0), kind)
        levels = mx.take(_levels(kind), codes)
        scale = norm / mx.sqrt(mx.sum(levels * levels, axis=-1, keepdims=True))
    else:
        farthest = mx.argmax(mx.abs(blocks), axis=-1, keepdims=True)
        signed = mx.take_along_axis(blocks, farthest, axis=-1)
        codes = _nearest(blocks * mx.where(mx.abs(signed) >= 1e-15, _levels(kind)[0] / signed, 0), kind)
        levels = mx.take(_levels(kind), codes)
        weights = blocks * blocks
        squares = mx.sum(weights * levels * levels, axis=-1, keepdims=True)
        scale = mx.where(squares > 0, mx.sum(weights * levels * blocks, axis=-1, keepdims=True) / squares, 0)
    codes = codes.reshape(x.shape).astype(mx.uint8)
    low, high = kind.planes
    parts = [_packed(codes & ((1 << low) - 1), low)] + ([_packed(codes >> low, high)] if high else [])
    return [*parts, scale[..., 0].astype(mx.float16)]


def numbers(arrays: list[mx.array], kind: CacheType) -> mx.array:
    """What `planes` gave, as float32: (…, head)."""
    *parts, scales = arrays
    low, high = kind.planes
    codes = _unpacked(parts[0], low)
    if high:
        codes = codes | _unpacked(parts[1], high) << low
    levels = mx.take(_levels(kind), codes)
    blocks = levels.reshape(*scales.shape, -1) * scales[..., None].astype(mx.float32)
    return blocks.reshape(levels.shape)


def _packed(codes: mx.array, width: int) -> mx.array:
    """Codes (…, n) of some bits each → (…, n · width / 8) bytes, low bits first."""
    each = 8 // width
    groups = codes.reshape(*codes.shape[:-1], -1, each)
    return mx.sum(groups << mx.arange(0, 8, width, dtype=mx.uint8), axis=-1).astype(mx.uint8)


def _unpacked(data: mx.array, width: int) -> mx.array:
    codes = data[..., None] >> mx.arange(0, 8, width, dtype=mx.uint8) & ((1 << width) - 1)
    return codes.reshape(*data.shape[:-1], -1)
