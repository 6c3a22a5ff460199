"""Lanes: masks and bits, table lookup, the smallest lane."""

from __future__ import annotations

import numpy as np
import pytest

from ggufkit.kernels.jit import kernel
from ggufkit.kernels.lanes import (
    bits_mask,
    bytes_i32,
    first_lane,
    load,
    lowest,
    mask_bits,
    permute,
    select,
    splat,
    store,
)


@kernel
def _permute(x, indices, out):
    store(out, 0, permute(load(x, 0), load(indices, 0)))


@kernel
def _negate(x, bits, out):
    v = load(x, 0)
    store(out, 0, select(bits_mask(np.int32(bits)), -v, v))


@kernel
def _positive_bits(x):
    return mask_bits(load(x, 0) > splat(np.float32(0)))


@kernel
def _position_of(x, value):
    return first_lane(load(x, 0) == splat(value))


@kernel
def _lowest(x):
    return lowest(load(x, 0))


@kernel
def _bytes(words, out):
    store(out, 0, bytes_i32(words[0], words[1]))


@pytest.fixture
def x():
    return np.random.default_rng(0).standard_normal(16).astype(np.float32)


def test_permute_takes_by_index(x):
    indices = np.random.default_rng(1).integers(0, 16, 16).astype(np.int32)
    out = np.empty(16, np.float32)
    _permute(x, indices, out)
    assert out.tolist() == x[indices].tolist()


def test_bits_mask_puts_bit_k_in_lane_k(x):
    out = np.empty(16, np.float32)
    _negate(x, 0xA5F0, out)
    assert out.tolist() == [-v if 0xA5F0 >> k & 1 else v for k, v in enumerate(x.tolist())]


def test_mask_bits_puts_lane_k_in_bit_k(x):
    assert _positive_bits(x) == sum(1 << k for k in range(16) if x[k] > 0)


def test_lowest_and_first_lane(x):
    assert _lowest(x) == x.min()
    assert _position_of(x, x[11]) == 11
    x[5] = x[11]
    assert _position_of(x, x[11]) == 5
    assert _position_of(x, np.float32(99)) == 16


def test_bytes_i32_spreads_signed_bytes():
    data = np.arange(-100, 60, 10).astype(np.int8)
    out = np.empty(16, np.int32)
    _bytes(data.view(np.uint64), out)
    assert out.tolist() == data.tolist()
