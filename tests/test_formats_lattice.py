"""Weights made of blocks and rounded come back as these blocks; other weights are not taken for such."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from ggufkit.formats.affine import Affine, join
from ggufkit.formats.codec import decode, encode
from ggufkit.formats.lattice import LATTICES, encode_lattice, on_lattice
from ggufkit.formats.table import FORMATS

ROUND = {
    "BF16": lambda x: x.astype(ml_dtypes.bfloat16).astype(np.float32),
    "F16": lambda x: x.astype(np.float16).astype(np.float32),
    "F32": lambda x: x,
}


def random_blocks(name: str, n: int, low: float = 2.0**-17, high: float = 10.0) -> np.ndarray:
    """Blocks of random levels, (n, type_size), with scales spread evenly over the exponents, some negative."""
    rng = np.random.default_rng(n)
    lowest, highest, offset = LATTICES[name]
    d = np.exp(rng.uniform(np.log(low), np.log(high), (n, 1))).astype(np.float16).astype(np.float32)
    levels = rng.integers(lowest, highest + 1, (n, 32))
    if offset:
        m = (-d * rng.uniform(0, highest, (n, 1))).astype(np.float16).astype(np.float32)
    else:
        d = np.where(rng.random((n, 1)) < 0.2, -d, d)
        m = d * np.float32(lowest)
    return join(Affine((levels - lowest).astype(np.uint8), d, m), FORMATS[name])


@pytest.mark.parametrize("source", ROUND)
@pytest.mark.parametrize("name", LATTICES)
def test_blocks_come_back(name: str, source: str):
    n = 400
    weights = ROUND[source](decode(random_blocks(name, n), FORMATS[name]))
    if source == "F16":  # float16 has nothing between its least numbers
        weights = weights[np.abs(weights).max(axis=1) > 2.0**-9]
    found, on = encode_lattice(weights, FORMATS[name], source)
    assert on == len(weights)
    np.testing.assert_array_equal(weights, ROUND[source](decode(found, FORMATS[name])))


@pytest.mark.parametrize("name", ["Q4_0", "Q8_0", "Q4_1"])
def test_what_an_encoder_wrote_comes_back(name: str):
    trained = np.random.default_rng(3).normal(0, 0.02, (200, 64)).astype(np.float32)
    blocks = encode(trained, name)
    weights = ROUND["BF16"](decode(blocks, name))
    found, on = encode_lattice(weights, FORMATS[name], "BF16")
    assert on == 400
    np.testing.assert_array_equal(weights, ROUND["BF16"](decode(found, name)))
    exact, _ = encode_lattice(decode(blocks, name), FORMATS[name], "F32")  # here the scale is determined
    np.testing.assert_array_equal(decode(blocks, name), decode(exact, name))


@pytest.mark.parametrize("source", ["BF16", "F16"])
@pytest.mark.parametrize("name", LATTICES)
def test_plain_weights_are_on_none(name: str, source: str):
    rng = np.random.default_rng(4)
    for scale in (1e-3, 0.02, 1.0):
        for weights in (
            rng.normal(0, scale, (100, 64)),
            rng.uniform(-scale, scale, (100, 64)),
            rng.laplace(0, scale, (100, 64)),
        ):
            assert on_lattice(ROUND[source](weights.astype(np.float32)), FORMATS[name], source) == 0


def test_odd_blocks():
    weights = np.zeros((5, 32), np.float32)
    weights[1] = 0.5
    weights[2, 3] = np.inf
    weights[3, 5] = 1e-30
    weights[4] = np.arange(32)
    with np.errstate(all="ignore"):
        assert on_lattice(weights, FORMATS["Q4_0"], "BF16") == 1
        assert on_lattice(weights, FORMATS["Q4_1"], "BF16") >= 1
    finite = weights[[0, 1, 4]]
    np.testing.assert_array_equal(finite[:2], decode(encode_lattice(finite, FORMATS["Q4_0"], "BF16")[0], "Q4_0")[:2])
