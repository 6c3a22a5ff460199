"""Every format's encoder and decoder against libggml, byte for byte, over the table of formats."""

from __future__ import annotations

import importlib

import ggml
import numpy as np
import pytest
import weights
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ggufkit.errors import CodecError, UsageError
from ggufkit.formats import codec
from ggufkit.formats.table import FORMATS, format_by_name, formats


def has_kernel(format, verb):
    try:
        family = importlib.import_module(f"ggufkit.formats.{format.family}")
    except ModuleNotFoundError:
        return False
    return hasattr(family, f"{format.name.lower()}_{verb}")


def names(verb):
    return [format.name for format in formats() if has_kernel(format, verb)]


DECODABLE = [name for name in names("decode") if ggml.traits(FORMATS[name].id).to_float]
ENCODABLE = [name for name in names("encode") if FORMATS[name].encodable]
PLAIN = [name for name in ENCODABLE if not FORMATS[name].needs_importance]
# ggml_quantize_chunk does not look at the importance.
IGNORES_IMPORTANCE = {"F16", "BF16", "Q8_0", "TQ1_0", "TQ2_0", "MXFP4", "NVFP4", "Q1_0", "Q2_0"}
WEIGHTED = [name for name in ENCODABLE if name in IGNORES_IMPORTANCE or name in names("encode_weighted")]
COLS = 512


def assert_same_bytes(expected, actual, name, what, x):
    if np.array_equal(expected, actual):
        return
    format = FORMATS[name]
    shape = (-1, format.type_size)
    differing = (expected.reshape(shape) != actual.reshape(shape)).any(1)
    block = int(differing.argmax())
    weights = x.reshape(-1, format.block_size)[block]
    pytest.fail(
        f"{name}, {what}: {differing.sum()} of {differing.size} blocks differ, the first is {block}\n"
        f"expected {expected.reshape(shape)[block].tobytes().hex()}\n"
        f"actual   {actual.reshape(shape)[block].tobytes().hex()}\nweights {weights.tolist()}"
    )


def expected_bytes(x, name, importance=None):
    """libggml's bytes; None where its own check refuses them (a scale beyond float16)."""
    blocks = ggml.quantize(x, FORMATS[name].id, importance)
    return blocks if ggml.valid(blocks, FORMATS[name].id) else None


@pytest.mark.parametrize("name", PLAIN)
def test_encode_equals_libggml(name):
    for what, x in weights.weights(5, COLS):
        if (expected := expected_bytes(x, name)) is not None:
            assert_same_bytes(expected, codec.encode(x, name, threads=1), name, what, x)


@pytest.mark.parametrize("name", WEIGHTED)
def test_encode_with_importance_equals_libggml(name):
    for importance_kind, importance in weights.importances(COLS):
        for what, x in weights.weights(3, COLS, seed=1):
            if (expected := expected_bytes(x, name, importance)) is not None:
                actual = codec.encode(x, name, importance, threads=1)
                assert_same_bytes(expected, actual, name, f"{what}, importance {importance_kind}", x)


@pytest.mark.parametrize("name", DECODABLE)
def test_decode_equals_libggml_for_any_bytes(name):
    format = FORMATS[name]
    blocks = weights.random_blocks(1000, format.type_size)
    expected = ggml.to_float(blocks, format.id)
    actual = codec.decode(blocks.reshape(10, -1), name, threads=1).reshape(expected.shape)
    # NaNs of random scales: any NaN is right.
    same = (expected.view(np.uint32) == actual.view(np.uint32)) | (np.isnan(expected) & np.isnan(actual))
    assert same.all(), f"{name}: weight {np.argwhere(~same)[0]}"


@pytest.mark.parametrize("name", [format.name for format in formats()])
@pytest.mark.parametrize("shift", [0, 1])  # floats; at most every fourth lies on 16 bytes
def test_decode_past_the_caches_is_the_same(name, shift, monkeypatch):
    format = FORMATS[name]
    blocks = weights.random_blocks(3000 // format.block_size + 5, format.type_size).reshape(1, -1)
    expected = codec.decode(blocks, name)
    monkeypatch.setattr(codec, "_PAST_CACHES", 0)
    out = np.empty(expected.size + 1, np.float32)[shift:][: expected.size].reshape(expected.shape)
    assert np.array_equal(codec.decode(blocks, name, out=out).view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize(
    "name", [format.name for format in formats() if format.name not in ("Q8_1", "I8", "I16", "I32", "I64")]
)
def test_validate_equals_libggml_for_any_bytes(name):
    format = FORMATS[name]
    blocks = weights.random_blocks(300, format.type_size, seed=3)
    # Scales that are infinite, NaN, or nearly, are rare in random bytes.
    rng = np.random.default_rng(0)
    special = np.array([0x7C00, 0xFC00, 0x7E00, 0x7BFF, 0x7F80, 0xFF80, 0x7F7F], "<u2").view(np.uint8).reshape(-1, 2)
    if format.type_size > 1:
        at = rng.integers(0, format.type_size // 2, len(blocks))
        for block, k in zip(blocks[:200], at, strict=False):
            block[2 * k : 2 * k + 2] = special[rng.integers(len(special))]
    for block in blocks:
        assert (codec.validate(block, format) is None) == ggml.valid(block, format.id), block.tobytes().hex()
    valid = [block for block in blocks if codec.validate(block, format) is None]
    if len(valid) < len(blocks):
        first_bad = next(i for i, block in enumerate(blocks) if codec.validate(block, format) is not None)
        assert codec.validate(blocks, format) == first_bad


finite = st.floats(-1e4, 1e4, width=32)


@pytest.mark.parametrize("name", PLAIN)
@settings(max_examples=25, deadline=None)
@given(x=hnp.arrays(np.float32, (1, 256), elements=finite, fill=finite))
def test_encode_equals_libggml_for_any_weights(name, x):
    if (expected := expected_bytes(x, name)) is not None:
        assert_same_bytes(expected, codec.encode(x, name, threads=1), name, "hypothesis", x)


@pytest.mark.parametrize("name", PLAIN)
def test_bytes_do_not_depend_on_threads_or_on_how_rows_are_cut(name, monkeypatch):
    monkeypatch.setattr(codec, "CHUNK", 3 * COLS)
    _, x = next(weights.weights(23, COLS))
    whole = codec.encode(x, name, threads=1)
    for threads in (2, 3):
        assert np.array_equal(whole, codec.encode(x, name, threads=threads))
    one_by_one = np.concatenate([codec.encode(x[i : i + 1], name, threads=1) for i in range(len(x))])
    assert np.array_equal(whole, one_by_one)


@pytest.mark.parametrize("name", PLAIN)
def test_weights_that_are_not_finite_are_named(name):
    x = np.zeros((3, COLS), np.float32)
    x[2, 17] = np.nan
    with pytest.raises(CodecError, match=rf"blk\.0: row 2, column 17 is nan, which {name}"):
        codec.encode(x, name, name="blk.0")


@pytest.mark.parametrize("source", ["F32", "F16", "BF16", "F64", "I8", "I16", "I32", "I64", "Q8_0", "Q4_K", "IQ3_S"])
@pytest.mark.parametrize("target", ["F32", "BF16", "Q5_0", "Q4_K", "IQ3_XXS"])
@pytest.mark.parametrize("weighted", [False, True])
def test_recode_is_decode_and_encode(source, target, weighted):
    rng = np.random.default_rng(0)
    x = np.round(rng.standard_normal((5, 512)) * 20).astype(np.float32)
    blocks = codec.encode(x, source)
    importance = rng.random(512).astype(np.float32) if weighted else None
    expected = codec.encode(codec.decode(blocks, source), target, importance)
    for chunk in (1, 1024, 1 << 17):  # a row, two, all
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(codec, "CHUNK", chunk)
            out = np.full_like(expected, 99)
            codec.recode(blocks, format_by_name(source), format_by_name(target), importance, out=out)
        assert np.array_equal(out, expected)


@pytest.mark.parametrize("source", ["F32", "F16", "F64"])
@pytest.mark.parametrize("target", ["F16", "Q4_K", "IQ3_XXS"])
def test_recode_names_the_weight_that_is_not_finite(source, target, monkeypatch):
    monkeypatch.setattr(codec, "CHUNK", 512)
    x = np.zeros((5, 256), {"F32": np.float32, "F16": np.float16, "F64": np.float64}[source])
    x[3, 7] = -np.inf
    blocks, out = x.view(np.uint8), np.empty((5, format_by_name(target).row_bytes(256)), np.uint8)
    with pytest.raises(CodecError, match=rf"t: row 13, column 7 is -inf, which {target}"):
        codec.recode(blocks, format_by_name(source), format_by_name(target), out=out, name="t", first_row=10)


def test_recode_names_the_block_that_is_too_large(monkeypatch):
    monkeypatch.setattr(codec, "CHUNK", 512)
    x = np.zeros((5, 256), np.float32)
    x[4, 250] = 1e38
    out = np.empty((5, format_by_name("Q8_0").row_bytes(256)), np.uint8)
    with pytest.raises(CodecError, match=r"row 4, columns 224 to 255: ±1e\+38 is too large for Q8_0"):
        codec.recode(x.view(np.uint8), format_by_name("F32"), format_by_name("Q8_0"), out=out)


def test_recode_refuses_other_arrays():
    blocks, wide = np.zeros((4, 512), np.uint8), np.zeros((4, 300), np.uint8)
    for out in (wide[:, :272], np.frombuffer(bytes(4 * 272), np.uint8).reshape(4, 272), wide[:3, :272].copy()):
        with pytest.raises(CodecError, match=r"array of shape \(4, 272\)"):
            codec.recode(blocks, format_by_name("F16"), format_by_name("Q8_0"), out=out)
    assert not wide.any()


def test_encode_refuses_what_it_cannot_do():
    x = np.zeros((2, 48), np.float32)
    with pytest.raises(CodecError, match="multiple of 32"):
        codec.encode(x, "Q8_0")
    with pytest.raises(CodecError, match="only holds activations"):
        codec.encode(np.zeros((1, 256), np.float32), "Q8_K")
    x = np.zeros((2, 64), np.float32)
    with pytest.raises(CodecError, match=r"one value a column, shape \(64,\)"):
        codec.encode(x, "Q4_0", np.ones(32, np.float32))
    with pytest.raises(CodecError, match="not negative; column 3 is -1"):
        codec.encode(x, "Q4_0", np.where(np.arange(64) == 3, -1, 1))
    with pytest.raises(CodecError, match="needs importance"):
        codec.encode(np.zeros((1, 256), np.float32), "IQ1_S")
    x[1, 40] = 1e38
    with pytest.raises(CodecError, match=r"row 1, columns 32 to 63: ±1e\+38 is too large for Q8_0"):
        codec.encode(x, "Q8_0")


def test_encode_and_decode_write_to_given_arrays():
    x = np.ones((2, 64), np.float32)
    blocks = np.empty((2, 68), np.uint8)
    assert codec.encode(x, "Q8_0", out=blocks) is blocks
    rows = np.empty((2, 64), np.float32)
    assert codec.decode(blocks, "Q8_0", out=rows) is rows
    assert np.allclose(rows, x, rtol=1e-3)
    with pytest.raises(CodecError, match=r"shape \(2, 68\)"):
        codec.encode(x, "Q8_0", out=blocks[:1])
    with pytest.raises(CodecError, match="34-byte block"):
        codec.decode(blocks[:, :33], "Q8_0")


@pytest.mark.parametrize("name", ["BF16", "I8", "Q4_K", "IQ3_S"])
def test_decode_takes_blocks_of_any_shape(name):
    size, cols = FORMATS[name].type_size, FORMATS[name].block_size
    blocks = np.random.default_rng(0).integers(0, 100, (2, 3, 4 * size), dtype=np.uint8)
    whole = codec.decode(blocks, name)
    assert whole.shape == (2, 3, 4 * cols)
    for part, expected in ((blocks[0, 0], whole[0, 0]), (blocks[:, 1], whole[:, 1]), (codec.frozen(blocks), whole)):
        assert np.array_equal(codec.decode(part, name).view(np.uint32), np.ascontiguousarray(expected).view(np.uint32))


def test_encode_keeps_numbers_exactly_or_refuses():
    assert codec.encode([[1, -2]], "I16").tobytes() == b"\x01\x00\xfe\xff"
    with pytest.raises(CodecError, match="cannot be held exactly by I8"):
        codec.encode([[1, 300]], "I8")
    with pytest.raises(CodecError, match="1e\\+300 is beyond float32"):
        codec.encode(np.array([[1e300]]), "F64")
    assert codec.decode(codec.encode(np.array([[0.5]]), "F64"), "F64") == 0.5


def test_no_threads_are_refused_however_few_the_rows():
    with pytest.raises(UsageError, match="at least 1, not '0'"):
        codec.encode(np.zeros((1, 32)), "Q8_0", threads=0)
    with pytest.raises(UsageError, match="at least 1, not '0'"):
        codec.decode(np.zeros((1, 34), np.uint8), "Q8_0", threads=0)
