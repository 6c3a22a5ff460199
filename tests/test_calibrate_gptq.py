"""GPTQ on GGUF grids: blocks that decode to what was chosen, losses that fall, the same bytes for any threads."""

from __future__ import annotations

import numpy as np
import pytest

from ggufkit.calibrate.gptq import damp_for, rounded
from ggufkit.calibrate.products import Factor, product, second_moment
from ggufkit.errors import GgufkitError
from ggufkit.formats.codec import decode, encode
from ggufkit.formats.grids import GRIDS
from ggufkit.formats.grids.scales import Numbers, pack, scales_of
from ggufkit.formats.table import FORMATS

ROWS, COLS = 40, 512


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(0)
    mix = rng.standard_normal((COLS, COLS)) * np.exp(-np.arange(COLS) / 80)
    return (rng.standard_normal((2048, COLS)) @ mix.T * 0.1 + rng.standard_normal((2048, COLS)) * 0.05).astype(
        np.float32
    )


@pytest.fixture(scope="module")
def factor(inputs):
    return Factor(second_moment(inputs) / np.float32(len(inputs)), 0.05)


@pytest.fixture(scope="module")
def weights():
    return (np.random.default_rng(1).standard_normal((ROWS, COLS)) * 0.05).astype(np.float32)


def loss(factor, weights, blocks, name):
    errors = (decode(blocks, name) - weights).astype(np.float64)
    return float(((errors @ factor.H.astype(np.float64)) * errors).sum())


def random_numbers(name: str, blocks: int = 30) -> tuple[Numbers, np.ndarray]:
    """Random contents of blocks, and the weights that they stand for."""
    grid, rng = GRIDS[name], np.random.default_rng(2)
    x = rng.standard_normal((blocks, grid.block)).astype(np.float32)
    numbers = scales_of(encode(x, name, np.ones(grid.block, np.float32)), name)
    subs = (blocks, grid.block // grid.sub)
    if len(grid.steps) > 1:
        # Of MXFP4's exponents those whose weights are finite and normal.
        low, high = (100, 140) if name == "MXFP4" else (grid.low, grid.low + len(grid.steps))
        numbers.scales = rng.integers(low, high, subs).astype(np.int32)
    if grid.mins:
        numbers.mins = rng.integers(0, grid.mins + 1, subs).astype(np.int32)
    if grid.dims:
        numbers.rows = rng.integers(0, len(grid.book), (blocks, grid.block // grid.dims)).astype(np.int32)
        minus = rng.integers(0, 2, (blocks, grid.block // 8, 8))
        if grid.even:
            minus[..., 7] = minus[..., :7].sum(-1) & 1
        numbers.signs = (minus << np.arange(8)).sum(-1).astype(np.int32)
        units = grid.book[numbers.rows].reshape(blocks, grid.block)
        units = np.where(minus.reshape(blocks, -1) == 1, -units, units)
    else:
        units = grid.levels[rng.integers(0, len(grid.levels), (blocks, grid.block))]
    numbers.units = units
    step = numbers.d[:, None] * grid.steps[numbers.scales - grid.low]
    offset = numbers.dmin[:, None] * numbers.mins
    return numbers, np.repeat(step, grid.sub, 1) * units - np.repeat(offset, grid.sub, 1)


@pytest.mark.parametrize("name", GRIDS.names())
def test_packed_blocks_decode_to_what_was_chosen(name):
    numbers, values = random_numbers(name)
    blocks = pack(numbers, name)
    np.testing.assert_array_equal(decode(blocks, name), values)
    again = scales_of(blocks, name)
    for part in ("d", "dmin", "scales", "mins"):
        np.testing.assert_array_equal(getattr(again, part), getattr(numbers, part))


@pytest.mark.parametrize("name", GRIDS.names())
def test_losses_fall(factor, weights, name):
    plain = loss(factor, weights, encode(weights, name, np.diagonal(factor.H).copy()), name)
    found = [loss(factor, weights, rounded(weights, factor, name, sweeps), name) for sweeps in (0, 1, 2)]
    assert plain > 1.5 * found[0]
    assert found[0] > found[1] > found[2]


@pytest.mark.parametrize("name", ["Q4_K", "IQ3_S", "Q5_1"])
def test_bytes_do_not_depend_on_threads(factor, weights, name):
    many = np.concatenate([weights] * 8)[:300]
    one = rounded(many, factor, name, 1, 1)
    for threads in (2, 3):
        np.testing.assert_array_equal(rounded(many, factor, name, 1, threads), one)
    np.testing.assert_array_equal(rounded(weights[:1], factor, name, 1), one[:1])


def test_no_rows(factor, weights):
    assert rounded(weights[:0], factor, "Q4_K").shape == (0, FORMATS["Q4_K"].row_bytes(COLS))


@pytest.mark.parametrize("cols", [64, 96, 320])
def test_odd_widths(cols):
    """A last chunk of columns is shorter."""
    rng = np.random.default_rng(3)
    x, W = rng.standard_normal((600, cols)).astype(np.float32), rng.standard_normal((20, cols)).astype(np.float32)
    x[:, 1:] += x[:, :1]
    factor = Factor(second_moment(x) / np.float32(len(x)), 0.05)
    plain = loss(factor, W, encode(W, "Q4_0", np.diagonal(factor.H).copy()), "Q4_0")
    assert loss(factor, W, rounded(W, factor, "Q4_0"), "Q4_0") < 0.9 * plain


@pytest.mark.parametrize("name", ["Q4_K", "IQ2_S", "Q4_0", "Q3_K"])
def test_zeros_stay_zeros(factor, name):
    assert not decode(rounded(np.zeros((3, COLS), np.float32), factor, name), name).any()


def test_dead_columns(inputs, weights):
    """A column that no token ever used costs nothing and harms nothing."""
    x = inputs.copy()
    x[:, 7] = 0
    factor = Factor(second_moment(x) / np.float32(len(x)), 0.05)
    assert np.isfinite(decode(rounded(weights, factor, "Q4_K"), "Q4_K")).all()


@pytest.mark.parametrize("H", [np.zeros((32, 32), np.float32), np.full((32, 32), np.nan, np.float32)])
def test_moments_of_no_use(H):
    with pytest.raises(GgufkitError, match="not finite, or zero"):
        Factor(H, 0.01)


def test_not_positive_definite():
    H = np.eye(32, dtype=np.float32)
    H[3, 4] = H[4, 3] = 9
    with pytest.raises(GgufkitError, match="positive definite"):
        Factor(H, 0.01)


def test_factor(inputs, factor):
    H = factor.H.astype(np.float64)
    np.testing.assert_allclose(factor.R.astype(np.float64) @ factor.R.T.astype(np.float64), H, atol=1e-6 * H.max())
    rows = np.random.default_rng(4).standard_normal((5, COLS)).astype(np.float32)
    np.testing.assert_allclose(factor.solve(rows) @ H, rows, atol=1e-3)
    np.testing.assert_array_equal(
        Factor(second_moment(inputs, 1), 0.05, 1).R, Factor(second_moment(inputs, 2), 0.05, 3).R
    )


@pytest.mark.parametrize(("n", "rows", "k"), [(1, 1, 1), (7, 5, 33), (0, 3, 4), (3, 0, 4), (3, 4, 0), (64, 96, 256)])
def test_product(n, rows, k):
    rng = np.random.default_rng(5)
    x, w = rng.standard_normal((n, k)).astype(np.float32), rng.standard_normal((rows, k)).astype(np.float32)
    expected = x.astype(np.float64) @ w.astype(np.float64).T
    np.testing.assert_allclose(product(x, w), expected, atol=1e-4)
    np.testing.assert_array_equal(product(x, w, 1), product(x, w, 3))


def test_damping_grows_as_tokens_become_few():
    assert damp_for(100_000, 256) == 0.01
    assert damp_for(8192, 1536) == pytest.approx(0.094, abs=1e-3)
    assert damp_for(0, 4096) == 0.2
