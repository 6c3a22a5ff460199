"""The table of formats against gguf-py and libggml."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys

import ggml
import gguf
import pytest

from ggufkit.checkpoint.safetensors import RAW_DTYPES
from ggufkit.errors import CodecError
from ggufkit.formats.table import BY_ID, FORMATS, format_by_id, format_by_name, formats


@pytest.mark.parametrize("format", formats(), ids=lambda f: f.name)
def test_sizes_equal_libggml(format):
    traits = ggml.traits(format.id)
    assert traits.type_name.decode().upper() == format.name
    assert traits.blck_size == format.block_size
    assert traits.type_size == format.type_size
    assert traits.is_quantized == format.is_quantized
    assert format.dtype.itemsize == format.type_size


@pytest.mark.parametrize("format", formats(), ids=lambda f: f.name)
def test_sizes_equal_gguf_py(format):
    if format.name not in gguf.GGMLQuantizationType.__members__:
        pytest.skip("this release of gguf-py does not know the type")
    if format.name == "Q8_1":
        pytest.skip("gguf-py counts 4-byte d and s; GGML has halves since 2024")
    kind = gguf.GGMLQuantizationType[format.name]
    assert kind.value == format.id
    assert gguf.GGML_QUANT_SIZES[kind] == (format.block_size, format.type_size)


def test_table_covers_every_type_of_gguf_py():
    assert {kind.value for kind in gguf.GGMLQuantizationType} <= set(BY_ID)


def test_fallbacks_have_smaller_blocks():
    for format in formats():
        if format.fallback:
            assert FORMATS[format.fallback].block_size < format.block_size


def test_format_by_name_any_case_and_hint():
    assert format_by_name("q4_k") is FORMATS["Q4_K"]
    with pytest.raises(CodecError, match=r"Q4_KM.*did you mean Q4_K"):
        format_by_name("Q4_KM")


def test_format_by_id_unknown():
    assert format_by_id(4) is None  # Q4_2, removed
    assert format_by_id(12) is FORMATS["Q4_K"]


def test_row_bytes_refuses_a_partial_block():
    assert FORMATS["Q4_K"].row_bytes(512) == 288
    with pytest.raises(CodecError, match=r"^w: a row of 288 weights .* multiple of 256; use Q5_0"):
        FORMATS["Q4_K"].row_bytes(288, "w: ")
    with pytest.raises(CodecError, match="use F16"):
        FORMATS["Q4_K"].row_bytes(300)


@pytest.mark.parametrize("format", [*FORMATS.values(), *RAW_DTYPES.values()], ids=lambda f: f.name)
def test_formats_pickle_and_compare_by_name(format):
    assert pickle.loads(pickle.dumps(format)) == format
    assert copy.deepcopy(format) is format
    assert {format: 1}[pickle.loads(pickle.dumps(format))] == 1
    assert [f.name for f in FORMATS.values() if f == format] == [format.name] * (format.id >= 0)


def test_a_format_pickled_elsewhere_is_the_one_here():
    code = "import pickle, sys; from ggufkit.formats.table import FORMATS\n"
    code += "sys.stdout.buffer.write(pickle.dumps((FORMATS['Q4_K'], FORMATS['F16'])))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout
    assert pickle.loads(out) == (FORMATS["Q4_K"], FORMATS["F16"])
    assert FORMATS["Q4_K"].layout.startswith("d:f2 dmin:f2")
