"""Files of another kind are told apart by name, with what to do; a download that was only begun can be looked into."""

import gzip
import io
import json
import struct
import zipfile

import numpy as np
import pytest
import tiny_checkpoints
from tiny_adapters import write_adapter
from tiny_families import FAMILIES
from tiny_models import write_tiny

import ggufkit
from ggufkit.checkpoint.folder import open_checkpoint
from ggufkit.cli import main
from ggufkit.errors import GgufkitError
from ggufkit.gguf.header import Limits


def zipped(name):
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr(name, b"x")
    return made.getvalue()


def safetensors():
    text = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    return struct.pack("<Q", len(text)) + text + bytes(4)


FILES = {
    "safetensors": (safetensors(), "a safetensors file.*convert the folder"),
    "torch": (zipped("archive/data.pkl"), "PyTorch weights.*convert the folder"),
    "old torch": (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", "pickle.*convert the folder"),
    "zip": (zipped("model.gguf"), "a ZIP archive.*unpack"),
    "npz": (zipped("weights.npy"), "NumPy arrays"),
    "html": (b"\n<!DOCTYPE html><html><head>", "an HTML page.*resolve"),
    "html, in capitals": (b"<HTML>", "an HTML page"),
    "xml": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code>', "server's error"),
    "LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:", "Git LFS pointer.*git lfs pull"),
    "gzip": (gzip.compress(b"GGUF"), "compressed by gzip"),
    "zstd": (b"\x28\xb5\x2f\xfd\x04", "compressed by zstd"),
    "tar": (b"model.gguf".ljust(257, b"\0") + b"ustar\0", "a tar archive"),
    "GGML": (b"lmgg\1\0\0\0", "from before GGUF"),
    "GGJT": (b"tjgg\3\0\0\0", "from before GGUF"),
    "imatrix": (struct.pack("<ii", 2, 19) + b"blk.0.attn_q.weight" + bytes(8), "importance matrix of the older kind"),
    "index": (b'{"metadata": {}, "weight_map": {"a": "b"}}', "index of a checkpoint"),
    "an error": (b'{"error": "Repository not found"}', "server's error"),
    "JSON": (b'{"architectures": []}', "a JSON text"),
    "text": (b"# A model\n\nThis is it.", "a text"),
    "zeros": (bytes(100), "zeros.*fetch it again"),
    "empty": (b"", "empty"),
    "short": (b"GG", "a text"),
    "NumPy": (b"\x93NUMPY\x01\0", "array of NumPy"),
    "HDF5": (b"\x89HDF\r\n", "HDF5"),
}


@pytest.mark.parametrize("kind", FILES)
def test_a_file_of_another_kind_is_named(tmp_path, kind):
    data, says = FILES[kind]
    path = tmp_path / "model.gguf"
    path.write_bytes(data)
    with pytest.raises(GgufkitError, match=f"(?s){says}") as error:
        ggufkit.open(path)
    assert len(str(error.value).splitlines()) == 1
    with pytest.raises(GgufkitError, match=f"(?s){says}"):
        open_checkpoint(path)


def test_odd_bytes_are_shown(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(b"\xff\xfe\xfd\xfc")
    with pytest.raises(GgufkitError, match="it starts with"):
        ggufkit.open(path)


def test_a_gguf_is_no_checkpoint(tmp_path):
    write_tiny(tmp_path / "m.gguf", "llama")
    with pytest.raises(GgufkitError, match=r"is a GGUF file already.*quantize"):
        open_checkpoint(tmp_path / "m.gguf")


def test_folders_are_named(tmp_path):
    folder = tiny_checkpoints.write(FAMILIES["llama-linear"](), tmp_path / "checkpoint")
    with pytest.raises(GgufkitError, match="a checkpoint folder, not a GGUF file; convert it"):
        ggufkit.open(folder)
    with pytest.raises(GgufkitError, match="LoRA adapter"):
        ggufkit.open(write_adapter("llama", tmp_path / "adapter"))
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "m-00001-of-00002.gguf").touch()
    with pytest.raises(GgufkitError, match=r"give the file in it, m-00001-of-00002.gguf"):
        ggufkit.open(tmp_path / "files")
    with pytest.raises(GgufkitError, match=r"m-00001-of-00002.gguf"):
        open_checkpoint(tmp_path / "files")


@pytest.mark.parametrize(
    ("metadata", "says"),
    [
        ({"general.type": "adapter", "adapter.type": "lora"}, "a LoRA adapter, not a model; run its base model"),
        ({"general.type": "imatrix"}, "an importance matrix, not a model"),
        ({"imatrix.datasets": ["a"]}, "an importance matrix, not a model"),
        ({"general.type": "mmproj"}, "the projector"),
        ({"general.architecture": "clip"}, "the projector"),
    ],
)
def test_a_gguf_of_another_kind_does_not_run(tmp_path, metadata, says):
    write_tiny(tmp_path / "m.gguf", "llama", metadata=metadata)
    with pytest.raises(GgufkitError, match=says):
        ggufkit.load(tmp_path / "m.gguf", backend="cpu")


@pytest.mark.parametrize("share", [0.999, 0.5, 0.2])
def test_a_download_that_was_only_begun(tmp_path, share, capsys):
    write_tiny(tmp_path / "m.gguf", "llama")
    data = (tmp_path / "m.gguf").read_bytes()
    part = tmp_path / "part.gguf"
    part.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(SystemExit):
        main(["inspect", str(part)])
    assert "--partial" in capsys.readouterr().err
    with ggufkit.open(part, limits=Limits(complete=False)) as model, ggufkit.open(tmp_path / "m.gguf") as whole:
        assert list(model.info) == list(whole.info)
        gone = [n for n, i in whole.info.items() if whole.file_offset(n) + i.nbytes > part.stat().st_size]
    main(["inspect", "--partial", "--summary", str(part)])
    line = next(line for line in capsys.readouterr().out.splitlines() if "missing" in line)
    assert f"{len(gone)} of {len(model.info)} tensors" in line
    assert line.endswith(f"the first is {gone[0]}")
    main(["inspect", "--partial", "--json", str(part)])
    assert list(json.loads(capsys.readouterr().out)["missing"]) == gone
    main(["inspect", "--partial", "--summary", str(tmp_path / "m.gguf")])
    assert "missing" not in capsys.readouterr().out


def test_arrays_saved_by_numpy(tmp_path):
    np.save(tmp_path / "m.npy", np.zeros(3))
    with pytest.raises(GgufkitError, match="array of NumPy"):
        ggufkit.open(tmp_path / "m.npy")
