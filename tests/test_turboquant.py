"""TurboQuant against the exact distortions, the published levels, and a slow twin in NumPy."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ggufkit import turboquant as tq
from ggufkit.errors import CodecError, UsageError
from ggufkit.turboquant.codebooks import lloyd_max
from ggufkit.turboquant.levels import GAUSSIAN
from ggufkit.turboquant.rotation import signs_of

# Relative squared error of N(0, 1) and the positive levels: Max, 1960, tables I and following.
EXACT = {1: 0.363380, 2: 0.117482, 3: 0.034548, 4: 0.009501, 5: 0.002505, 6: 0.000644, 8: 0.0000411}
PUBLISHED = {
    1: [0.797885],
    2: [0.452780, 1.510418],
    3: [0.245094, 0.756005, 1.343909, 2.151946],
    4: [0.128395, 0.388048, 0.656759, 0.942340, 1.256231, 1.618046, 2.069017, 2.732590],
}
LENGTHS = [64, 80, 96, 112, 128, 192, 256, 512, 576, 1536]
HEADS = [16, *LENGTHS]


def unit(n: int, d: int, seed: int = 0) -> np.ndarray:
    x = np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def error(x: np.ndarray, bits: int, scale: str = "matched", seed: int = 0) -> float:
    """Mean squared error, relative to the squared norms."""
    return float(((tq.decode(tq.encode(x, bits, scale=scale, seed=seed)) - x) ** 2).sum() / (x**2).sum())


@pytest.mark.parametrize("bits", PUBLISHED)
def test_levels_are_those_that_max_published(bits):
    levels = tq.codebook(bits)
    np.testing.assert_allclose(levels[len(levels) // 2 :], PUBLISHED[bits], atol=1e-6)
    np.testing.assert_array_equal(levels, -levels[::-1])


@pytest.mark.parametrize("bits", [*range(1, 7), 8])
def test_levels_are_computed_again(bits):
    np.testing.assert_allclose(lloyd_max(bits), tq.codebook(bits), atol=1e-6)
    assert tq.distortion(bits) == pytest.approx(EXACT[bits], rel=1e-2 if bits == 8 else 1e-3)


def test_the_generator_writes_the_table(fixtures):
    tool = fixtures.parent / "tools" / "generate" / "make_codebooks.py"
    written = subprocess.run([sys.executable, tool], capture_output=True, text=True, check=True, cwd=fixtures.parent)
    names: dict = {}
    exec(written.stdout, names)
    kept = (fixtures.parent / "ggufkit" / "turboquant" / "levels.py").read_text()
    assert written.stdout.splitlines()[:8] == kept.splitlines()[:8]
    for bits, text in names["GAUSSIAN"].items():  # the last digit may be another CPU's
        np.testing.assert_allclose(np.array(text.split(), float), np.array(GAUSSIAN[bits].split(), float), atol=2e-8)


def test_the_exact_density_gains_little_over_the_gaussian():
    # Every length has a table of its own; the Gaussian's is within 0.43 % of it at 64 coordinates.
    y = tq.Hadamard(64).forward(unit(4000, 64)) * 8
    for bits in (2, 4):
        found = [
            np.square(y - levels[np.abs(y[..., None] - levels).argmin(-1)]).mean()
            for levels in (tq.codebook(bits), tq.codebook(bits, 64))
        ]
        assert 1 - 2e-3 < found[0] / found[1] < 1.006


@pytest.mark.parametrize("length", HEADS)
@pytest.mark.parametrize("rotation", [tq.Hadamard, tq.Dense])
def test_rotations_keep_products_and_turn_back(length, rotation):
    turn = rotation(length, 5)
    x = np.random.default_rng(1).standard_normal((7, length)).astype(np.float32)
    y = turn.forward(x)
    np.testing.assert_allclose(y @ y.T, x @ x.T, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(turn.back(y), x, atol=5e-6)


def test_a_hadamard_rotation_is_the_matrix():
    x = np.eye(32, dtype=np.float32)
    h = np.ones((1, 1))
    while len(h) < 32:
        h = np.block([[h, h], [h, -h]])
    np.testing.assert_allclose(tq.Hadamard(32, 3).forward(x), (h * signs_of(32, 3)).T / np.sqrt(32), atol=1e-7)


def test_signs_are_the_same_for_ever():
    assert "".join("-+"[int(s > 0)] for s in signs_of(32, 0)) == "".join("-+"[int(s > 0)] for s in signs_of(64, 0))[:32]
    assert (signs_of(4096, 1) > 0).mean() == pytest.approx(0.5, abs=0.03)
    assert (signs_of(4096, 1) != signs_of(4096, 2)).mean() == pytest.approx(0.5, abs=0.03)


def expected_error(length: int, bits: int) -> float:
    """The relative squared error of the Gaussian's levels for the exact density of a coordinate."""
    t = np.linspace(-1, 1, 200001)[1:-1]
    density = (1 - t * t) ** ((length - 3) / 2)
    y, levels = t * np.sqrt(length), tq.codebook(bits)
    nearest = levels[np.searchsorted((levels[1:] + levels[:-1]) / 2, y)]
    return float((density * (y - nearest) ** 2).sum() / density.sum())


@pytest.mark.parametrize("length", [64, 128, 256, 1536])
@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_distortion_is_the_exact_one(length, bits):
    expected = expected_error(length, bits)
    assert expected == pytest.approx(EXACT[bits], rel=0.04 if length == 64 else 0.022)
    assert error(unit(6000 if length < 1000 else 600, length), bits, "norm") == pytest.approx(expected, rel=0.015)


@pytest.mark.parametrize("length", [64, 80, 128, 192, 256, 1536])
@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_distortion_does_not_depend_on_the_vectors(length, bits):
    one = np.zeros((64, length), np.float32)
    one[np.arange(64), np.arange(64)] = np.linspace(1, 100, 64)  # one channel only
    constant = 1 + 0.05 * np.random.default_rng(2).standard_normal((40, length)).astype(np.float32)
    assert error(one, bits) <= EXACT[bits] * 1.05
    # All of these are nearly one vector: other signs are other vectors.
    assert np.mean([error(constant, bits, seed=seed) for seed in range(30)]) <= EXACT[bits] * 1.25


@pytest.mark.parametrize(
    ("scale", "slopes"),
    [("norm", [0.637, 0.883, 0.966, 0.991]), ("matched", [0.80, 0.94, 0.983, 0.996]), ("unbiased", [1, 1, 1, 1])],
)
def test_scales_have_their_slopes(scale, slopes):
    x = unit(3000, 128)
    for bits, slope in enumerate(slopes, 1):
        found = (tq.decode(tq.encode(x, bits, scale=scale)) * x).sum(1).mean()
        assert found == pytest.approx(slope, abs=0.005)


def test_the_least_scale_has_the_least_error_of_each_vector():
    x = unit(200, 64)
    errors = {s: ((tq.decode(tq.encode(x, 2, scale=s)) - x) ** 2).sum(1) for s in tq.SCALES}
    for scale in tq.SCALES:
        assert (errors["least"] <= errors[scale] * 1.002).all()


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_prod_is_unbiased_and_worse(bits):
    x, q = unit(4000, 128), unit(4000, 128, 9)
    packed = tq.encode_prod(x, bits)
    assert packed.nbytes == 4000 * (128 * bits // 8 + 4)
    y = tq.decode_prod(packed)
    near = 0.6 * x + 0.8 * q
    slope = ((x * near).sum(1) * (y * near).sum(1)).sum() / ((x * near).sum(1) ** 2).sum()
    assert slope == pytest.approx(1, abs=0.01)
    expected = np.pi / 2 * EXACT[bits - 1]
    assert 128 * (((x - y) * q).sum(1) ** 2).mean() == pytest.approx(expected, rel=0.12)
    unbiased = tq.decode(tq.encode(x, bits, scale="unbiased"))
    assert (((x - unbiased) * q).sum(1) ** 2).mean() < (((x - y) * q).sum(1) ** 2).mean() / 2


def slow_codes(x: np.ndarray, bits: int, seed: int) -> np.ndarray:
    """The slow twin of the encoder: (n, d) numbers of levels."""
    y = tq.Hadamard(x.shape[1], seed).forward(x) / np.linalg.norm(x, axis=1, keepdims=True) * np.sqrt(x.shape[1])
    return np.abs(y[..., None] - tq.codebook(bits)).argmin(-1)


def slow_planes(codes: np.ndarray, bits: int) -> list[int]:
    """One row's codes in bytes."""
    found = []
    for lo in range(0, len(codes), 32):
        group = codes[lo : lo + 32]
        done = 0
        while done < bits:
            wide = max(w for w in (4, 2, 1) if w <= bits - done)
            n = len(group) * wide // 8
            for i in range(n):
                found.append(sum((int(c) >> done & (1 << wide) - 1) << wide * k for k, c in enumerate(group[i::n])))
            done += wide
    return found


@given(st.sampled_from(HEADS), st.sampled_from(list(tq.BITS)), st.integers(0, 2**40), st.integers(0, 9))
def test_rows_are_those_of_the_slow_twin(length, bits, seed, rows):
    x = np.random.default_rng(seed).standard_normal((rows, length)).astype(np.float32)
    packed = tq.encode(x, bits, seed=seed % 7)
    assert packed.nbytes == packed.rows.size == rows * (2 + length * bits // 8)
    wanted = slow_codes(x, bits, seed % 7)
    levels = tq.codebook(bits)
    decoded = tq.decode(packed)
    for r in range(rows):
        own = slow_planes(wanted[r], bits)
        differ = np.flatnonzero(packed.rows[r, 2:] != np.array(own, np.uint8))
        assert len(differ) <= 1 + length // 200  # where a coordinate lies on a border the last bit decides
        scale = float(packed.scales[r])
        assert scale == pytest.approx(np.linalg.norm(x[r]) / np.linalg.norm(levels[wanted[r]]), rel=4e-3)
        if not len(differ):
            back = tq.Hadamard(length, seed % 7).back((levels[wanted[r]] * scale).astype(np.float32)[None])
            np.testing.assert_allclose(decoded[r], back[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bits", list(tq.BITS))
def test_inner_products_need_no_decoding(bits):
    x, q = unit(300, 112), unit(1, 112, 4)[0]
    packed = tq.encode(x, bits, scale="unbiased")
    np.testing.assert_allclose(tq.inner_products(packed, q), tq.decode(packed) @ q, atol=2e-5)


def test_bytes_do_not_depend_on_threads():
    x = unit(30000, 64)
    rows = [tq.encode(x, 3, threads=n).rows for n in (1, 2, 3)]
    assert (rows[0] == rows[1]).all()
    assert (rows[0] == rows[2]).all()


def test_zeros_and_tiny_vectors_stay_small():
    x = np.zeros((3, 64), np.float32)
    x[1] = 1e-30
    x[2] = 1e-44
    assert (tq.decode(tq.encode(x, 4)) == 0).all()
    assert (tq.decode(tq.encode(x[:0], 4))).shape == (0, 64)


@pytest.mark.parametrize(
    ("value", "message"), [(np.nan, "not finite"), (np.inf, "not finite"), (3e38, "longer"), (7e4, "longer")]
)
def test_vectors_that_do_not_fit_are_named(value, message):
    x = np.ones((5, 64), np.float32)
    x[3] = value
    with pytest.raises(CodecError, match=f"vector 3 .*{message}"):
        tq.encode(x, 1, scale="norm" if value != 7e4 else "unbiased")


@pytest.mark.parametrize("length", [0, 1, 8, 24, 100, 16 * 65])
def test_lengths_that_cannot_be_rotated_are_refused(length):
    with pytest.raises(UsageError, match="cannot be rotated"):
        tq.encode(np.ones((1, length), np.float32), 4)


@pytest.mark.parametrize(
    "call",
    [
        lambda: tq.encode(np.ones((1, 64)), 0),
        lambda: tq.encode(np.ones((1, 64)), 9),
        lambda: tq.encode(np.ones((1, 64)), 4, scale="best"),
        lambda: tq.codebook(4, 2),
        lambda: tq.distortion(9),
    ],
)
def test_what_there_is_not_is_refused(call):
    with pytest.raises(UsageError):
        call()


def test_packed_rows_are_checked():
    with pytest.raises(CodecError, match="rows of 34 bytes"):
        tq.Packed(np.zeros((2, 33), np.uint8), 64, 4)
    with pytest.raises(CodecError, match="64 coordinates"):
        tq.inner_products(tq.encode(unit(2, 64), 4), np.ones(63))


def test_every_level_has_its_number():
    assert [len(text.split()) for text in GAUSSIAN.values()] == [1, 2, 4, 8, 16, 32, 64, 128]
