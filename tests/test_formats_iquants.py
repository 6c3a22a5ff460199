"""The IQ formats against libggml: every byte of the encoders, every bit of the decoders."""

from __future__ import annotations

import ggml
import gguf
import numpy as np
import pytest

from ggufkit.formats import codec
from ggufkit.formats.iquants.codebooks import LEVELS
from ggufkit.formats.iquants.grids import codebook
from ggufkit.formats.table import FORMATS, formats

IQ = [format for format in formats() if format.family == "iquants"]
ALL = pytest.mark.parametrize("format", IQ, ids=lambda f: f.name)


def test_every_iq_format_is_here():
    assert len(IQ) == 9


# ---- Decode -----------------------------------------------------------------------------------------------------


@ALL
def test_decode_equals_libggml_for_any_bytes(format):
    blocks = np.random.default_rng(format.id).integers(0, 256, (1021, format.type_size), dtype=np.uint8)
    expected = ggml.to_float(blocks, format.id)
    assert codec.decode(blocks, format).view(np.uint32).tolist() == expected.view(np.uint32).tolist()


def handmade(name: str, **fields) -> np.ndarray:
    """One block: zero but for the given fields. (type_size,) uint8"""
    block = np.zeros(1, FORMATS[name].dtype)
    for field, value in fields.items():
        block[field] = value
    return block.view(np.uint8)


def first(values: list[int], length: int) -> list[int]:
    return values + [0] * (length - len(values))


def test_iq4_nl_decodes_a_block_made_by_hand():
    out = codec.decode(handmade("IQ4_NL", d=0.5, qs=first([0x8F], 16)), "IQ4_NL")
    assert out[[0, 16, 1, 17]].tolist() == [113 / 2, 1 / 2, -127 / 2, -127 / 2]


def test_iq4_xs_decodes_a_block_made_by_hand():
    # Sub-block 1: low bits 5 of the scale in the high half of byte 0, high bits 2 at bit 2 of scales_h: 37 - 32.
    block = handmade("IQ4_XS", d=2, scales_h=0b1000, scales_l=first([0x50], 4), qs=first([0] * 16 + [0x98], 128))
    out = codec.decode(block, "IQ4_XS")
    assert out[[32, 48, 0]].tolist() == [2 * 5 * 1, 2 * 5 * 13, 2 * -32 * -127]


def test_iq3_xxs_decodes_a_block_made_by_hand():
    # Row 1 is (20, 4, 4, 4). Sign bits 0b11 make the first two weights negative, 1 << 28 is scale 1.
    word = 1 << 28 | 0b11
    qs = [1] + [0] * 63 + list(word.to_bytes(4, "little")) + [0] * 28
    out = codec.decode(handmade("IQ3_XXS", d=1, qs=qs), "IQ3_XXS")
    assert out[:5].tolist() == [-20 * 0.75, -4 * 0.75, 4 * 0.75, 4 * 0.75, 4 * 0.75]
    assert set(out[32:]) == {4 * 0.25}


def test_iq3_s_decodes_a_block_made_by_hand():
    # Bit 1 of the first high byte lifts the second row from 0 to 256.
    row = codec.decode(handmade("IQ3_S", d=1, qh=first([2], 8)), "IQ3_S")[4:8]
    assert row.tolist() == [7, 5, 9, 5]
    out = codec.decode(handmade("IQ3_S", d=1, scales=[0x20, 0, 0, 0], signs=first([0] * 4 + [0x81], 32)), "IQ3_S")
    assert out[31:42].tolist() == [1, -5, 5, 5, 5, 5, 5, 5, -5, 5, 5]


def test_iq2_xxs_decodes_a_block_made_by_hand():
    # Row 1 is (43, 8, …). The signs 0b1 have odd parity, so the eighth weight is negative, too; scale 3.
    word = 3 << 28 | 1
    out = codec.decode(handmade("IQ2_XXS", d=1, qs=first([1, 0, word & 0xFFFF, word >> 16], 32)), "IQ2_XXS")
    assert (out[:9] / 0.875).tolist() == [-43, 8, 8, 8, 8, 8, 8, -8, 8]


def test_iq2_xs_decodes_a_block_made_by_hand():
    block = handmade("IQ2_XS", d=4, qs=first([0b11 << 9 | 1], 32), scales=first([0x42], 8))
    out = codec.decode(block, "IQ2_XS")
    assert (out[:3] / 2.5).tolist() == [-43, -8, 8]
    assert (out[16:18] / 4.5).tolist() == [8, 8]


def test_iq2_s_decodes_a_block_made_by_hand():
    block = handmade("IQ2_S", d=4, qs=first([1] + [0] * 31 + [0x81], 64), scales=first([0x42], 8))
    out = codec.decode(block, "IQ2_S")
    assert (out[:8] / 2.5).tolist() == [-43, 8, 8, 8, 8, 8, 8, -8]
    assert (out[16:18] / 4.5).tolist() == [8, 8]
    high = codec.decode(handmade("IQ2_S", d=8, qh=first([0b1100], 8)), "IQ2_S")  # row 768 for weights 8 to 15
    assert high[8:16].tolist() == [8, 43, 8, 25, 8, 8, 43, 25]


def test_iq1_s_decodes_a_block_made_by_hand():
    # Row 0 is all -1, row 1 has 1 in front. Scale 2 means 5; the top bit shifts down.
    out = codec.decode(handmade("IQ1_S", d=1, qs=first([1], 32), qh=first([0xA000], 8)), "IQ1_S")
    assert out[:2].tolist() == [5 * (1 - 0.125), 5 * (-1 - 0.125)]
    assert out[32] == -1 + 0.125


def test_iq1_m_decodes_a_block_made_by_hand():
    # d = 1.0 is 0x3C00: 0xC in the third, 3 in the fourth of the four top halves; scale 1 means 3.
    scales = np.array([1, 0, 0xC000, 0x3000], np.uint16).view(np.uint8)
    out = codec.decode(handmade("IQ1_M", scales=scales, qs=first([1], 32), qh=first([0x80], 16)), "IQ1_M")
    assert out[[0, 1, 8]].tolist() == [3 * (1 + 0.125), 3 * (-1 + 0.125), 3 * (-1 - 0.125)]
    assert out[16] == -1 + 0.125


# ---- Encode -----------------------------------------------------------------------------------------------------


def rows_of_all_kinds(cols: int = 512) -> np.ndarray:
    """Rows that scale searches find easy, hard or degenerate. (n, cols) float32"""
    rng = np.random.default_rng(7)
    normal = rng.standard_normal((3, cols))
    one_hot = np.zeros((2, cols))
    one_hot[[0, 1], [3, 300]] = 1, -2
    rows = [
        normal,
        rng.standard_t(3, (3, cols)) * 0.02,
        rng.uniform(-1, 1, (2, cols)),
        normal * (rng.random((3, cols)) < 0.1),
        one_hot,
        np.full((1, cols), 0.37),
        np.full((1, cols), -2.5),
        np.zeros((1, cols)),
        normal * 1e-40,
        np.round(normal * 3) * 1.5e-45,
        normal * 1e-30,
        normal * 1e-8,
        normal * 1e4,
        rng.choice([-1.0, 1.0], (1, cols)),
        rng.choice([-1.0, 0.0, 1.0], (1, cols)),
        np.round(normal * 3),
        np.sort(normal, axis=1),
        np.abs(normal),
        np.exp(rng.standard_normal((2, cols)) * 2),
        normal * 10.0 ** rng.integers(-20, 4, (3, cols // 32)).repeat(32, 1),
    ]
    return np.concatenate(rows).astype(np.float32)


def importances(cols: int) -> dict[str, np.ndarray]:
    """(cols,) float32 each"""
    rng = np.random.default_rng(8)
    some = rng.random(cols)
    holes = np.where(rng.random(cols) < 0.3, 0, some)
    holes[:256] = 0
    spiky = np.exp(rng.standard_normal(cols) * 4)
    return {name: w.astype(np.float32) for name, w in (("random", some), ("zeros", holes), ("spiky", spiky))}


def check_encode(rows: np.ndarray, format, importance: np.ndarray | None = None) -> None:
    actual = codec.encode(rows, format, importance)
    expected = ggml.quantize(rows, format.id, importance)
    differing = (actual != expected).reshape(-1, format.type_size).any(1)
    assert not differing.any(), f"blocks {np.flatnonzero(differing)[:10]} differ"


WITHOUT = pytest.mark.parametrize("format", [f for f in IQ if not f.needs_importance], ids=lambda f: f.name)


@WITHOUT
def test_encode_equals_libggml(format):
    check_encode(rows_of_all_kinds(), format)


@ALL
@pytest.mark.parametrize("kind", ["random", "zeros", "spiky"])
def test_encode_with_importance_equals_libggml(format, kind):
    check_encode(rows_of_all_kinds(), format, importances(512)[kind])


@ALL
@pytest.mark.parametrize("rows", [1, 2, 3, 5])
def test_encode_of_few_blocks_equals_libggml(format, rows):
    x = np.random.default_rng(rows).standard_normal((rows, 256)).astype(np.float32)
    check_encode(x, format, importances(256)["random"])


def test_error_of_a_normal_row_shrinks_with_the_bits():
    x = np.random.default_rng(3).standard_normal((4, 1024)).astype(np.float32)
    errors = {}
    for format in sorted(IQ, key=lambda f: f.bits_per_weight):
        error = codec.decode(codec.encode(x, format, np.ones(1024, np.float32)), format) - x
        errors[format.name] = float(np.square(error).mean())
    assert list(errors.values()) == sorted(errors.values(), reverse=True)
    assert errors["IQ4_NL"] < 0.006
    assert errors["IQ1_S"] < 0.25


@pytest.mark.parametrize("name", LEVELS)
def test_codebooks_equal_the_gguf_packages(name):
    source = getattr(gguf.quants, name)
    source.init_grid()
    assert np.array_equal(codebook(name), source.grid[0, 0])
    assert codebook(name).dtype == np.int8
