"""`diff`: what it says of metadata, types, shapes and contents."""

import json
import math

import numpy as np
import pytest

import ggufkit
from ggufkit.cli import main
from ggufkit.formats.codec import decode, encode
from ggufkit.formats.table import FORMATS
from ggufkit.gguf.copy import copy_model
from ggufkit.gguf.diff import diff_fields, diff_tensors
from ggufkit.gguf.header import Value, ValueType
from ggufkit.gguf.writer import Writer

F32, F16, Q8_0, Q4_0 = (FORMATS[name] for name in ("F32", "F16", "Q8_0", "Q4_0"))


@pytest.fixture
def make(tmp_path):
    """Write a model of {name: (format, array of shape (rows, cols))}."""

    def make(name, metadata, tensors):
        path = tmp_path / name
        shapes = [(key, x.shape, format) for key, (format, x) in tensors.items()]
        with Writer(path, metadata, shapes, force=True) as out:
            for key, (format, x) in tensors.items():
                out.write(key, 0, x.astype("<f4").view("u1") if format is F32 else encode(x, format))
        return path

    return make


def statuses(a, b, **how) -> dict[str, str]:
    with ggufkit.open(a) as one, ggufkit.open(b) as other:
        return {t.name: t.status for t in diff_tensors(one, other, **how)}


def test_each_kind_of_difference_is_named(make):
    rng = np.random.default_rng(2)
    x = rng.normal(size=(3000, 512)).astype(np.float32)
    half = x.astype(np.float16).astype(np.float32)
    other = x.copy()
    other[2999, 511] += 1
    a = {
        "same": (Q8_0, x),
        "half": (F16, half),
        "quant": (F32, x),
        "one": (F32, x),
        "shape": (F32, x),
        "a": (F32, x[:1]),
    }
    b = {"one": (F32, other), "same": (Q8_0, x), "half": (F32, half), "quant": (Q4_0, x), "shape": (F32, x.T.copy())}
    b["b"] = (F32, x[:1])
    one, two = make("a.gguf", {}, a), make("b.gguf", {}, b)
    expected = {
        "same": "identical",
        "half": "same values",
        "quant": "requantized",
        "one": "differs",
        "shape": "shape",
        "a": "only in A",
        "b": "only in B",
    }
    assert statuses(one, two) == expected
    assert list(statuses(one, two)) == list(expected)
    assert statuses(one, two, data=False)["quant"] == "other type"
    assert set(statuses(one, one).values()) == {"identical"}

    moved = []
    with ggufkit.open(one) as m, ggufkit.open(two) as n:
        found = {t.name: t for t in diff_tensors(m, n, threads=2, advance=lambda n, _: moved.append(n))}
        assert sum(moved) == sum(m.info[name].nbytes for name in ("same", "half", "quant", "one"))
    error = decode(encode(x, Q4_0), Q4_0).astype(np.float64) - x
    assert math.isclose(found["quant"].rms, np.sqrt(np.mean(error**2)), rel_tol=1e-9)
    assert math.isclose(
        found["quant"].relative, np.sqrt(np.mean(error**2) / np.mean(x.astype(float) ** 2)), rel_tol=1e-9
    )
    assert math.isclose(found["quant"].largest, np.abs(error).max())
    assert math.isclose(found["one"].rms, np.sqrt(1 / x.size), rel_tol=1e-6)


def test_numbers_that_are_not_finite_are_compared(make):
    x = np.array([[np.nan, np.inf, -np.inf, 1, 0, -0.0]], np.float32)
    y = np.array([[np.nan, np.inf, -np.inf, 1, -0.0, 0]], np.float32)
    z = np.array([[np.nan, np.nan, -np.inf, 1, 0, 0]], np.float32)
    zeros = np.zeros((0, 6), np.float32)
    a = make("a.gguf", {}, {"x": (F32, x), "z": (F32, x), "none": (F32, zeros)})
    b = make("b.gguf", {}, {"x": (F32, y), "z": (F32, z), "none": (F32, zeros)})
    assert statuses(a, b) == {"x": "same values", "z": "differs", "none": "identical"}
    with ggufkit.open(a) as one, ggufkit.open(b) as other:
        assert math.isnan(diff_tensors(one, other)[1].rms)


def test_metadata_differences_are_found(make, tmp_path):
    a = {
        "same": 1,
        "nan": float("nan"),
        "gone": "x",
        "type": 7,
        "value": "old",
        "items": ["a", "b", "c"],
        "long": [1, 2],
    }
    b = {"same": 1, "nan": float("nan"), "type": Value(ValueType.INT32, 7), "value": "new"}
    b |= {"items": ["a", "B", "C"], "long": [1, 2, 3], "more": True}
    with ggufkit.open(make("a.gguf", a, {})) as one, ggufkit.open(make("b.gguf", b, {})) as other:
        found = {d.key: (d.items, d.first) for d in diff_fields(one.fields, other.fields)}
        copy_model(one, tmp_path / "big.gguf", one.fields, byteorder="big")
        with ggufkit.open(tmp_path / "big.gguf") as big:
            assert diff_fields(one.fields, big.fields) == []
    assert found == {
        "gone": (0, None),
        "type": (0, None),
        "value": (0, None),
        "items": (2, 1),
        "long": (1, 2),
        "more": (0, None),
    }


def test_report_and_exit_code(make, capsys):
    def run(*args) -> tuple[int, str]:
        code = 0
        try:
            main(["diff", *map(str, args)])
        except SystemExit as e:
            code = e.code
        return code, capsys.readouterr().out

    x = np.linspace(-1, 1, 64, dtype=np.float32).reshape(2, 32)
    a = make("a.gguf", {"evil": "\x1b[2J"}, {"w": (F32, x), "v": (F32, x)})
    b = make("b.gguf", {}, {"w": (Q8_0, x), "v": (F32, x)})
    code, out = run(a, b)
    assert code == 0
    assert r"  - evil  str \x1b[2J" in out
    assert "tensors (1 requantized, 1 identical)" in out
    assert "w       requantized  F32 → Q8_0  32 × 2  " in out
    assert run("--exit-code", a, b)[0] == 1
    assert run("--exit-code", a, a)[0] == 0
    found = json.loads(run("--json", a, b)[1])
    assert found["metadata"] == [{"key": "evil", "a": {"type": "str", "value": "\x1b[2J"}}]
    assert found["tensors"][0]["relative_rms"] < 0.01
