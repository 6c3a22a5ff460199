"""Products of quantized matrices and rows of activations."""

from __future__ import annotations

import numpy as np
import pytest

from ggufkit.errors import CodecError
from ggufkit.formats.codec import decode, encode
from ggufkit.formats.table import format_by_name
from ggufkit.runtime.cpu.weight import Activations, Weight, multiply_all
from ggufkit.tensor import Tensor


def tensor_of(values: np.ndarray, name: str) -> Tensor:
    """A tensor whose blocks are in memory."""
    blocks = encode(values.reshape(-1, values.shape[-1]), name, np.ones(values.shape[-1], np.float32))
    blocks.flags.writeable = False
    return Tensor("w", values.shape, format_by_name(name), lambda lo, hi: blocks[lo:hi])


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_multiply_is_x_times_the_transpose():
    tensor = tensor_of(normal(0, 48, 256), "F32")
    x = normal(1, 5, 256)
    np.testing.assert_allclose(Weight(tensor).multiply(x), x @ tensor.floats().T, rtol=1e-5, atol=1e-5)


def test_rows_are_the_decoded_rows():
    tensor = tensor_of(normal(0, 48, 256), "Q4_K")
    ids = np.array([3, 0, 47, 3])
    assert np.array_equal(Weight(tensor).rows(ids), decode(tensor.read(0, 48), "Q4_K")[ids])


def test_multiply_each_takes_each_rows_expert():
    values = normal(0, 3, 16, 64)
    x, experts = normal(1, 6, 64), np.array([2, 0, 2, 1, 0, 2])
    expected = np.stack([row @ values[e].T for row, e in zip(x, experts, strict=True)])
    actual = Weight(tensor_of(values, "F32")).multiply_each(x, experts)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


def test_multiply_all_gives_each_weights_product():
    weights = [Weight(tensor_of(normal(i, 32, 256), name)) for i, name in enumerate(("Q8_0", "F16", "Q4_K"))]
    x = Activations(normal(9, 3, 256))
    for weight, y in zip(weights, multiply_all(weights, x), strict=True):
        assert np.array_equal(y, weight.multiply(x))


def test_wrong_shapes_are_refused():
    weight = Weight(tensor_of(normal(0, 8, 64), "F32"))
    with pytest.raises(CodecError, match="32 activations cannot meet rows of 64 weights"):
        weight.multiply(normal(1, 2, 32))
    with pytest.raises(CodecError, match=r"shape \(n, cols\)"):
        weight.multiply(normal(1, 64))
