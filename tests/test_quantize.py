"""Quantizing: the whole files are llama-quantize's, from a GGUF and straight from a checkpoint."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import ggufkit
from ggufkit.cli import main
from ggufkit.formats.table import FORMATS
from ggufkit.gguf.writer import Writer
from ggufkit.jobs.convert import convert
from ggufkit.jobs.quantize import quantize

TYPES = ["F16", "BF16", "Q8_0", "Q4_0", "Q4_K_M"]


def sha256(path: str | Path) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def run(*arguments: object) -> int:
    """The exit code of a command line."""
    try:
        main([str(a) for a in arguments])
    except SystemExit as e:
        return int(e.code or 0)
    return 0


@pytest.fixture(scope="module")
def bf16(fixtures, tmp_path_factory) -> Path:
    """The bundled model as llama.cpp's converter writes it."""
    return convert(fixtures / "pylib-llama", tmp_path_factory.mktemp("model") / "bf16.gguf", "BF16")


@pytest.fixture(scope="module")
def golden(fixtures) -> dict:
    return json.loads((fixtures / "pylib-llama.json").read_text())["quantize_sha256"]


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


# -- the bytes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", TYPES)
def test_quantize_writes_llama_quantizes_file(bf16, golden, tmp_path, preset):
    quantize(bf16, tmp_path / "q.gguf", preset)
    assert golden[preset] == sha256(tmp_path / "q.gguf")


@pytest.mark.parametrize("preset", ["Q4_0", "Q4_K_M"])
def test_convert_writes_the_file_of_convert_and_quantize(fixtures, golden, tmp_path, preset):
    convert(fixtures / "pylib-llama", tmp_path / "q.gguf", preset.lower())
    assert golden[preset] == sha256(tmp_path / "q.gguf")


# The slow encoders are compared tensor by tensor in tools/; here each preset that takes well below a second.
@pytest.mark.parametrize("preset", ["Q2_K", "Q2_K_S", "Q3_K_M", "Q5_K_S", "Q6_K", "Q4_1", "Q5_0", "TQ1_0", "MXFP4_MOE"])
def test_quantize_with_imatrix_writes_llama_quantizes_file(shared, bf16, here, preset):
    file = json.loads((shared / "golden" / "quantize.json").read_text())[f"{preset}+imatrix"]
    # Its name goes into the metadata.
    shutil.copyfile(shared / "golden" / "imatrix.gguf", "imatrix.gguf")
    assert run("quantize", "--imatrix", "imatrix.gguf", bf16, "q.gguf", preset) == 0
    assert file["file_sha256"] == sha256("q.gguf")
    assert file["size"] == Path("q.gguf").stat().st_size


def test_old_imatrix_gives_the_same_weights(shared, bf16, tmp_path):
    for name in ("imatrix.gguf", "imatrix.dat"):
        arguments = ("--imatrix", shared / "golden" / name, bf16, tmp_path / f"{name}.gguf", "Q4_0")
        assert run("quantize", *arguments) == 0
    with ggufkit.open(tmp_path / "imatrix.gguf.gguf") as one, ggufkit.open(tmp_path / "imatrix.dat.gguf") as other:
        assert list(one.fields) == list(other.fields)
        for name, tensor in one.tensors.items():
            np.testing.assert_array_equal(tensor.read(0, tensor.rows), other.tensors[name].read(0, tensor.rows))


def test_threads_do_not_change_the_bytes(bf16, golden, here):
    for threads in (1, 2, 3):
        assert run("quantize", bf16, "q.gguf", "Q4_K_M", threads, "--force", "--memory", "1M") == 0
        assert golden["Q4_K_M"] == sha256("q.gguf")


def test_copy_keeps_tensors_and_sets_metadata(bf16, here):
    override = "llama.context_length=int:77"
    assert run("quantize", bf16, "q.gguf", "COPY", "--override-kv", override) == 0
    with ggufkit.open(bf16) as source, ggufkit.open("q.gguf") as copy:
        assert list(copy.fields)[-3:] == ["general.quantization_version", "general.file_type", "llama.context_length"]
        assert copy.metadata["llama.context_length"] == 77
        assert copy.metadata["general.file_type"] == source.metadata["general.file_type"]
        for name, tensor in source.tensors.items():
            assert tensor.format == copy.tensors[name].format
            np.testing.assert_array_equal(tensor.read(0, tensor.rows), copy.tensors[name].read(0, tensor.rows))


def test_layers_are_left_out_and_renumbered(bf16, here):
    assert run("quantize", "--prune-layers", "1,2", bf16, "q.gguf", "Q8_0") == 0
    with ggufkit.open(bf16) as source, ggufkit.open("q.gguf") as pruned:
        assert pruned.metadata["llama.block_count"] == 2
        assert {n for n in pruned.tensors if n.startswith("blk.")} == {
            n for n in source.tensors if n.startswith(("blk.0.", "blk.1."))
        }
        norms = [m.tensors[f"blk.{i}.attn_norm.weight"].floats() for m, i in ((source, 3), (pruned, 1))]
        np.testing.assert_array_equal(*norms)


def test_split_model_is_quantized_to_one_file_or_the_same_parts(fixtures, golden, here):
    assert run("convert", fixtures / "pylib-llama", "-o", "in.gguf", "--type", "BF16", "--split-max-size", "4M") == 0
    assert run("quantize", "in-00002-of-00004.gguf", "q.gguf", "Q4_K_M") == 0
    assert golden["Q4_K_M"] == sha256("q.gguf")
    assert run("quantize", "--keep-split", "in-00001-of-00004.gguf", "parts.gguf", "Q4_K_M") == 0
    with ggufkit.open("q.gguf") as whole, ggufkit.open("parts-00001-of-00004.gguf") as parts:
        for i, part in enumerate(parts.parts):
            with ggufkit.open(f"in-0000{i + 1}-of-00004.gguf", shards=False) as source:
                assert set(source.tensors) == set(part.header.tensors)
        for name, tensor in whole.tensors.items():
            np.testing.assert_array_equal(tensor.read(0, tensor.rows), parts.tensors[name].read(0, tensor.rows))


def test_convert_takes_rules_and_policies(fixtures, here):
    Path("mine.toml").write_text('base = "Q4_0"\n[[rule]]\ntype = "Q8_0"\nrole = "attn_k"\nlayers = -1\n')
    model = fixtures / "pylib-llama"
    assert run("convert", model, "-o", "q.gguf", "--policy", "mine.toml", "--tensor-type", "blk.0.ffn=q5_0") == 0
    with ggufkit.open("q.gguf") as written:
        types = {name: t.format.name for name, t in written.tensors.items() if name.startswith("blk.")}
    special = {"blk.3.attn_k.weight": "Q8_0"} | {f"blk.0.ffn_{n}.weight": "Q5_0" for n in ("down", "gate", "up")}
    assert special == {name: t for name, t in types.items() if t not in ("Q4_0", "F32")}


# -- the command line -------------------------------------------------------------------------------------


def test_output_is_named_after_the_type(bf16, golden, here, capsys):
    shutil.copyfile(bf16, "model.gguf")
    assert run("quantize", "model.gguf", "q4_0") == 0
    assert golden["Q4_0"] == sha256("ggml-model-Q4_0.gguf")
    assert capsys.readouterr().out.strip() == "ggml-model-Q4_0.gguf"


@pytest.mark.parametrize("verb", ["plan", "quantize --dry-run"])
@pytest.mark.parametrize("preset", ["F16", "Q4_K_M", "IQ4_XS", "COPY"])
def test_plan_says_the_exact_size(bf16, here, capsys, verb, preset):
    assert run(*verb.split(), bf16, preset, "--json") == 0
    plan = json.loads(capsys.readouterr().out)
    assert list(here.iterdir()) == []
    quantize(bf16, here / "q.gguf", preset)
    assert plan["size"] == plan["files"][0]["size"] == (here / "q.gguf").stat().st_size
    with ggufkit.open("q.gguf") as written:
        assert [(t.name, t.format.name, t.nbytes) for t in written.tensors.values()] == [
            (t["name"], t["to"], t["bytes"]) for t in plan["tensors"]
        ]


def test_plan_of_a_checkpoint_shows_types_reasons_and_totals(fixtures, capsys):
    assert run("plan", fixtures / "pylib-llama", "Q4_K_M", "--tensor-type", "attn_q=q8_0") == 0
    out = capsys.readouterr().out
    assert "--tensor-type attn_q=q8_0" in out
    assert "39 tensors, 5.25 M weights, 5.305 bits per weight" in out
    assert "Q4_K_M.gguf: " in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("Q4_K_N", "no type is called 'Q4_K_N'; did you mean Q4_K_S, Q4_K_M, Q4_K?"),
        ("IQ1_S", "attn_k.weight as IQ1_S needs importance weights"),
        ("Q4_0 --tensor-type nix=Q8_0", "--tensor-type nix=Q8_0 matches no tensor"),
        ("Q4_0 --tensor-type norm=Q8_0", "matches only tensors that are never quantized"),
        ("F16 --tensor-type attn=Q8_0", "F16 is none"),
        ("Q4_0 --prune-layers 4", "layer 4 cannot be left out: the layers are 0 to 3"),
        ("Q4_0 --output-tensor-type Q4_K_M", "--output-tensor-type: no tensor type is called 'Q4_K_M'"),
        ("Q4_0 --imatrix nix", "cannot read nix: does not exist"),
        ("Q4_0 --policy nix", "cannot read nix: does not exist"),
        ("Q4_0 --include-weights a", "need an --imatrix"),
        ("Q4_0 2 3", "after TYPE only the number of threads may follow"),
        ("Q4_0 0", "after TYPE only the number of threads may follow"),
        ("", "TYPE is missing"),
    ],
)
def test_mistake_is_one_line_before_any_work(bf16, here, capsys, arguments, message):
    assert run("quantize", bf16, *(["q.gguf"] if arguments else []), *arguments.split()) in (1, 2)
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert list(here.iterdir()) == []


def test_quantized_source_is_refused_unless_allowed(bf16, here, capsys):
    quantize(bf16, "q.gguf", "Q8_0")
    assert run("quantize", "q.gguf", "r.gguf", "Q4_0") == 1
    assert "quantized already, to Q8_0" in capsys.readouterr().err
    assert run("quantize", "--allow-requantize", "q.gguf", "r.gguf", "Q4_0") == 0


def test_importance_of_another_model_is_refused(bf16, here, capsys):
    tensors = {"other.weight.in_sum2": np.ones((1, 8)), "other.weight.counts": np.ones((1, 1))}
    tensors |= {"output.weight.in_sum2": np.ones((1, 8)), "output.weight.counts": np.ones((1, 1))}
    keys = {"imatrix.datasets": ["x"], "imatrix.chunk_count": 1, "imatrix.chunk_size": 1}
    for chosen, message in ((("other",), "it names none of the"), (("output",), "has 8 values for output.weight")):
        wanted = {n: v.astype("<f4") for n, v in tensors.items() if n.startswith(chosen)}
        infos = [(n, v.shape, FORMATS["F32"]) for n, v in wanted.items()]
        with Writer("i.gguf", {"general.type": "imatrix", **keys}, infos, force=True) as out:
            for name, values in wanted.items():
                out.write(name, 0, values.view(np.uint8))
        assert run("quantize", "--imatrix", "i.gguf", bf16, "q.gguf", "Q4_0") == 1
        assert message in capsys.readouterr().err
    assert [p.name for p in here.iterdir()] == ["i.gguf"]


def test_input_is_never_the_output(fixtures, bf16, here, capsys):
    shutil.copyfile(bf16, "m.gguf")
    Path("link.gguf").symlink_to("m.gguf")
    assert run("quantize", "m.gguf", "link.gguf", "Q4_0", "--force") == 2
    assert "is the input file" in capsys.readouterr().err
    assert sha256(bf16) == sha256("m.gguf")


def test_parts_are_never_written_over_the_inputs(fixtures, here, capsys):
    model = shutil.copytree(fixtures / "pylib-llama", "model")
    assert run("convert", model, "-o", "m.gguf", "--split-max-tensors", "20") == 0
    before = {path: sha256(path) for path in Path().rglob("*") if path.is_file()}
    assert run("quantize", "--keep-split", "m-00001-of-00002.gguf", "m.gguf", "Q4_0", "--force") == 2
    assert run("convert", model, "-o", Path(model, "model.safetensors"), "--force") == 2
    assert "is the input file" in capsys.readouterr().err
    assert before == {path: sha256(path) for path in Path().rglob("*") if path.is_file()}
