"""Products of quantized matrices and rows of activations."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from ggufkit.errors import CodecError
from ggufkit.formats.codec import decode, encode, frozen
from ggufkit.formats.table import format_by_name
from ggufkit.runtime.cpu.forms import quantize
from ggufkit.runtime.cpu.products import product_of, rounded
from ggufkit.runtime.cpu.weight import Activations, Weight, multiply_all
from ggufkit.tensors.tensor import Tensor


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


QUANTIZED = [
    "Q4_0",
    "Q4_1",
    "Q5_0",
    "Q5_1",
    "Q8_0",
    "Q2_K",
    "Q3_K",
    "Q4_K",
    "Q5_K",
    "Q6_K",
    "IQ4_NL",
    "IQ4_XS",
    "MXFP4",
]
SHAPES = [(50, 512), (33, 352), (1, 256), (129, 32)]  # rows, cols: whole units and not, whole panels and not


@pytest.mark.parametrize("name", QUANTIZED)
def test_products_are_those_of_the_levels(name):
    """Against float64: weights as they decode, activations as they were quantized. Only float32 sums differ."""
    product = product_of(format_by_name(name))
    for rows, cols in SHAPES:
        if cols % format_by_name(name).block_size:
            continue
        tensor = tensor_of(normal(rows, rows, cols), name)
        for n in (1, 2, 7, 17):
            x = normal(n, n, cols)
            levels, scales, *_ = quantize(frozen(x), product.form, product.group)
            scales = scales[: levels.size // product.group].reshape(len(levels), -1)
            quantized = (levels * np.repeat(scales.astype(np.float64), product.group, 1))[:n, :cols]
            expected = quantized @ tensor.floats().T.astype(np.float64)
            bound = np.abs(quantized) @ np.abs(tensor.floats().T) + np.abs(expected)
            assert (np.abs(Weight(tensor).multiply(x) - expected) <= 4e-7 * bound).all(), (rows, cols, n)


@pytest.mark.parametrize("name", ["F32", "F16", "BF16", "F64", "TQ1_0", "Q1_0", "NVFP4"])
def test_products_of_floats_and_of_decoded_rows(name):
    """Against float64, on the activations as they are."""
    for rows, cols in [*SHAPES, (40, 77), (3, 5), (600, 256)]:
        if cols % format_by_name(name).block_size:
            continue
        tensor = tensor_of(normal(rows, rows, cols), name)
        for n in (1, 2, 7, 17):
            x = normal(n, n, cols)
            expected = x.astype(np.float64) @ tensor.floats().T
            bound = np.abs(x) @ np.abs(tensor.floats().T)
            assert (np.abs(Weight(tensor).multiply(x) - expected) <= 1e-6 * bound).all(), (rows, cols, n)


@pytest.mark.parametrize("name", [*QUANTIZED, "F32", "F16", "BF16", "TQ2_0"])
def test_a_row_has_the_same_bits_alone_and_among_others(name):
    for rows, cols in [(50, 512), (33, 352), (16, 1024), (5, 256), (40, 77)]:
        if cols % format_by_name(name).block_size:
            continue
        weight = Weight(tensor_of(normal(rows, rows, cols), name), 2)
        x = normal(7, 17, cols)
        alone = np.concatenate([weight.multiply(x[i : i + 1]) for i in range(17)])
        for n in (2, 3, 4, 5, 16, 17):
            assert np.array_equal(weight.multiply(x[:n]), alone[:n]), (rows, cols, n)


@pytest.mark.parametrize("name", [*QUANTIZED, "F32", "F16", "BF16"])
def test_products_are_nearly_llama_cpps(name):
    """`vec_dot` quantizes activations the same way; for Q4_1 and Q5_1 it rounds their sums to float16, too."""
    ggml = pytest.importorskip("ggml")
    tensor = tensor_of(normal(5, 64, 1024), name)
    x = normal(6, 1, 1024)
    expected = ggml.vec_dots(tensor.read(0, 64), tensor.format.id, x)()
    tolerance = {"Q4_1": 1e-4, "Q5_1": 1e-4, "F16": 1e-4, "BF16": 1e-3}.get(name, 1e-6)
    bound = tolerance * (np.abs(x) @ np.abs(tensor.floats().T))[0]
    assert (np.abs(Weight(tensor).multiply(x)[0] - expected) <= bound).all()


@pytest.mark.parametrize("name", ["F16", "BF16"])
def test_rounded_products_add_in_order(name):
    """Bit for bit: the product of two 16-bit floats is exact in float32, so multiply-adds are products and sums."""
    number = {"F16": np.float16, "BF16": ml_dtypes.bfloat16}[name]
    order = np.arange(32).reshape(2, 16) if name == "F16" else np.arange(32).reshape(16, 2).T[::-1]
    for rows, cols in [(50, 512), (33, 352), (1, 32), (1100, 256)]:
        tensor = tensor_of(normal(rows, rows, cols), name)
        for n in (1, 2, 7, 17):
            x = normal(n, n, cols)
            pairs = x.astype(number).astype(np.float32)[:, None] * tensor.floats()  # (n, rows, cols)
            sums = np.zeros((n, rows, 16), np.float32)
            for i in range(0, cols, 32):
                for half in order:
                    sums += pairs[:, :, i + half]
            for width in (8, 4, 2, 1):
                sums = sums[..., :width] + sums[..., width:]
            found = Weight(tensor, 2, rounded.PRODUCTS[name]).multiply(x)
            assert np.array_equal(found, sums[..., 0]), (rows, cols, n)


@pytest.mark.parametrize("name", [*QUANTIZED, "F16", "TQ2_0"])
def test_products_do_not_depend_on_threads(name):
    tensor = tensor_of(normal(3, 700, 512), name)
    for n in (1, 5, 17):
        x = normal(n, n, 512)
        assert np.array_equal(Weight(tensor, threads=1).multiply(x), Weight(tensor, threads=3).multiply(x))


@pytest.mark.parametrize("form", ["Q8_0", "Q8_K"])
def test_activations_are_quantized_like_the_reference(form):
    x = normal(0, 6, 512) * np.array([[1], [1e-20], [0], [1e10], [1], [1]], np.float32)
    x[4, 3:10] = -x[4].max()
    levels, scales, counts, sums = quantize(frozen(x), form, 32)
    scales, counts, sums = (plane[: levels.size // 32].reshape(-1, 16) for plane in (scales, counts, sums))
    blocks = encode_activations(x, form)
    expected = blocks["qs"].reshape(6, 512)
    # llama.cpp's x86-64 code multiplies with 127 / max, its reference with 1 / d: a tie may go either way.
    assert np.abs(levels[:6].astype(int) - expected).max() <= (form == "Q8_0")
    assert (levels[:6] != expected).mean() < 0.01
    assert np.array_equal(scales[:6], np.repeat(blocks["d"].astype(np.float32), blocks.dtype["qs"].shape[0] // 32, 1))
    assert np.array_equal(counts, levels.reshape(len(levels), 16, 32).sum(2, dtype=np.int32))
    assert np.array_equal(sums, scales * counts.astype(np.float32))


def encode_activations(x: np.ndarray, form: str) -> np.ndarray:
    """Blocks as records of the format's fields."""
    from ggufkit.formats.kquants import q8_k_encode
    from ggufkit.formats.legacy import q8_0_encode

    format = format_by_name(form)
    out = np.zeros((len(x), format.row_bytes(x.shape[1])), np.uint8)
    (q8_0_encode if form == "Q8_0" else q8_k_encode)(frozen(x), out)
    return out.view(format.dtype)


@pytest.mark.parametrize("name", ["Q8_0", "Q4_K", "Q6_K"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_bad_activation_spoils_its_row_and_no_other(name, bad):
    weight = Weight(tensor_of(normal(0, 40, 512), name))
    x = normal(1, 3, 512)
    expected = weight.multiply(x)
    x[1, 300] = bad
    actual = weight.multiply(x)
    assert np.isnan(actual[1]).all()
    assert np.array_equal(actual[[0, 2]], expected[[0, 2]])
    assert np.isnan(weight.multiply(x[1:2])).all()


@pytest.mark.parametrize("name", ["Q8_0", "F32", "TQ2_0"])
def test_nothing_times_something_is_nothing(name):
    assert Weight(tensor_of(normal(0, 0, 256), name)).multiply(normal(1, 3, 256)).shape == (3, 0)
    assert Weight(tensor_of(normal(0, 4, 256), name)).multiply(normal(1, 0, 256)).shape == (0, 4)


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
