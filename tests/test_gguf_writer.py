"""The writer: bytes equal to gguf-py's, round trips, and no half-written file."""

import struct

import numpy as np
import pytest

import ggufkit
from ggufkit.errors import FileError, GGUFError
from ggufkit.formats.table import FORMATS
from ggufkit.gguf.header import Value, ValueType
from ggufkit.gguf.writer import FileLayout, Writer

F32, Q8_0 = FORMATS["F32"], FORMATS["Q8_0"]


def rewrite(source, target, **options):
    """Read a file and write it again."""
    with ggufkit.open(source) as model:
        tensors = [(t.name, t.shape, t.format) for t in model.tensors.values()]
        with Writer(target, model.fields, tensors, **options) as out:
            for t in model.tensors.values():
                out.write(t.name, 0, t.read(0, t.rows))
    return target


def test_bytes_equal_those_of_gguf_py(tmp_path):
    import gguf

    weights = np.arange(12, dtype=np.float32).reshape(3, 4)
    blocks = np.arange(68, dtype=np.uint8).reshape(2, 34)
    theirs = gguf.GGUFWriter(tmp_path / "theirs.gguf", "llama")
    theirs.add_custom_alignment(64)
    theirs.add_uint32("a.count", 7)
    theirs.add_array("a.names", ["x", "", "ø"])
    theirs.add_array("a.numbers", [1, -2, 3])
    theirs.add_bool("a.flag", True)
    theirs.add_float64("a.f64", 0.1)
    theirs.add_tensor("w", weights)
    theirs.add_tensor("q", blocks, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    theirs.write_header_to_file()
    theirs.write_kv_data_to_file()
    theirs.write_tensors_to_file()
    theirs.close()

    metadata = {
        "general.architecture": "llama",
        "general.alignment": 64,
        "a.count": 7,
        "a.names": ["x", "", "ø"],
        "a.numbers": [1, -2, 3],
        "a.flag": True,
        "a.f64": Value(ValueType.FLOAT64, 0.1),
    }
    with Writer(tmp_path / "ours.gguf", metadata, [("w", (3, 4), F32), ("q", (2, 32), Q8_0)]) as out:
        out.write("q", 1, blocks[1:])
        out.write("w", 0, weights.view(np.uint8))
        out.write("q", 0, blocks[:1])
    assert (tmp_path / "theirs.gguf").read_bytes() == (tmp_path / "ours.gguf").read_bytes()
    again = rewrite(tmp_path / "ours.gguf", tmp_path / "again.gguf")
    assert (tmp_path / "ours.gguf").read_bytes() == again.read_bytes()


def test_vocabularies_survive(shared, tmp_path):
    for path in sorted((shared / "vocab").glob("*.gguf")):
        again = rewrite(path, tmp_path / path.name, pad_header=False)
        assert path.read_bytes() == again.read_bytes(), path.name


def test_size_is_known_before_writing(tmp_path):
    plan = FileLayout({"k": "v"}, [("a", (5,), F32), ("b", (0, 32), Q8_0)], alignment=128)
    assert plan.data_offset == 256
    assert plan.size == 384
    with Writer(tmp_path / "x.gguf", {"k": "v"}, [("a", (5,), F32), ("b", (0, 32), Q8_0)], alignment=128) as out:
        out.write("a", 0, np.zeros((1, 20), np.uint8))
    assert (tmp_path / "x.gguf").stat().st_size == 384
    with ggufkit.open(tmp_path / "x.gguf") as model:
        assert list(model.fields) == ["k", "general.alignment"]


def test_missing_row_leaves_no_file(tmp_path):
    with (
        pytest.raises(GGUFError, match="not written completely"),
        Writer(tmp_path / "x.gguf", {}, [("a", (2, 4), F32)]) as out,
    ):
        out.write("a", 0, np.zeros((1, 16), np.uint8))
    assert list(tmp_path.iterdir()) == []


def test_exception_leaves_no_file(tmp_path):
    with pytest.raises(KeyboardInterrupt), Writer(tmp_path / "x.gguf", {}, []):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_existing_file_needs_force(tmp_path):
    path = tmp_path / "x.gguf"
    path.write_text("old")
    with pytest.raises(FileError, match="force=True"):
        Writer(path, {}, [])
    assert path.read_text() == "old"
    with Writer(path, {}, [], force=True):
        pass
    assert path.read_bytes().startswith(b"GGUF")


def test_rows_outside_the_tensor_are_refused(tmp_path):
    with Writer(tmp_path / "x.gguf", {}, [("a", (2, 4), F32)]) as out:
        for row, data in [(1, np.zeros((2, 16), np.uint8)), (-1, np.zeros((1, 16), np.uint8))]:
            with pytest.raises(GGUFError, match="do not fit"):
                out.write("a", row, data)
        with pytest.raises(GGUFError, match="no tensor b"):
            out.write("b", 0, np.zeros((1, 16), np.uint8))
        out.write("a", 0, np.zeros((2, 16), np.uint8))


@pytest.mark.parametrize(
    ("metadata", "tensors", "words"),
    [
        ({"": 1}, [], "empty"),
        ({"a\0": 1}, [], "NUL"),
        ({"k": Value(ValueType.UINT8, 256)}, [], "does not fit the type u8"),
        ({"k": Value(ValueType.UINT8, "x")}, [], "does not fit the type u8"),
        ({"k": []}, [], "give a Value"),
        ({"k": [1, "a"]}, [], "cannot mix"),
        ({"general.alignment": 24}, [], "not a power of two"),
        ({}, [("n" * 64, (1,), F32)], "limit is 63"),
        ({}, [("n", (1,), F32), ("n", (1,), F32)], "two tensors"),
        ({}, [("n", (1,) * 5, F32)], "5 dimensions"),
        ({}, [("n", (33,), Q8_0)], "multiple of 32"),
    ],
)
def test_what_no_reader_accepts_is_not_written(metadata, tensors, words):
    with pytest.raises(GGUFError, match=words):
        FileLayout(metadata, tensors)


def test_nan_payload_and_odd_bytes_survive_both_byte_orders(tmp_path):
    signalling = struct.pack("<I", 0x7FA00001)
    metadata = {
        "nan": Value(ValueType.ARRAY, signalling, ValueType.FLOAT32),
        "text": Value(ValueType.STRING, b"\xe2\x96"),
    }
    for order in ("little", "big"):
        with Writer(tmp_path / "a.gguf", metadata, [], byteorder=order, force=True):
            pass
        rewrite(tmp_path / "a.gguf", tmp_path / "b.gguf", byteorder="little", force=True)
        with ggufkit.open(tmp_path / "b.gguf") as model:
            assert next(model.fields["text"].strings()) == b"\xe2\x96"
