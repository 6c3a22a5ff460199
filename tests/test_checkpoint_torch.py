"""Files of torch.save, read without torch; pickles that would run code."""

import io
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ggufkit.checkpoint import unpickle
from ggufkit.checkpoint.folder import open_checkpoint
from ggufkit.checkpoint.pytorch import read_pytorch
from ggufkit.errors import CheckpointError

BASE = np.arange(24, dtype=np.float32).reshape(4, 6)
EXPECTED = {
    "plain": BASE,
    "transposed": BASE.T,
    "every_other_row": BASE[::2],
    "every_other_column": BASE[:, ::2],
    "inner": BASE[1:3, 2:5],
    "permuted": np.arange(24, dtype=np.float32).reshape(2, 3, 4).transpose(2, 0, 1),
    "tied": BASE,
    "scalar": np.array(2.5),
    "empty": np.empty((0, 3)),
    "parameter": np.ones((2, 2)),
    "half": np.arange(4),
    "bfloat16": np.arange(4),
    "double": np.arange(4),
    "long": np.arange(4),
}


@pytest.mark.parametrize("name", ["zip.bin", "legacy.bin", "protocol4.bin"])
def test_torch_reads_what_torch_writes(fixtures, name):
    tensors = {tensor.name: tensor for tensor in read_pytorch(fixtures / "torch" / name)}
    assert list(tensors) == [*EXPECTED, "bool"]
    for key, expected in EXPECTED.items():
        tensor = tensors[key]
        assert tensor.shape == expected.shape
        np.testing.assert_array_equal(tensor.floats(), expected.reshape(tensor.rows, tensor.cols))
        for row in range(tensor.rows):
            assert tensor.read(row, row + 1).tobytes() == tensor.read(0, tensor.rows)[row].tobytes()
    assert tensors["bool"].read(0, 1).tolist() == [[1, 0]]


def test_torch_reads_modules_and_new_dtypes(fixtures):
    assert [t.shape for t in read_pytorch(fixtures / "torch" / "module.bin")] == [(2, 3), (2,)]
    float8, u16 = read_pytorch(fixtures / "torch" / "v3.bin")
    assert (float8.format.name, float8.read(0, 1).tolist()) == ("F8_E4M3", [[0x00, 0x38, 0x40, 0x44]])
    assert u16.read(0, 1).view("<u2").tolist() == [[0, 1, 2, 3]]


class Named:
    """Pickles as the global `name`, called with `arguments`."""

    def __init__(self, module, name):
        self.module, self.name = module, name


class Call:
    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments


class Pickler(pickle._Pickler):
    """A pickler that writes globals by name, without having them."""

    def save(self, obj, save_persistent_id=True):
        if isinstance(obj, Named):
            if self.proto >= 4:
                super().save(obj.module)
                super().save(obj.name)
                self.write(pickle.STACK_GLOBAL)
            else:
                self.write(pickle.GLOBAL + f"{obj.module}\n{obj.name}\n".encode())
        elif isinstance(obj, Call):
            self.save(obj.function)
            self.save(obj.arguments)
            self.write(pickle.REDUCE)
        elif isinstance(obj, Storage):
            self.save(("storage", Named("torch", obj.kind), obj.key, "cpu", obj.count))
            self.write(pickle.BINPERSID)
        else:
            super().save(obj, save_persistent_id)


class Storage:
    def __init__(self, key="0", count=4, kind="FloatStorage"):
        self.key, self.count, self.kind = key, count, kind


def tensor(storage=None, offset=0, size=(2, 2), stride=(2, 1)):
    function = Named("torch._utils", "_rebuild_tensor_v2")
    return Call(function, storage or Storage(), offset, size, stride, False, OrderedDict())


def pickled(value, protocol=2):
    out = io.BytesIO()
    Pickler(out, protocol).dump(value)
    return out.getvalue()


def archive(path, state, entries=None, compression=zipfile.ZIP_STORED, protocol=2):
    """A file of torch.save with a pickle of `state` (or these bytes) and storages."""
    with zipfile.ZipFile(path, "w", compression) as out:
        out.writestr("a/data.pkl", state if isinstance(state, bytes) else pickled(state, protocol))
        for name, data in (entries or {"data/0": bytes(16)}).items():
            out.writestr(f"a/{name}", data)
    return path


SYSTEM = pickle.GLOBAL + b"posix\nsystem\n"
MALICIOUS = {
    "reduce": pickled({"w": Call(Named("posix", "system"), "touch ran")}),
    "stack global": pickled({"w": Call(Named("builtins", "eval"), "open('ran', 'w')")}, protocol=4),
    "newobj": b"\x80\x02" + SYSTEM + pickle.EMPTY_TUPLE + pickle.NEWOBJ + pickle.STOP,
    "inst": b"\x80\x02" + pickle.MARK + pickle.UNICODE + b"touch ran\n" + pickle.INST + b"os\nsystem\n" + pickle.STOP,
    "obj": b"\x80\x02" + pickle.MARK + SYSTEM + pickle.UNICODE + b"touch ran\n" + pickle.OBJ + pickle.STOP,
    "build": b"\x80\x02" + SYSTEM + pickle.EMPTY_TUPLE + pickle.REDUCE + pickle.EMPTY_DICT + pickle.BUILD + pickle.STOP,
    "nested": pickled(
        {"w": Call(Named("torch._utils", "_rebuild_parameter"), Call(Named("os", "popen"), "touch ran"))}
    ),
    "getattr": pickled({"w": Call(Named("builtins", "getattr"), Named("os", "system"), "x")}),
    "extension": b"\x80\x02" + pickle.EXT1 + b"\x01" + pickle.STOP,
}


@pytest.mark.parametrize("kind", MALICIOUS)
@pytest.mark.parametrize("layout", ["zip", "legacy"])
def test_torch_runs_nothing(tmp_path, monkeypatch, kind, layout):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "pytorch_model.bin"
    if layout == "zip":
        archive(path, MALICIOUS[kind])
    else:
        head = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
        path.write_bytes(b"".join(pickle.dumps(value, 2) for value in head) + MALICIOUS[kind])
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin: the pickle (would call|uses)"):
        open_checkpoint(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["config.json", "pytorch_model.bin"]


def test_torch_runs_nothing_before_the_magic(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "x.bin"
    path.write_bytes(MALICIOUS["reduce"])
    with pytest.raises(CheckpointError, match=r"not a file of torch\.save"):
        list(read_pytorch(path))
    assert os.listdir(tmp_path) == ["x.bin"]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"w": tensor(offset=1)}, "needs 5 elements"),
        ({"w": tensor(offset=-1)}, "whole number"),
        ({"w": tensor(size=(2.0, 2))}, "whole number"),
        ({"w": tensor(size=(True, 2))}, "whole number"),
        ({"w": tensor(size=[2, 2])}, "whole number"),
        ({"w": tensor(stride=(-1, 1))}, "whole number"),
        ({"w": tensor(stride=(1,))}, "2 dimensions and 1 strides"),
        ({"w": tensor(size=(1,) * 9, stride=(1,) * 9)}, "9 dimensions, the limit is 8"),
        ({"w": tensor(size=(1 << 40, 1 << 20), stride=(0, 0))}, "repeats"),
        ({"w": tensor(Storage(count=5))}, None),
        ({"w": tensor(Storage(key="9"))}, "lacks the storage 9"),
        ({"w": tensor(Storage(kind="ComplexFloatStorage"))}, "ComplexFloatStorage, which cannot"),
        ({"w": tensor(), "v": tensor(Storage(kind="HalfStorage"))}, "two types"),
        ({"w": tensor("x")}, "no typed storage"),
        ({1: tensor()}, "name of a tensor"),
        ({(): tensor()}, "a tuple as a key"),
        ({"w": 3}, "no tensor in it"),
        ([tensor()], "holds a list"),
        ({"w": Call(Named("torch._utils", "_rebuild_tensor_v2"), 1)}, "malformed"),
    ],
)
def test_torch_broken_states(tmp_path, value, message):
    path = archive(tmp_path / "x.bin", value)
    if message is None:
        assert [t.shape for t in read_pytorch(path)] == [(2, 2)]
        return
    with pytest.raises(CheckpointError, match=message):
        list(read_pytorch(path))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "malformed"),
        (b"\x80\x02.", "malformed"),
        (b"\x80\x02q\x00", "malformed"),
        (b"\x80\x02" + pickle.BINBYTES8 + struct.pack("<Q", 1 << 60), "malformed"),
        (b"\x80\x02" + pickle.LONG4 + struct.pack("<i", (1 << 31) - 1), "malformed"),
        (b"\x80\x02" + pickle.EMPTY_DICT + pickle.LONG_BINPUT + struct.pack("<I", (1 << 32) - 1) + b".", "no tensor"),
        (b"\x80\x02" + pickle.LONG_BINGET + struct.pack("<I", 7) + b".", "malformed"),
        (b"\x80\x02" + pickle.APPENDS + b".", "malformed"),
        (b"c" + b"x" * 1000, "malformed"),
        (b"\xff", "malformed"),
    ],
)
def test_torch_broken_pickles(tmp_path, data, message):
    with pytest.raises(CheckpointError, match=message):
        list(read_pytorch(archive(tmp_path / "x.bin", data)))


def test_torch_pickle_that_grows_exponentially(tmp_path):
    """Tuples of twice themselves: small in memory, endless for what walks or hashes them."""
    doubled = pickle.EMPTY_TUPLE + (pickle.DUP + pickle.TUPLE2) * 200
    for use in (pickle.NONE + pickle.SETITEM, pickle.BINPERSID):
        with pytest.raises(CheckpointError):
            list(read_pytorch(archive(tmp_path / "x.bin", b"\x80\x02}" + doubled + use + b".")))


def test_torch_pickle_beyond_the_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(unpickle, "MAX_PICKLE", 10)
    with pytest.raises(CheckpointError, match="malformed"):
        list(read_pytorch(archive(tmp_path / "x.bin", {"w": tensor()})))


def test_torch_broken_archives(tmp_path, fixtures):
    path = archive(tmp_path / "compressed.bin", {"w": tensor()}, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(CheckpointError, match="compressed"):
        list(read_pytorch(path))
    path = archive(tmp_path / "big.bin", {"w": tensor()}, {"data/0": bytes(16), "byteorder": b"big"})
    with pytest.raises(CheckpointError, match="big-endian"):
        list(read_pytorch(path))
    path = tmp_path / "other.bin"
    with zipfile.ZipFile(path, "w") as out:
        out.writestr("readme", b"")
    with pytest.raises(CheckpointError, match=r"one data\.pkl"):
        list(read_pytorch(path))
    path.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"not a file of torch\.save"):
        list(read_pytorch(path))


@pytest.mark.parametrize("name", ["zip.bin", "legacy.bin"])
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_torch_damaged_files_give_errors_or_tensors(fixtures, tmp_path_factory, name, data):
    content = bytearray((fixtures / "torch" / name).read_bytes())
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    else:
        for _ in range(3):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("damaged") / "x.bin"
    path.write_bytes(content)
    with suppress(CheckpointError):
        for found in read_pytorch(path):
            found.read(0, found.rows)


def test_torch_shards_by_index(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    for i in (1, 2):
        archive(tmp_path / f"pytorch_model-{i}.bin", {f"t{i}": tensor()})
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text('{"weight_map": {"t1": "pytorch_model-1.bin", "t2": "pytorch_model-2.bin"}}')
    assert list(open_checkpoint(tmp_path).tensors) == ["t1", "t2"]
    index.write_text('{"weight_map": {"t1": "../pytorch_model-1.bin"}}')
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin\.index\.json.*not a file of this folder"):
        open_checkpoint(tmp_path)
