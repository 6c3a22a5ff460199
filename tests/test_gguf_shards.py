"""Split models: opened by any file, split and merged with llama-gguf-split's bytes."""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import ggufkit
from ggufkit.cli import main
from ggufkit.errors import FileError, GGUFError, UsageError
from ggufkit.formats.table import FORMATS
from ggufkit.gguf.copy import merge, write_shards
from ggufkit.gguf.sharded import ShardedWriter
from ggufkit.gguf.shards import split_names, split_tensors
from ggufkit.gguf.writer import Writer

F32, Q8_0 = FORMATS["F32"], FORMATS["Q8_0"]


def run(*args) -> int:
    try:
        main([str(a) for a in args])
    except SystemExit as e:
        return int(e.code or 0)
    return 0


@pytest.fixture
def model(tmp_path):
    """Seven tensors, one of them empty, with an alignment of its own."""
    path = tmp_path / "model.gguf"
    rng = np.random.default_rng(0)
    tensors = [(f"t{i}", (i, 32), Q8_0 if i % 2 else F32) for i in range(7)]
    with Writer(path, {"general.architecture": "llama", "k": "v"}, tensors, alignment=64) as out:
        for name, info in out.layout.infos.items():
            out.write(name, 0, rng.integers(0, 256, (info.shape[0], info.nbytes // max(info.shape[0], 1)), np.uint8))
    return path


def split(path, target, **how) -> list[str]:
    with ggufkit.open(path) as m:
        return write_shards(m, target, **how)


def contents(path) -> dict[str, bytes]:
    with ggufkit.open(path) as m:
        return {t.name: t.read(0, t.rows).tobytes() for t in m.tensors.values()}


@pytest.fixture(scope="module")
def quantized(shared, tmp_path_factory):
    """llama.cpp's Q4_K_M file of the fixture model, made again."""
    folder = tmp_path_factory.mktemp("q4_k_m")
    assert run("convert", shared / "models" / "pylib-llama", "-o", folder / "bf16.gguf", "--type", "bf16") == 0
    assert run("quantize", folder / "bf16.gguf", folder / "q.gguf", "Q4_K_M") == 0
    golden = json.loads((shared / "golden" / "quantize.json").read_text())["Q4_K_M"]
    assert hashlib.sha256((folder / "q.gguf").read_bytes()).hexdigest() == golden["file_sha256"]
    return folder / "q.gguf"


@pytest.mark.parametrize(
    "flags",
    ["--split-max-tensors 10", "--split-max-size 3M", "--split-max-tensors 10 --no-tensor-first-split"],
)
def test_split_and_merge_equal_those_of_llama_cpp(shared, quantized, tmp_path, flags):
    expected = json.loads((shared / "golden" / "split.json").read_text())[flags]
    assert run("split", *flags.split(), quantized, tmp_path / "part") == 0
    first = min(tmp_path.glob("part-*"))
    assert run("merge", first, tmp_path / "merged.gguf") == 0
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in tmp_path.iterdir()}
    assert found == expected
    assert run("merge", "--drop-split-keys", first, tmp_path / "again.gguf") == 0
    assert (tmp_path / "again.gguf").read_bytes() == quantized.read_bytes()


@pytest.mark.parametrize(
    "how", [{"max_tensors": 2}, {"max_bytes": 500}, {"max_tensors": 3, "no_tensor_first_split": True}]
)
def test_model_is_opened_by_any_shard(model, tmp_path, how):
    paths = split(model, tmp_path / "part", **how)
    assert len(paths) > 2
    for path in paths:
        with ggufkit.open(path) as m:
            assert m.metadata["k"] == "v"
            assert len(m.parts) == len(paths)
        assert contents(path) == contents(model)
    with ggufkit.open(paths[1], shards=False) as m:
        assert len(m.parts) == 1
        assert "k" not in m.metadata


def test_merge_of_split_gives_the_first_file_back(model, tmp_path):
    paths = split(model, tmp_path / "part", max_tensors=2)
    with ggufkit.open(paths[2]) as m:
        merge(m, tmp_path / "merged.gguf", drop_split_keys=True)
    assert (tmp_path / "merged.gguf").read_bytes() == model.read_bytes()
    # A split model can be divided anew, and so can the merged file that kept its keys.
    with ggufkit.open(paths[0]) as m:
        merge(m, tmp_path / "kept.gguf")
    for source in (paths[0], tmp_path / "kept.gguf"):
        again = split(source, tmp_path / f"again-{Path(source).name}", max_tensors=2)
        assert [Path(p).read_bytes() for p in again] == [Path(p).read_bytes() for p in paths]


def test_tensor_larger_than_the_limit_has_a_file_of_its_own(model):
    with ggufkit.open(model) as m:
        shards = split_tensors(m.fields, m.info, max_bytes=200)
    assert [shard.tensors for shard in shards] == [["t0", "t1"], ["t2"], ["t3"], ["t4"], ["t5"], ["t6"]]


def test_missing_shard_is_named(model, tmp_path):
    paths = split(model, tmp_path / "part", max_tensors=2)
    Path(paths[1]).unlink()
    with pytest.raises(FileError, match=r"part-00002-of-00004[.]gguf: does not exist"):
        ggufkit.open(paths[3])


def test_renamed_shard_is_refused_and_can_be_opened_alone(model, tmp_path):
    paths = split(model, tmp_path / "part", max_tensors=2)
    for name in ("other.gguf", "part-00002-of-00005.gguf"):
        renamed = Path(paths[1]).rename(tmp_path / name)
        with pytest.raises(GGUFError, match=r"does not end in -00002-of-00004[.]gguf"):
            ggufkit.open(renamed)
        with ggufkit.open(renamed, shards=False) as m:
            assert list(m.tensors) == ["t2", "t3"]
        renamed.rename(paths[1])


def test_files_of_different_models_are_refused(model, tmp_path):
    paths = split(model, tmp_path / "part", max_tensors=2)
    other = split(model, tmp_path / "other", max_tensors=2, no_tensor_first_split=True)
    assert len(other) == 5
    Path(paths[1]).write_bytes(Path(paths[2]).read_bytes())
    with pytest.raises(GGUFError, match=r"split[.]no is 2, but it should be 1"):
        ggufkit.open(paths[0])
    with Writer(paths[1], {"a": 1}, [("x", (0,), F32), ("y", (0,), F32)], force=True):
        pass
    with pytest.raises(GGUFError, match=r"split[.]no .u16. is missing"):
        ggufkit.open(paths[0])


def test_existing_file_stays_and_nothing_is_left_after_an_error(model, tmp_path):
    names = split_names(str(tmp_path / "part"), 4)
    Path(names[2]).write_text("mine")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(FileError, match=r"00003-of-00004[.]gguf exists already"):
        split(model, tmp_path / "part", max_tensors=2)
    assert sorted(tmp_path.iterdir()) == before
    Path(names[2]).unlink()

    def interrupt(nbytes, name):
        if name == "t4":
            raise KeyboardInterrupt

    with ggufkit.open(model) as m, pytest.raises(KeyboardInterrupt):
        write_shards(m, tmp_path / "part", max_tensors=2, advance=interrupt)
    assert list(tmp_path.iterdir()) == [model]


def test_sharded_writer_takes_rows_in_any_order_from_threads(tmp_path):
    rng = np.random.default_rng(1)
    data = {f"t{i}": rng.normal(size=(50, 64)).astype("<f4") for i in range(9)}
    tensors = [(name, x.shape, F32) for name, x in data.items()]
    pieces = [(name, row) for name in data for row in range(50)]
    rng.shuffle(pieces)
    with (
        ShardedWriter(tmp_path / "m.gguf", {"k": 1}, tensors, max_bytes=30_000, alignment=128) as out,
        ThreadPoolExecutor(4) as pool,
    ):
        assert len(out.paths) == 5
        list(pool.map(lambda p: out.write(p[0], int(p[1]), data[p[0]][int(p[1]) :][:1].view("u1")), pieces))
    with ggufkit.open(out.paths[3]) as m:
        assert m.metadata["general.alignment"] == 128
        assert all(np.array_equal(m.tensors[name].floats(), x) for name, x in data.items())


def test_sharded_writer_leaves_nothing_when_rows_are_missing(tmp_path):
    tensors = [(f"t{i}", (1, 32), F32) for i in range(4)]
    row = np.zeros((1, 128), np.uint8)
    out = ShardedWriter(tmp_path / "m", {}, tensors, max_tensors=1)
    for name in ("t0", "t3", "t1"):
        out.write(name, 0, row)
    assert len(list(tmp_path.iterdir())) == 3
    with pytest.raises(GGUFError, match="no tensor t9"):
        out.write("t9", 0, row)
    with pytest.raises(GGUFError, match="1 tensors were not written completely, the first is t2"):
        out.close()
    assert list(tmp_path.iterdir()) == []


def test_limits_are_checked(model):
    with ggufkit.open(model) as m:
        for how in ({}, {"max_tensors": 1, "max_bytes": 1}):
            with pytest.raises(UsageError, match="either"):
                split_tensors(m.fields, m.info, **how)


def test_merge_refuses_what_is_not_split(model, tmp_path, capsys):
    assert run("merge", model, tmp_path / "out.gguf") == 2
    assert "no part of a split model" in capsys.readouterr().err
    assert run("split", "--split-max-size", "0G", model, tmp_path / "part") == 2
    assert "less than 1" in capsys.readouterr().err


def test_merge_into_one_of_the_shards_is_refused(model, tmp_path, capsys):
    paths = split(model, tmp_path / "part", max_tensors=2)
    assert run("merge", "--force", paths[0], paths[2]) == 2
    assert "is the input file" in capsys.readouterr().err
    assert contents(paths[1]) == contents(model)


def test_splits_are_deleted_after_the_merge(model, tmp_path, capsys):
    paths = split(model, tmp_path / "part", max_tensors=2)
    assert run("merge", "--dry-run", "--delete-splits", paths[0], tmp_path / "out.gguf") == 0
    assert capsys.readouterr().out.startswith(f"{tmp_path}/out.gguf: 4 files, 7 tensors")
    assert run("merge", "--delete-splits", paths[0], tmp_path / "out.gguf") == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.gguf", "out.gguf"]
    assert contents(tmp_path / "out.gguf") == contents(model)


def test_split_shows_its_plan(model, tmp_path, capsys):
    assert run("split", "--dry-run", "--split-max-tensors", "4", model, tmp_path / "part") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{tmp_path}/part-00001-of-00002.gguf: 4 tensors, 392 B"
    assert list(tmp_path.iterdir()) == [model]
