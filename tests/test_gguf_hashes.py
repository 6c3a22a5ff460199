"""Hashes: XXH64 against the reference's, the lines of llama-gguf-hash, manifests."""

import hashlib
import json
import uuid
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ggufkit
from ggufkit.cli import main
from ggufkit.formats.table import FORMATS
from ggufkit.gguf.copy import copy_model, write_shards
from ggufkit.gguf.hashes import hash_model
from ggufkit.gguf.writer import Writer
from ggufkit.kernels.xxh64 import XXH64

# Of the bytes (7 i² + 13 i + n) mod 256 for i < n, from the `xxhash` package.
XXH64_OF_LENGTH = {
    0: "ef46db3751d8e999",
    1: "8a4127811b21e730",
    3: "6f3cce4c08b611f1",
    4: "0b4220e1597be596",
    7: "c05261127f493b58",
    8: "7c9ba2b7c3232e9d",
    11: "e8339a64ce63b0c6",
    31: "0ed6a52c690bf6f8",
    32: "c9b15e8dadc3baa5",
    33: "dd134e0c2201b35b",
    63: "205a95781a8e940e",
    64: "82d2a4ec9b79f6ec",
    100: "0a7b9651403aedab",
    1000: "51a9b9f87c6ba6d0",
    65537: "a4ae1ae74680a1c7",
}


def pattern(n: int) -> bytes:
    return bytes((7 * i * i + 13 * i + n) & 255 for i in range(n))


@pytest.mark.parametrize("n", XXH64_OF_LENGTH)
def test_xxh64_equals_the_reference(n):
    state = XXH64()
    state.update(pattern(n))
    assert state.hexdigest() == XXH64_OF_LENGTH[n]


@given(st.binary(max_size=300), st.lists(st.integers(0, 300), max_size=6))
def test_xxh64_does_not_depend_on_the_pieces(data, cuts):
    whole, pieces = XXH64(), XXH64()
    whole.update(data)
    for lo, hi in pairwise([0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]):
        pieces.update(memoryview(data)[lo:hi])
    assert whole.hexdigest() == pieces.hexdigest()


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "model.gguf"
    rng = np.random.default_rng(1)
    tensors = [(name, (3, 64), FORMATS["Q5_0"]) for name in ("token_embd", "blk.1.a", "blk.0.b", "blk.1.c")]
    with Writer(path, {"k": 1}, tensors) as out:
        for name in out.layout.infos:
            out.write(name, 0, rng.integers(0, 256, (3, 44), np.uint8))
    return path


@pytest.fixture
def run(capsys):
    def run(*args) -> tuple[int, str, str]:
        code = 0
        try:
            main([str(a) for a in args])
        except SystemExit as e:
            code = e.code or 0
        out, err = capsys.readouterr()
        return code, out, err

    return run


def test_lines_are_those_of_llama_gguf_hash(run, model):
    with ggufkit.open(model) as m:
        data = {t.name: t.read(0, t.rows).tobytes() for t in m.tensors.values()}
    code, out, err = run("hash", "--sha256", "--sha1", model)
    assert (code, err) == (0, "")
    expected = []
    for label, raw in [*((f"{model}:{n}", raw) for n, raw in data.items()), (model, b"".join(data.values()))]:
        expected.append(f"sha1      {hashlib.sha1(raw).hexdigest()}  {label}")
        expected.append(f"sha256    {hashlib.sha256(raw).hexdigest()}  {label}")
    assert out.splitlines() == expected
    _, out, _ = run("hash", "--no-layer", "--uuid", model)
    namespace = uuid.UUID("ef001206-dadc-5f6d-a15f-3359e577d4e5")
    raw = hashlib.sha1(namespace.bytes + b"".join(data.values())).digest()[:16]
    assert out == f"uuid      {uuid.UUID(bytes=raw, version=5)}  {model}\n"


def test_layer_hash_is_of_its_tensors(model):
    with ggufkit.open(model) as m:
        raw = b"".join(m.tensors[name].read(0, 3).tobytes() for name in ("blk.1.a", "blk.1.c"))
        found = [h for h in hash_model(m, ["sha256"], layers=True) if h.of == "layer"]
    assert [h.name for h in found] == ["blk.0", "blk.1"]
    assert found[1].hex == hashlib.sha256(raw).hexdigest()


def test_hash_does_not_depend_on_files_or_byte_order(model, tmp_path):
    with ggufkit.open(model) as m:
        expected = list(hash_model(m, ["xxh64"], layers=True))
        copy_model(m, tmp_path / "big.gguf", {}, byteorder="big")
        paths = write_shards(m, tmp_path / "part", max_tensors=1)
    for path in (tmp_path / "big.gguf", paths[2]):
        with ggufkit.open(path) as m:
            assert list(hash_model(m, ["xxh64"], layers=True)) == expected


def test_large_tensor_is_hashed_in_steps_by_threads(tmp_path):
    rows = 5000
    data = np.arange(rows * 1000, dtype="<f4").reshape(rows, 1000)
    with Writer(tmp_path / "m.gguf", {}, [("w", data.shape, FORMATS["F32"])]) as out:
        out.write("w", 0, data.view("u1"))
    steps = []
    with ggufkit.open(tmp_path / "m.gguf") as m:
        found = list(hash_model(m, ["sha256", "xxh64"], threads=3, advance=lambda n, _: steps.append(n)))
    assert found[-1].hex == hashlib.sha256(data.tobytes()).hexdigest() == found[1].hex
    assert sum(steps) == data.nbytes
    assert len(steps) > 1


def test_manifest_is_written_and_checked(run, model, tmp_path):
    manifest = tmp_path / "manifest"
    manifest.write_text("# comment\n" + run("hash", "--all", "--layers", model)[1])
    code, out, err = run("hash", "--check", manifest, model)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == f"manifest  {manifest}  sha256  sha1  xxh64"
    assert all(line.startswith("sha256") and line.endswith("  -  Ok") for line in lines[1:-2])
    assert len(lines[1:-2]) == 4 + 2 + 1
    assert lines[-1] == f"Verification results for {manifest} - Success"

    # The same file elsewhere, then with another byte in it.
    moved = tmp_path / "elsewhere" / "model.gguf"
    moved.parent.mkdir()
    raw = bytearray(model.read_bytes())
    moved.write_bytes(raw)
    assert run("hash", "--check", manifest, moved)[0] == 0
    raw[-40] ^= 1
    moved.write_bytes(raw)
    code, out, _ = run("hash", "--check", manifest, "--xxh64", "--json", moved)
    found = json.loads(out)
    assert (code, found["result"]) == (1, "Failure")
    assert [h["name"] for h in found["hashes"] if h["check"] == "Mismatch"] == ["blk.1.c", "blk.1", ""]


def test_tensor_that_is_gone_is_missed(run, model, tmp_path):
    manifest = tmp_path / "manifest"
    lines = run("hash", model)[1].splitlines(keepends=True)
    manifest.write_text("".join(line for line in lines if ":" in line))
    less = tmp_path / "less"
    less.mkdir()
    with ggufkit.open(model) as m:
        copy_model(m, less / "model.gguf", m.fields, names=["token_embd", "blk.0.b"])
    assert run("hash", "--check", manifest, model)[0] == 0
    code, out, _ = run("hash", "--check", manifest, less / "model.gguf")
    assert code == 1
    assert [line.split(":")[-1] for line in out.splitlines() if "Missing" in line] == [
        "blk.1.a  -  Missing in the model",
        "blk.1.c  -  Missing in the model",
    ]


def test_manifest_of_another_model_is_no_success(run, model, tmp_path):
    manifest = tmp_path / "manifest"
    manifest.write_text(f"sha256  {'0' * 64}  other.gguf\n")
    code, out, _ = run("hash", "--check", manifest, model)
    assert code == 1
    assert out.endswith("Manifest Missing Entry\n")
    manifest.write_text("nothing here\n")
    code, _, err = run("hash", "--check", manifest, model)
    assert code == 1
    assert "no hash of a kind that is known" in err
    code, _, err = run("hash", "--check", tmp_path / "none", model)
    assert code == 1
    assert "does not exist" in err
