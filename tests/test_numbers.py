"""Small floats and INT8 against ml-dtypes, brute force, and exact integers."""

from __future__ import annotations

import json

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ggufkit import numbers
from ggufkit.cli import main
from ggufkit.errors import CodecError, UsageError
from ggufkit.jobs.convert import convert
from ggufkit.numbers.floats import FLOATS
from ggufkit.numbers.product import MOST_COLUMNS, sums_int8

# kind: finite codes, largest, least above 0, NaNs, infinities
FACTS = {
    "E4M3": (254, 448, 2.0**-9, 2, 0),
    "E5M2": (248, 57344, 2.0**-16, 6, 2),
    "E4M3FNUZ": (255, 240, 2.0**-10, 1, 0),
    "E5M2FNUZ": (255, 57344, 2.0**-17, 1, 0),
    "E8M0": (255, 2.0**127, 2.0**-127, 1, 0),
    "E2M1": (16, 6, 0.5, 0, 0),
}
ALL = list(FLOATS)


def halves(dtype) -> np.ndarray:
    """All numbers of sixteen bits."""
    return np.arange(1 << 16, dtype=np.uint16).view(dtype).astype(np.float32)


@pytest.mark.parametrize("kind", FACTS)
def test_every_code_is_what_the_format_says(kind):
    finite, largest, least, nans, infinities = FACTS[kind]
    form = FLOATS[kind]
    values = numbers.decode(np.arange(1 << form.bits), kind)
    assert np.isfinite(values).sum() == finite
    assert values[np.isfinite(values)].max() == largest == form.largest
    assert values[values > 0].min() == least == form.least
    assert np.isnan(values).sum() == nans
    assert np.isinf(values).sum() == infinities


@pytest.mark.parametrize("kind", [k for k in ALL if k not in ("UE4M3", "E8M0", "E2M1")])
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_all_halves_become_the_codes_of_ml_dtypes(kind, dtype):
    x = halves(dtype)
    with np.errstate(all="ignore"):
        expected = x.astype(getattr(ml_dtypes, FLOATS[kind].dtype)).view(np.uint8)
    got = numbers.encode(x, kind, saturate=False)
    nan = np.isnan(numbers.decode(expected, kind))
    assert (nan == np.isnan(numbers.decode(got, kind))).all()
    assert (expected[~nan] == got[~nan]).all()


@pytest.mark.parametrize("kind", ["E4M3", "E5M2", "E4M3FNUZ", "E5M2FNUZ", "E3M4", "E2M1"])
def test_ties_go_to_the_even_code_and_their_neighbours_do_not(kind):
    form = FLOATS[kind]
    codes = np.arange(1 << (form.bits - 1), dtype=np.uint8)  # the positive ones ascend
    values = numbers.decode(codes, kind).astype(np.float64)
    codes, values = codes[np.isfinite(values)], values[np.isfinite(values)]
    middle = ((values[1:] + values[:-1]) / 2).astype(np.float32)
    assert (numbers.encode(middle, kind) == np.where(codes[1:] % 2, codes[:-1], codes[1:])).all()
    assert (numbers.encode(np.nextafter(middle, np.float32(np.inf)), kind) == codes[1:]).all()
    assert (numbers.encode(np.nextafter(middle, np.float32(0)), kind) == codes[:-1]).all()
    negative = numbers.decode(numbers.encode(-middle, kind), kind)
    assert (np.abs(negative) == numbers.decode(numbers.encode(middle, kind), kind)).all()


def test_saturation():
    x = np.array([448, 463.9, 464, 465, 1e30, np.inf, -np.inf, np.nan], np.float32)
    assert numbers.decode(numbers.encode(x, "E4M3"), "E4M3")[:-1].tolist() == [448] * 6 + [-448]
    plain = numbers.decode(numbers.encode(x, "E4M3", saturate=False), "E4M3")
    assert plain[:3].tolist() == [448] * 3
    assert np.isnan(plain[3:]).all()
    y = np.array([57344, 61439, 61440, np.inf], np.float32)
    assert numbers.decode(numbers.encode(y, "E5M2", saturate=False), "E5M2").tolist() == [57344] * 2 + [np.inf] * 2
    assert numbers.decode(numbers.encode(y, "E5M2"), "E5M2").tolist() == [57344] * 4
    assert np.isnan(numbers.decode(numbers.encode(x[-1:], "E5M2"), "E5M2"))


def test_the_same_byte_is_half_the_number_in_fnuz():
    codes = np.arange(1, 0x78, dtype=np.uint8)
    assert (numbers.decode(codes, "E4M3") == 2 * numbers.decode(codes, "E4M3FNUZ")).all()


def test_scales_have_no_sign():
    assert numbers.decode(numbers.encode(np.float32([-3, 0, 1.5]), "UE4M3"), "UE4M3").tolist() == [0, 0, 1.5]
    assert numbers.decode(np.uint8([0x38, 0xB8]), "UE4M3").tolist() == [1, 1]
    assert numbers.decode(numbers.encode(np.float32([0, 1, 2.9, 1e38]), "E8M0"), "E8M0").tolist() == [
        2.0**-127,
        1,
        2,
        2.0**126,
    ]


def test_what_is_no_number_is_refused():
    with pytest.raises(UsageError, match="E2M1 has no NaN"):
        numbers.encode(np.float32([np.nan]), "E2M1")
    with pytest.raises(UsageError, match="there is no small float"):
        numbers.encode(np.zeros(1), "E4M4")


def test_rounding_through_another_type_first_differs():
    x = np.random.default_rng(0).standard_normal(1 << 18).astype(np.float32) * 50
    direct = numbers.encode(x, "E4M3")
    for dtype, low, high in ((ml_dtypes.bfloat16, 0.02, 0.04), (np.float16, 0.002, 0.006)):
        twice = numbers.encode(x.astype(dtype).astype(np.float32), "E4M3")
        assert low < (direct != twice).mean() < high


@given(
    st.integers(0, 5), st.integers(1, 3), st.sampled_from(["tensor", "row", "block"]), st.booleans(), st.integers(0, 99)
)
def test_int8_is_within_half_a_step(rows, blocks, granularity, affine, seed):
    x = np.random.default_rng(seed).standard_t(3, (rows, 32 * blocks)).astype(np.float32)
    found = numbers.quantize_int8(x, granularity, affine=affine)
    assert found.codes.shape == x.shape
    assert found.clipped == 0
    step = np.repeat(found.scales, x.shape[1] // found.scales.shape[1], axis=1) if rows else 1
    slack = 1.01 if affine else 0.5001
    assert (np.abs(found.decode() - x) <= slack * step + 1e-6).all()
    if not affine:
        assert (found.codes > -128).all()
    else:  # 0 is exact
        assert (numbers.quantize_int8(np.zeros_like(x), granularity, affine=True).decode() == 0).all()


def test_calibrated_scales_clip_and_say_so():
    x = np.random.default_rng(0).standard_normal((64, 256)).astype(np.float32)
    x[3, 7] = 100
    assert numbers.static_scale(x) == pytest.approx(100 / 127)
    percentile = numbers.static_scale(x, "percentile", percentile=99.9)
    best = numbers.static_scale(x, "mse")
    assert percentile < best < 100 / 127
    by = {m: numbers.quantize_int8(x, "tensor", method=m) for m in ("max", "percentile", "mse")}
    assert by["max"].clipped == 0
    assert by["percentile"].clipped >= 1
    static = numbers.quantize_int8(2 * x, "tensor", scale=numbers.static_scale(x))
    assert static.clipped == 1
    assert static.codes[3, 7] == 127


def test_int8_of_zeros_and_nothing():
    for granularity in ("tensor", "row", "token", "block"):
        assert (numbers.quantize_int8(np.zeros((2, 32)), granularity).decode() == 0).all()
        assert numbers.quantize_int8(np.zeros((0, 32)), granularity).decode().shape == (0, 32)


@pytest.mark.parametrize(
    ("x", "options", "error"),
    [
        ([[np.nan]], {}, CodecError),
        ([[1, np.inf]], {}, CodecError),
        ([1.0], {}, CodecError),
        (np.ones((2, 33)), {"granularity": "block"}, CodecError),
        (np.ones((2, 32)), {"granularity": "block", "block": 0}, CodecError),
        (np.ones((2, 32)), {"granularity": "column"}, UsageError),
        (np.ones((2, 32)), {"granularity": "row", "method": "mse"}, UsageError),
        (np.ones((2, 32)), {"granularity": "tensor", "method": "luck"}, UsageError),
        (np.ones((2, 32)), {"granularity": "tensor", "affine": True, "scale": 1.0}, UsageError),
        (np.ones((2, 32)), {"granularity": "tensor", "scale": np.nan}, CodecError),
    ],
)
def test_int8_refuses(x, options, error):
    with pytest.raises(error):
        numbers.quantize_int8(np.array(x), **options)


@given(st.integers(0, 4), st.integers(0, 4), st.integers(0, 3000), st.integers(0, 2**32))
def test_sums_are_exact(n, rows, cols, seed):
    rng = np.random.default_rng(seed)
    x, w = (rng.integers(-127, 128, (k, cols)).astype(np.int8) for k in (n, rows))
    assert (sums_int8(x, w) == x.astype(np.int64) @ w.astype(np.int64).T).all()


def test_the_largest_sum_fits_int32():
    most = np.full((1, MOST_COLUMNS), 127, np.int8)
    assert sums_int8(most, -most)[0, 0] == -MOST_COLUMNS * 127**2
    with pytest.raises(CodecError, match="do not fit int32"):
        sums_int8(np.full((1, MOST_COLUMNS + 1), 127, np.int8), np.full((1, MOST_COLUMNS + 1), 127, np.int8))


def test_w8a8_is_near_the_product():
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((5, 640)).astype(np.float32), rng.standard_normal((7, 640)).astype(np.float32)
    y = numbers.multiply_int8(numbers.quantize_int8(x, "token"), numbers.quantize_int8(w, "row"))
    assert numbers.decibels(x @ w.T, y) > 35
    with pytest.raises(CodecError, match="symmetric"):
        numbers.multiply_int8(numbers.quantize_int8(x, "block"), numbers.quantize_int8(w))
    with pytest.raises(CodecError, match="cannot be multiplied"):
        sums_int8(np.zeros((2, 3), np.int8), np.zeros((2, 4), np.int8))


# Decibels as they were measured by others; rows of 4096.
NOISE = {
    "Gaussian weights": [29.6, 31.5, 31.5, 32.4, 38.2, 41.2, 45.4, 25.6, 37.5],
    "Laplace": [30.5, 31.5, 31.6, 33.0, 32.6, 36.8, 43.4, 25.6, 37.6],
    "Student t, 4 degrees": [30.5, 31.5, 31.7, 33.3, None, 31.7, 42.7, 25.7, 37.6],  # one scale: luck of the largest
}


def test_the_table_of_noise(capsys):
    main(["formats", "--numbers"])
    lines = {line.strip().split("  ")[0]: line.strip() for line in capsys.readouterr().out.splitlines()}
    for data, expected in NOISE.items():
        found = lines[data][len(data) :].split()
        for got, wanted in zip(found, expected, strict=True):
            assert wanted is None or float(got) == pytest.approx(wanted, abs=0.8)
    ordinary = lines["… of these, the ordinary ones"].split()[-9:]
    assert abs(float(ordinary[4])) < 0.1  # INT8 with one scale: nothing is left of them
    assert float(ordinary[1]) == pytest.approx(31.5, abs=0.2)


@pytest.fixture(scope="module")
def model(fixtures, tmp_path_factory):
    return convert(fixtures / "pylib-llama", tmp_path_factory.mktemp("numbers") / "f16.gguf", "F16")


def test_the_noise_of_a_models_weights(model, capsys):
    main(["formats", "--measure", str(model), "--numbers", "--rows", "64", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["Q8_0"]["decibels"] > found["INT8 per row"]["decibels"] > found["E4M3 per row"]["decibels"]
    assert found["E4M3 per row"]["decibels"] == pytest.approx(31.6, abs=0.5)
    assert found["INT8 per tensor"]["worst"].endswith(".weight")
    main(["formats", "--measure", str(model), "blk.0.ffn_down.weight", "--numbers", "--rows", "8"])
    assert "blk.0.ffn_down.weight" in capsys.readouterr().out


def test_the_noise_of_a_models_activations(model, capsys, fixtures):
    text = fixtures.parent / "tests" / "test_numbers.py"
    main(["formats", "--measure", str(model), "--numbers", "-f", str(text), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert set(found) == {"INT8 static", "INT8 per token", "INT8 per 32", "E4M3 static", "E4M3 per token"}
    assert found["INT8 static"]["decibels"] < found["INT8 per token"]["decibels"] < found["INT8 per 32"]["decibels"]
    assert found["INT8 per token"]["clipped"] == 0
    assert found["INT8 static"]["numbers"] == found["INT8 per 32"]["numbers"] > 0
    assert found["INT8 static"]["worst_decibels"] <= found["INT8 static"]["decibels"]


@pytest.mark.parametrize(
    "flags", [["-f", "x"], ["--numbers", "--types", "Q8_0"], ["--measure", "m", "t", "--numbers", "-f", "x"]]
)
def test_the_noise_of_nothing_is_refused(flags):
    with pytest.raises(SystemExit) as end:
        main(["formats", *flags])
    assert end.value.code == 2
