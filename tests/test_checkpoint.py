"""Checkpoint folders and safetensors files, against the safetensors package and against broken input."""

from __future__ import annotations

import json
import os
import struct

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from ggufkit.checkpoint.folder import open_checkpoint
from ggufkit.checkpoint.safetensors import MAX_HEADER, read_safetensors
from ggufkit.errors import CheckpointError, FileError

DTYPES = [np.float64, np.float32, np.float16, ml_dtypes.bfloat16, np.int64, np.int32, np.int16, np.int8]


def raw_file(path, header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def entry(shape=(2, 2), begin=0, end=16, dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


@given(
    shapes=st.lists(st.lists(st.integers(0, 5), min_size=0, max_size=3).map(tuple), min_size=1, max_size=4),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=60, deadline=None)
def test_safetensors_reads_what_safetensors_writes(tmp_path_factory, shapes, dtype, seed):
    path = tmp_path_factory.mktemp("st") / "x.safetensors"
    rng = np.random.default_rng(seed)
    arrays = {f"t{i}": rng.integers(-100, 100, shape).astype(dtype) for i, shape in enumerate(shapes)}
    save_file(arrays, path)
    tensors = {tensor.name: tensor for tensor in read_safetensors(path)}
    assert set(tensors) == set(arrays)
    for name, array in arrays.items():
        tensor = tensors[name]
        assert tensor.shape == array.shape
        assert tensor.read(0, tensor.rows).tobytes() == array.tobytes()
        if tensor.rows > 1:
            assert tensor.read(1, tensor.rows).tobytes() == array.reshape(tensor.rows, -1)[1:].tobytes()


def test_safetensors_order_is_by_name(tmp_path):
    save_file({name: np.zeros(2, np.float32) for name in ("b", "a.10", "a.9", "B")}, tmp_path / "x.safetensors")
    assert [t.name for t in read_safetensors(tmp_path / "x.safetensors")] == ["B", "a.10", "a.9", "b"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "at least 8 bytes"),
        (b"1234567", "at least 8 bytes"),
        (struct.pack("<Q", 1000) + b"{}", "truncated"),
        (struct.pack("<Q", MAX_HEADER + 1), "limit"),
        (struct.pack("<Q", 2**63), "limit"),
        (struct.pack("<Q", 5) + b"[[[[[", "not valid JSON"),
        (struct.pack("<Q", 2) + b"[]", "must be a JSON object"),
        (struct.pack("<Q", 20000) + b"[" * 20000, "not valid JSON"),
        (struct.pack("<Q", 13) + b'{"a":1,"a":2}', "occurs twice"),
        (struct.pack("<Q", 4) + b'"\xff\xfe"', "not valid JSON"),
    ],
)
def test_safetensors_broken_header(tmp_path, content, message):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        list(read_safetensors(path))


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        ({"a": entry()}, b"\0" * 15, "truncated"),
        ({"a": entry()}, b"\0" * 17, "follow the last tensor"),
        ({"a": entry(), "b": entry(begin=8, end=24)}, b"\0" * 24, "overlaps"),
        ({"a": entry(), "b": entry(begin=20, end=36)}, b"\0" * 36, "gap of 4 bytes"),
        ({"a": entry(end=12)}, b"\0" * 12, "needs 16 bytes"),
        ({"a": entry(shape=(-2, -2))}, b"\0" * 16, "whole number"),
        ({"a": entry(shape=(2.0, 2))}, b"\0" * 16, "whole number"),
        ({"a": entry(shape=(True, 4))}, b"\0" * 16, "whole number"),
        ({"a": entry(shape=(1 << 40, 1 << 40))}, b"\0" * 16, "needs"),
        ({"a": entry(dtype="F4")}, b"\0" * 16, "dtype F4"),
        ({"a": {"dtype": "F32"}}, b"", "needs dtype, shape"),
        ({"a": 3}, b"", "needs dtype, shape"),
        ({"a": entry(begin=16, end=0)}, b"\0" * 16, "needs 16 bytes"),
    ],
)
def test_safetensors_broken_entries(tmp_path, header, data, message):
    with pytest.raises(CheckpointError, match=message):
        list(read_safetensors(raw_file(tmp_path / "x.safetensors", header, data)))


def test_safetensors_that_shrinks_after_opening(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file({"a": np.ones((4, 4), np.float32)}, path)
    (tensor,) = read_safetensors(path)
    os.truncate(path, path.stat().st_size - 20)
    with pytest.raises(CheckpointError, match="inside tensor a"):
        tensor.read(0, 4)


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="Linux only")
def test_few_of_many_shards_stay_open(tmp_path):
    def opened():
        links = [os.path.join("/proc/self/fd", handle) for handle in os.listdir("/proc/self/fd")]
        return sum(os.path.realpath(link).startswith(os.path.realpath(tmp_path)) for link in links)

    tensors = []
    for i in range(20):
        save_file({"a": np.full((1, 4), i, np.float32)}, tmp_path / f"{i}.safetensors")
        tensors += read_safetensors(tmp_path / f"{i}.safetensors")
    for _ in range(2):
        assert [t.floats()[0, 0] for t in tensors] == list(range(20))
        assert 0 < opened() <= 8
    del tensors
    assert opened() == 0


def checkpoint(tmp_path, **files):
    (tmp_path / "config.json").write_text("{}")
    for name, text in files.items():
        (tmp_path / name.replace("__", ".")).write_text(text)
    return tmp_path


def sharded(tmp_path, weight_map):
    folder = checkpoint(tmp_path)
    for i in (1, 2):
        save_file({f"t{i}": np.full((2, 2), i, np.float32)}, folder / f"model-{i}.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def test_folder_reads_shards_by_index(tmp_path):
    folder = sharded(tmp_path, {"t1": "model-1.safetensors", "t2": "model-2.safetensors"})
    tensors = open_checkpoint(folder).tensors
    assert [float(t.floats()[0, 0]) for t in tensors.values()] == [1.0, 2.0]


@pytest.mark.parametrize(
    ("weight_map", "error", "message"),
    [
        ({"t1": "../model-1.safetensors"}, CheckpointError, "not a file of this folder"),
        ({"t1": "/etc/passwd"}, CheckpointError, "not a file of this folder"),
        ({"t1": ".."}, CheckpointError, "not a file of this folder"),
        ({"t1": ""}, CheckpointError, "not a file of this folder"),
        ({"t1": 3}, CheckpointError, "must map"),
        ([], CheckpointError, "must map"),
        ({"t1": "model-9.safetensors"}, FileError, "lacks the shard model-9"),
        ({"t1": "model-1.safetensors", "t3": "model-2.safetensors"}, CheckpointError, "in no shard.*t3"),
        ({"t1": "model-1.safetensors"}, None, None),
    ],
)
def test_folder_broken_index(tmp_path, weight_map, error, message):
    folder = sharded(tmp_path, weight_map)
    if error is None:
        assert list(open_checkpoint(folder).tensors) == ["t1"]
        return
    with pytest.raises(error, match=message):
        open_checkpoint(folder)


def test_folder_tensor_in_two_shards(tmp_path):
    folder = checkpoint(tmp_path)
    for i in (1, 2):
        save_file({"same": np.zeros(2, np.float32)}, folder / f"model-{i}.safetensors")
    with pytest.raises(CheckpointError, match="another shard"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "not valid JSON"), ("[]", "JSON object"), ("{", "not valid JSON"), ("\udcff", "not valid UTF-8")],
)
def test_folder_broken_config(tmp_path, text, message):
    (tmp_path / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(tmp_path)


def test_folder_missing_things(tmp_path):
    with pytest.raises(FileError, match="does not exist"):
        open_checkpoint(tmp_path / "nowhere")
    with pytest.raises(FileError, match=r"no config\.json"):
        open_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="no weights"):
        open_checkpoint(checkpoint(tmp_path))
