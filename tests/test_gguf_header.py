"""The header parser: what it reads, what it refuses and where it says the fault is."""

import json
import struct

import numpy as np
import pytest

import ggufkit
from ggufkit.errors import GGUFError
from ggufkit.gguf.header import Limits, Value, ValueType
from ggufkit.gguf.writer import Writer


def string(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def pair(key: bytes, kind: int, payload: bytes) -> bytes:
    return string(key) + struct.pack("<I", kind) + payload


def tensor(name: bytes, ne: tuple[int, ...], type_id: int, offset: int) -> bytes:
    return string(name) + struct.pack(f"<I{len(ne)}QIQ", len(ne), *ne, type_id, offset)


def gguf(pairs=(), tensors=(), data=b"", version=3, alignment=32) -> bytes:
    header = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(pairs)) + b"".join([*pairs, *tensors])
    return header + bytes(-len(header) % alignment) + data if tensors else header


@pytest.fixture
def parse(tmp_path):
    def parse(raw: bytes, **options) -> ggufkit.GGUF:
        path = tmp_path / "file.gguf"
        path.write_bytes(raw)
        return ggufkit.open(path, **options)

    return parse


@pytest.mark.parametrize(
    ("kind", "payload", "value"),
    [
        (ValueType.UINT8, b"\xff", 255),
        (ValueType.INT8, b"\xff", -1),
        (ValueType.UINT16, b"\x01\x02", 0x0201),
        (ValueType.INT16, b"\xfe\xff", -2),
        (ValueType.UINT32, b"\0\0\0\x80", 1 << 31),
        (ValueType.INT32, b"\0\0\0\x80", -(1 << 31)),
        (ValueType.FLOAT32, b"\0\0\xc0\x3f", 1.5),
        (ValueType.BOOL, b"\x02", True),
        (ValueType.STRING, string("ø".encode()), "ø"),
        (ValueType.STRING, string(b""), ""),
        (ValueType.STRING, string(b"\xe2\x96"), "\udce2\udc96"),
        (ValueType.ARRAY, struct.pack("<IQ3h", ValueType.INT16, 3, 1, 2, -3), [1, 2, -3]),
        (ValueType.ARRAY, struct.pack("<IQ", ValueType.STRING, 2) + string(b"a") + string(b""), ["a", ""]),
        (ValueType.ARRAY, struct.pack("<IQ", ValueType.FLOAT64, 0), []),
        (ValueType.UINT64, b"\xff" * 8, (1 << 64) - 1),
        (ValueType.INT64, b"\xff" * 8, -1),
        (ValueType.FLOAT64, struct.pack("<d", 0.1), 0.1),
    ],
)
def test_value_is_decoded(parse, kind, payload, value):
    model = parse(gguf([pair(b"k", kind, payload)]))
    assert value == model.metadata["k"]
    assert kind is model.fields["k"].type


@pytest.mark.parametrize("kind", [t for t in ValueType if t not in (ValueType.ARRAY, ValueType.STRING)])
@pytest.mark.parametrize("byteorder", ["little", "big"])
def test_array_is_numpy_on_request(tmp_path, kind, byteorder):
    values = [1, 0, 100 if kind is not ValueType.BOOL else 1]
    path = tmp_path / "file.gguf"
    metadata = {"k": Value(ValueType.ARRAY, values, kind), "s": "x", "e": Value(ValueType.ARRAY, [], kind)}
    with Writer(path, metadata, [], byteorder=byteorder):
        pass
    with ggufkit.open(path) as model:
        array = model.fields["k"].array()
        assert array.tolist() == values
        assert array.dtype == np.dtype(kind.code)
        assert model.fields["e"].array().shape == (0,)
        with pytest.raises(GGUFError, match="not an array of numbers"):
            model.fields["s"].array()


def test_tensor_is_found(parse):
    # One Q4_0 block of a row of 32 weights: 18 bytes, then padding, then two float32.
    data = bytes(range(18)) + bytes(14) + struct.pack("<2f", 1, 2) + bytes(24)
    model = parse(gguf([], [tensor(b"q", (32,), 2, 0), tensor(b"f", (1, 2), 0, 32)], data))
    assert model.tensors["q"].shape == (32,)
    assert model.tensors["f"].shape == (2, 1)
    assert bytes(range(18)) == model.tensors["q"].read(0, 1).tobytes()
    assert model.tensors["f"].records()["x"].tolist() == [[1.0], [2.0]]


LONG = struct.pack("<Q", 1 << 60)

REFUSED = {
    # what: (bytes, byte of the fault, words of the message)
    "other magic": (b"\x1b[2J" + bytes(20), 0, "not a GGUF"),
    "empty file": (b"", 0, "it is empty"),
    "version 4": (gguf(version=4), 4, "version 4"),
    "tensor count": (b"GGUF" + struct.pack("<IQQ", 3, 1 << 40, 0), 8, "promises 1099511627776 tensors"),
    "pair count": (b"GGUF" + struct.pack("<IQQ", 3, 0, 9), 16, "promises 9 metadata pairs"),
    "key length": (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + LONG + bytes(9), 24, "limit is 65535"),
    "empty key": (gguf([pair(b"", 10, bytes(8))]), 24, "empty"),
    "NUL in key": (gguf([pair(b"a\0b", 7, b"\1")]), 24, "NUL"),
    "key no UTF-8": (gguf([pair(b"\xc0\xae", 7, b"\1")]), 24, "UTF-8"),
    "key twice": (gguf([pair(b"k", 7, b"\1"), pair(b"k", 7, b"\1")]), 38, "occurs twice"),
    "value type": (gguf([pair(b"k", 13, b"\1")]), 33, "is 13"),
    "nested array": (gguf([pair(b"k", 9, struct.pack("<IQ", 9, 0))]), 37, "array of arrays"),
    "array length": (gguf([pair(b"k", 9, struct.pack("<IQ", 10, 1 << 29))]), 49, "536870912 items"),
    "string array length": (gguf([pair(b"k", 9, struct.pack("<IQ", 8, 1 << 29))]), 49, "536870912 strings"),
    "array limit": (gguf([pair(b"k", 9, struct.pack("<IQ", 0, 1 << 31))]), 41, "limit is 1073741824"),
    "string in array": (gguf([pair(b"k", 9, struct.pack("<IQ", 8, 1) + LONG)]), 49, "string 0 of k"),
    "alignment type": (gguf([pair(b"general.alignment", 10, bytes(8))]), 24, "must be of type u32"),
    "alignment 24": (gguf([pair(b"general.alignment", 4, b"\x18\0\0\0")]), 53, "not a power of two"),
    "alignment 2^21": (gguf([pair(b"general.alignment", 4, b"\0\0\x20\0")]), 53, "limit is 1048576"),
    "name of 64 bytes": (gguf([], [tensor(b"n" * 64, (1,), 0, 0)], bytes(32)), 24, "limit is 63"),
    "name twice": (gguf([], [tensor(b"n", (0,), 0, 0)] * 2), 57, "occurs twice"),
    "5 dimensions": (gguf([], [tensor(b"n", (1,) * 5, 0, 0)], bytes(32)), 33, "5 dimensions"),
    "negative dimension": (gguf([], [tensor(b"n", (1 << 63,), 0, 0)]), 37, "2^63"),
    "product 2^64": (gguf([], [tensor(b"n", (65536,) * 4, 0, 0)]), 37, "2^63"),
    "removed type": (gguf([], [tensor(b"n", (32,), 4, 0)]), 45, "type 4"),
    "part of a block": (gguf([], [tensor(b"n", (33,), 8, 0)]), 37, "not a multiple of 32"),
    "gap": (gguf([], [tensor(b"n", (1,), 0, 32)], bytes(64)), 49, "without gaps"),
    "data missing": (gguf([], [tensor(b"n", (9,), 0, 0)], bytes(35)), 24, "needs 36 bytes"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_fault_is_refused_with_its_place(parse, what):
    raw, offset, words = REFUSED[what]
    with pytest.raises(GGUFError, match=words.replace("^", r"\^")) as caught:
        parse(raw)
    assert offset == caught.value.offset
    assert str(caught.value).isprintable()


def test_limit_can_be_raised(parse):
    raw = gguf([pair(b"k" * 70000, 7, b"\1")])
    assert len(parse(raw, limits=Limits(key=1 << 20)).fields) == 1


def test_v1_needs_to_be_asked_for(parse):
    raw = b"GGUF" + struct.pack("<III", 1, 1, 1)
    raw += struct.pack("<I1sIIII1sI1s", 1, b"k", 9, 8, 2, 1, b"a", 1, b"b")
    raw += struct.pack("<I1sI2IIQ", 1, b"t", 2, 1, 2, 0, 0)
    raw += bytes(-len(raw) % 32) + struct.pack("<2f", 3, 4)
    with pytest.raises(GGUFError, match="version 1"):
        parse(raw)
    model = parse(raw, limits=Limits(versions=(1, 2, 3)))
    assert model.metadata["k"] == ["a", "b"]
    assert model.tensors["t"].records()["x"].tolist() == [[3.0], [4.0]]


def test_gguf_inside_another_file(tmp_path):
    path = tmp_path / "archive.bin"
    path.write_bytes(b"#" * 7 + gguf([], [tensor(b"n", (2,), 0, 0)], struct.pack("<2f", 5, 6)) + b"more")
    model = ggufkit.open(path, offset=7)
    assert model.tensors["n"].records()["x"].tolist() == [[5.0, 6.0]]


def test_vocabulary_longer_than_a_fetch(parse):
    # Strings of many lengths, so that fetches end inside of lengths and of texts.
    tokens = [b"x" * (i % 300) for i in range(3000)]
    array = struct.pack("<IQ", 8, len(tokens)) + b"".join(map(string, tokens))
    model = parse(gguf([pair(b"k", 9, array), pair(b"after", 0, b"\7")]))
    assert [t.decode() for t in tokens] == model.metadata["k"]
    assert model.metadata["after"] == 7


def test_malformed_corpus_gets_its_verdicts(shared):
    folder = shared / "malformed"
    verdicts = {}
    expected = {name: row["strict"] for name, row in json.loads((folder / "manifest.json").read_text()).items()}
    for name in expected:
        verdicts[name], fault = verdict(folder / name)
        if fault is not None:
            assert fault.offset is not None, name
            assert str(fault).isprintable(), name
    assert verdicts == expected


def verdict(path) -> tuple[str, GGUFError | None]:
    try:
        with ggufkit.open(path) as model:
            for field in model.fields.values():
                _ = field.value
            for t in model.tensors.values():
                t.read(0, t.rows)
        return "accept", None
    except GGUFError as e:
        return "reject", e
