"""Random files: libggml reads back what was written, gguf-py agrees on big-endian ones, a rewrite gives the same bytes.

The strategies make every value type, empty strings and arrays, names of 63 bytes, every tensor type, tensors without
weights and without dimensions, and alignments from 1 to 4096.
"""

import math
import struct
from pathlib import Path

import ggml_file
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ggufkit
from ggufkit.formats.table import FORMATS, formats
from ggufkit.gguf.header import Limits, Value, ValueType
from ggufkit.gguf.writer import Writer, encode_pair, encode_string

BITS = {t: 8 * t.nbytes for t in ValueType if t.name.startswith(("INT", "UINT"))}

# No NUL (C ends there) and no surrogates (no UTF-8).
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)


def fits(n):
    return lambda text: 0 < len(text.encode()) <= n


names = st.one_of(texts, st.text("é", min_size=1, max_size=31).map(lambda t: t + "x"), st.just("n" * 63)).filter(
    fits(63)
)


def numbers(kind: ValueType):
    if kind is ValueType.BOOL:
        return st.booleans()
    if kind in (ValueType.FLOAT32, ValueType.FLOAT64):
        return st.floats(width=8 * kind.nbytes)
    low = -(1 << BITS[kind] - 1) if kind.name.startswith("INT") else 0
    return st.integers(low, low + (1 << BITS[kind]) - 1)


@st.composite
def values(draw) -> Value:
    kind = draw(st.sampled_from([t for t in ValueType if t is not ValueType.ARRAY]))
    single = texts if kind is ValueType.STRING else numbers(kind)
    if draw(st.booleans()):
        return Value(ValueType.ARRAY, draw(st.lists(single, max_size=5)), kind)
    return Value(kind, draw(single))


@st.composite
def shapes(draw, block_size: int) -> tuple[int, ...]:
    dims = draw(st.integers(0 if block_size == 1 else 1, 4))
    outer = draw(st.tuples(*[st.integers(0, 3)] * max(dims - 1, 0)))
    return () if dims == 0 else (*outer, block_size * draw(st.integers(0, 2)))


@st.composite
def tensors(draw) -> dict[str, tuple[tuple[int, ...], str]]:
    chosen = draw(st.dictionaries(names, st.sampled_from([f.name for f in formats()]), max_size=5))
    return {name: (draw(shapes(FORMATS[type].block_size)), type) for name, type in chosen.items()}


files = st.tuples(
    st.dictionaries(names.filter(lambda key: key != "general.alignment"), values(), max_size=6),
    tensors(),
    st.sampled_from([1 << i for i in range(13)]),
)


def write(path, file, byteorder="little") -> dict[str, bytes]:
    """Write a file with random data → the data of each tensor."""
    metadata, shapes, alignment = file
    rng = np.random.default_rng(4)
    plan = [(name, shape, FORMATS[type]) for name, (shape, type) in shapes.items()]
    data = {}
    with Writer(path, metadata, plan, alignment=alignment, byteorder=byteorder, force=True) as out:
        for name, info in out.layout.infos.items():
            rows = math.prod(info.shape[:-1])
            blocks = rng.integers(0, 256, (rows, info.nbytes // rows if rows else 0), np.uint8)
            data[name] = blocks.tobytes()
            if byteorder == "little":
                out.write(name, 0, blocks)
            else:
                out.write(name, 0, ggufkit.gguf.reader.swapped(blocks, info.format))
    return data


def packed(value: Value) -> tuple[int, int | None, object]:
    """A value as `ggml_file` gives it."""
    items = value.value if value.type is ValueType.ARRAY else [value.value]
    kind = value.item_type if value.type is ValueType.ARRAY else value.type
    if kind is ValueType.STRING:
        raw = [item.encode() for item in items]
        found = raw if value.type is ValueType.ARRAY else raw[0]
    else:
        found = struct.pack(f"<{len(items)}{kind.code}", *items)
    return int(value.type), None if value.item_type is None else int(value.item_type), found


@settings(max_examples=150, deadline=None)
@given(files)
def test_libggml_reads_back_what_was_written(tmp_path_factory, file):
    path = tmp_path_factory.mktemp("file") / "x.gguf"
    data = write(path, file)
    metadata, shapes, alignment = file
    found = ggml_file.read(path)
    assert found is not None
    expected = {key.encode(): packed(value) for key, value in metadata.items()}
    if alignment != 32:
        expected[b"general.alignment"] = packed(Value(ValueType.UINT32, alignment))
    assert found["metadata"] == expected
    assert found["alignment"] == alignment
    assert {name: type for name, (type, _, _) in found["tensors"].items()} == {
        name.encode(): FORMATS[type].id for name, (_, type) in shapes.items()
    }
    raw = path.read_bytes()
    for name, (_, offset, size) in found["tensors"].items():
        start = found["data_offset"] + offset
        assert raw[start : start + size] == data[name.decode()]


@settings(max_examples=60, deadline=None)
@given(files, st.sampled_from(["little", "big"]))
def test_our_reader_gives_back_what_was_written(tmp_path_factory, file, byteorder):
    path = tmp_path_factory.mktemp("file") / "x.gguf"
    data = write(path, file, byteorder)
    metadata, shapes, alignment = file
    with ggufkit.open(path) as model:
        assert (model.alignment, model.byteorder) == (alignment, byteorder)
        for key, value in metadata.items():
            field = model.fields[key]
            assert (field.type, field.item_type) == (value.type, value.item_type)
            # As bytes: NaN is no problem, and -0.0 is not 0.0.
            assert encode_pair(key, Value(field.type, field.value, field.item_type)) == encode_pair(key, value)
        for name, (shape, type) in shapes.items():
            tensor = model.tensors[name]
            assert (tensor.shape, tensor.format.name) == (shape, type)
            assert tensor.read(0, tensor.rows).tobytes() == data[name]
        again = path.with_name("again.gguf")
        plan = [(t.name, t.shape, t.format) for t in model.tensors.values()]
        with Writer(again, model.fields, plan, byteorder=byteorder) as out:
            for name, tensor in model.tensors.items():
                blocks = tensor.read(0, tensor.rows)
                out.write(
                    name, 0, blocks if byteorder == "little" else ggufkit.gguf.reader.swapped(blocks, tensor.format)
                )
    assert again.read_bytes() == path.read_bytes()


@settings(max_examples=40, deadline=None)
@given(files)
def test_gguf_py_agrees_on_big_endian_files(tmp_path_factory, file):
    import gguf

    metadata, shapes, alignment = file
    # What gguf-py does not read: empty tensors and arrays, tensors without dimensions, types newer than it, and
    # those whose size it has wrong (Q8_1, with halves in GGML since 2024).
    sizes = {t.name: size for t, size in gguf.GGML_QUANT_SIZES.items()}
    known = {f.name for f in formats() if sizes.get(f.name) == (f.block_size, f.type_size)}
    shapes = {n: (s, t) for n, (s, t) in shapes.items() if s and math.prod(s) and t in known}
    metadata = {key: v for key, v in metadata.items() if v.type is not ValueType.ARRAY or v.value}
    path = tmp_path_factory.mktemp("file") / "x.gguf"
    write(path, (metadata, shapes, alignment), "big")
    reader = gguf.GGUFReader(path)
    with ggufkit.open(path) as model:
        for key, value in model.metadata.items():
            assert same(reader.fields[key].contents(), value), key
        assert [t.name for t in reader.tensors] == list(model.tensors)
        for theirs in reader.tensors:
            ours = model.tensors[theirs.name]
            assert tuple(reversed(theirs.shape.tolist())) == ours.shape
            assert theirs.tensor_type.name == ours.format.name
            assert theirs.data_offset == model.file_offset(theirs.name)


def same(a, b) -> bool:
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b or (a != a and b != b)  # noqa: PLR0124 - NaN


def test_big_endian_file_of_gguf_py_is_read(tmp_path):
    import gguf

    rng = np.random.default_rng(5)
    arrays = {d: rng.integers(-100, 100, (3, 5)).astype(d) for d in ("f4", "f2", "f8", "i1", "i2", "i4", "i8")}
    writer = gguf.GGUFWriter(tmp_path / "big.gguf", "llama", endianess=gguf.GGUFEndian.BIG)
    writer.add_uint32("a.number", 7)
    writer.add_array("a.floats", [0.5, -2.0])
    writer.add_array("a.texts", ["x", "", "ø"])
    for name, array in arrays.items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with ggufkit.open(tmp_path / "big.gguf") as model:
        assert model.byteorder == "big"
        assert model.metadata["a.number"] == 7
        assert model.metadata["a.floats"] == [0.5, -2.0]
        assert model.metadata["a.texts"] == ["x", "", "ø"]
        for name, array in arrays.items():
            assert np.array_equal(model.tensors[name].records()["x"], array)


@settings(max_examples=40, deadline=None)
@given(files, st.sampled_from(["<", ">"]))
def test_v1_file_has_what_its_v3_twin_has(tmp_path_factory, file, order):
    """v1 has counts, lengths and dimensions of 32 bits. Nobody writes it any more, gguf-py does not read it."""
    metadata, shapes, _ = file
    folder = tmp_path_factory.mktemp("file")
    data = write(folder / "v3.gguf", (metadata, shapes, 32), "little" if order == "<" else "big")
    (folder / "v1.gguf").write_bytes(as_v1(folder / "v3.gguf", order))
    with ggufkit.open(folder / "v1.gguf", limits=Limits(versions=(1,))) as v1, ggufkit.open(folder / "v3.gguf") as v3:
        assert v1.version == 1
        assert list(v1.fields) == list(v3.fields)
        for key, field in v1.fields.items():
            assert encode_pair(key, field) == encode_pair(key, v3.fields[key])
        for name, tensor in v1.tensors.items():
            assert (tensor.shape, tensor.format) == (v3.tensors[name].shape, v3.tensors[name].format)
            assert tensor.read(0, tensor.rows).tobytes() == data[name]


def as_v1(path: Path, order: str) -> bytes:
    """The file with the same content in version 1."""

    def string(text: bytes) -> bytes:
        return struct.pack(f"{order}I", len(text)) + text

    with ggufkit.open(path) as model:
        parts = [b"GGUF", struct.pack(f"{order}III", 1, len(model.tensors), len(model.fields))]
        for key, field in model.fields.items():
            parts += [string(key.encode()), struct.pack(f"{order}I", field.type)]
            if field.item_type is not None:
                parts.append(struct.pack(f"{order}II", field.item_type, len(field)))
            if (field.item_type or field.type) is ValueType.STRING:
                parts += map(string, field.strings())
            else:
                parts.append(field.raw)
        for name, info in model.info.items():
            ne = tuple(reversed(info.shape))
            head = struct.pack(f"{order}I{len(ne)}IIQ", len(ne), *ne, info.format.id, info.offset)
            parts.append(string(name.encode()) + head)
        header = b"".join(parts)
        return header + bytes(-len(header) % 32 if model.tensors else 0) + path.read_bytes()[model.data_offset :]


def test_goldens_survive(shared, tmp_path):
    """Our files of the fixture model are llama.cpp's (held elsewhere); imatrix.gguf is llama.cpp's own."""
    path = shared / "golden" / "imatrix.gguf"
    with ggufkit.open(path) as model:
        plan = [(t.name, t.shape, t.format) for t in model.tensors.values()]
        with Writer(tmp_path / "again.gguf", model.fields, plan) as out:
            for t in model.tensors.values():
                out.write(t.name, 0, t.read(0, t.rows))
    assert (tmp_path / "again.gguf").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("alignment", [1, 2, 4, 8, 16, 64, 4096, 1 << 20])
def test_any_alignment_is_written(tmp_path, alignment):
    file = ({"k": Value(ValueType.STRING, "")}, {"a": ((3,), "F32"), "b": ((5,), "I8"), "c": ((1,), "F16")}, alignment)
    data = write(tmp_path / "x.gguf", file)
    found = ggml_file.read(tmp_path / "x.gguf")
    assert found["alignment"] == alignment
    with ggufkit.open(tmp_path / "x.gguf") as model:
        assert {name: t.read(0, 1).tobytes() for name, t in model.tensors.items()} == data
        assert all(model.file_offset(name) % alignment == 0 for name in data)
    assert encode_string("") == bytes(8)
