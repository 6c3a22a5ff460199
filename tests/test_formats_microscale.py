"""MXFP4 and NVFP4: hand-made blocks, scales, and the one case in which the reference's bytes are not wanted."""

from __future__ import annotations

import ggml
import numpy as np
import pytest

from ggufkit.formats import codec
from ggufkit.formats.microscale import DOUBLED, UE4M3
from ggufkit.formats.table import FORMATS

E2M1 = DOUBLED / 2


def decoded(block, name):
    return codec.decode(np.frombuffer(block, np.uint8), name)


def test_mxfp4_scale_is_a_power_of_two():
    qs = bytes(j | (15 - j) << 4 for j in range(16))
    expected = 8 * np.concatenate([E2M1, E2M1[::-1]])
    assert np.array_equal(decoded(bytes([127 + 3]) + qs, "MXFP4"), expected)


def test_nvfp4_sixteen_weights_share_a_scale():
    qs = bytes(j | (15 - j) << 4 for j in range(8)) * 4
    d = bytes([0b0_0111_000, 0b0_0111_100, 0b0_1000_000, 0b0_0000_001])  # 1, 1.5, 2, 2⁻⁹
    sixteen = np.concatenate([E2M1[:8], E2M1[:7:-1]])
    expected = np.concatenate([scale * sixteen for scale in (1, 1.5, 2, 2.0**-9)])
    assert np.array_equal(decoded(d + qs, "NVFP4"), expected)


def test_ue4m3_has_448_as_its_largest():
    assert 2 * UE4M3[0x7E] == 448
    assert UE4M3[0x7F] == 0


@pytest.mark.parametrize("k", [-125, -100, -64, -2, -1, 0, 1, 2, 3, 17, 64, 127])
def test_mxfp4_exponent_around_powers_of_two(k):
    """log2f rounds up just below some of them."""
    power = np.float32(2.0**k)
    near = power.view(np.uint32) + np.arange(-70, 3).astype(np.uint32)
    x = np.zeros((near.size, 32), np.float32)
    x[:, 5] = near.view(np.float32)
    expected, actual = ggml.quantize(x, FORMATS["MXFP4"].id), codec.encode(x, "MXFP4")
    refused = expected[:, 0] == 255
    assert np.array_equal(expected[~refused], actual[~refused])


def test_mxfp4_never_writes_the_scale_that_stands_for_nan():
    x = np.zeros((1, 32), np.float32)
    x[0, 3] = 1.5 * 2.0**-126
    assert ggml.quantize(x, FORMATS["MXFP4"].id)[0, 0] == 255
    blocks = codec.encode(x, "MXFP4")
    assert ggml.valid(blocks, FORMATS["MXFP4"].id)
    assert not codec.decode(blocks, "MXFP4").any()
