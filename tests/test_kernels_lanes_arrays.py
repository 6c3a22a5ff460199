"""Arrays in one dimension and as another type, inside kernels."""

from __future__ import annotations

import numba
import numpy as np
import pytest

from ggufkit.kernels.jit import kernel
from ggufkit.kernels.lanes import flat, view


@kernel
def flattened(x):
    return flat(x)


@kernel
def as_words(x):
    return view(x, np.int32)


@kernel
def as_bytes(x):
    return view(x, np.uint8)


@kernel
def write(x):
    y = view(x, np.uint16)
    for i in range(y.size):
        y[i] = i


def test_flat_is_reshape():
    for x in (np.arange(24.0).reshape(2, 3, 4), np.arange(5, dtype=np.uint8), np.empty((0, 4), np.float32)):
        found = flattened(x)
        np.testing.assert_array_equal(found, x.reshape(-1), strict=True)
        assert found.flags.c_contiguous
        assert x.size == 0 or np.shares_memory(found, x)


def test_view_is_view():
    x = np.arange(32, dtype=np.uint8).reshape(2, 16)
    np.testing.assert_array_equal(as_words(x), x.reshape(-1).view(np.int32), strict=True)
    np.testing.assert_array_equal(as_bytes(as_words(x)), x.reshape(-1), strict=True)


def test_view_writes_to_the_array_and_respects_its_flags():
    x = np.zeros((2, 4), np.uint8)
    write(x)
    np.testing.assert_array_equal(x, np.arange(4, dtype="<u2").view(np.uint8).reshape(2, 4))
    x.flags.writeable = False
    assert not flattened(x).flags.writeable
    with pytest.raises(numba.TypingError, match="readonly"):
        write(x)


def test_flat_refuses_what_is_not_contiguous():
    with pytest.raises(numba.TypingError):
        flattened(np.zeros((4, 4))[:, :2])
