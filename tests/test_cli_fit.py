"""`ggufkit fit`: what it shows, what it refuses, and what it fetches."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sparse_shapes import write_sparse
from test_gguf_remote import serve, server  # noqa: F401
from tiny_models import write_tiny

import ggufkit
from ggufkit.arch.typical import TYPICAL
from ggufkit.cli import main
from ggufkit.gguf.header import Value, ValueType
from ggufkit.jobs.convert import convert
from ggufkit.jobs.quantize import plan_quantize
from ggufkit.memory import Fit, Setup, device, report
from ggufkit.memory.family import family
from ggufkit.memory.ggml.allocator import buffer_size
from ggufkit.memory.ggml.graph import Graph
from ggufkit.memory.model import model_of_shapes
from ggufkit.policy.recipe import recipe_of


@pytest.fixture
def run(capsys):
    """Run the command line → (exit code, stdout, stderr)."""

    def run(*args) -> tuple[int, str, str]:
        code = 0
        try:
            main([str(a) for a in args])
        except SystemExit as e:
            code = e.code or 0
        return code, *capsys.readouterr()

    return run


@pytest.fixture(scope="module")
def folder(fixtures, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("fit")
    convert(fixtures / "pylib-llama", folder / "model.gguf", "BF16")
    write_tiny(folder / "experts.gguf", "qwen3moe")
    return folder


def test_what_is_shown(run, folder):
    code, out, err = run("fit", folder / "model.gguf", "--device", "cpu-8G", "--bandwidth", "50")
    assert (code, err) == (0, "")
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert "weights cpu-8G 10.49 MB" in lines
    assert "cache cpu-8G 1.05 MB" in lines
    assert "largest context: 512 tokens, all that it was trained on" in lines
    assert any(line.startswith("at most ") for line in lines)
    code, out, _ = run("fit", folder / "model.gguf", "--device", "rtx-3060", "--explain", "-np", 2, "-ctk", "q8_0")
    assert "4 layers × 2 streams × 512 tokens × (K 2 × 64 × Q8_0 = 136 B + V 128 × F16 = 256 B)" in out
    assert "-c 1024 -np 2" in out
    assert "-ctk q8_0 -ctv f16 -fa on --no-kv-unified -ngl 5" in out


def test_a_checkpoint_says_what_it_is(run, fixtures):
    _, out, _ = run("fit", fixtures / "pylib-llama", "--device", "m1-8")
    assert "  from LlamaForCausalLM, BF16, not quantized\n" in out
    assert "ggufkit on MLX" in out


def test_json_says_the_same(run, folder):
    code, out, _ = run("fit", folder / "model.gguf", "--device", "24G", "--json", "--family", "-c", "256")
    found = json.loads(out)
    assert code == 0
    assert found["fits"]
    assert found["bytes"] == sum(line["bytes"] for line in found["lines"]) == sum(d["used"] for d in found["devices"])
    assert {line["part"] for line in found["lines"] if not line["exact"]} == {"compute"}
    assert found["arguments"][:2] == ["-m", str(folder / "model.gguf")]
    assert next(row for row in found["family"] if row["type"] == "Q4_K_M")["fits"]


def test_a_checkpoint_is_its_file_to_come(folder, fixtures):
    for type in ("Q4_K_M", "Q8_0", "IQ2_XS"):
        made = ggufkit.fit(fixtures / "pylib-llama", type=type)
        assert made.lines == ggufkit.fit(folder / "model.gguf", type=type).lines
    assert ggufkit.fit(fixtures / "pylib-llama").lines == ggufkit.fit(folder / "model.gguf").lines
    plan = ggufkit.plan(fixtures / "pylib-llama", "Q4_K_M")
    assert ggufkit.fit(plan).lines == ggufkit.fit(folder / "model.gguf", type="Q4_K_M").lines


def test_the_family_has_the_sizes_that_quantize_plans(folder):
    members = family(ggufkit.fit(folder / "model.gguf", ["cpu-8G"]))
    with ggufkit.open(folder / "model.gguf") as gguf:
        for member in members:
            if not member.needs_importance:
                assert member.nbytes == plan_quantize(gguf.fields, gguf.tensors, recipe_of(member.type)).nbytes
    assert [member.nbytes for member in members] == sorted((member.nbytes for member in members), reverse=True)
    assert {member.type for member in members if member.needs_importance} >= {"IQ2_XS", "IQ1_S"}


def test_the_table_of_sizes(run):
    code, out, _ = run("fit", "--table", "--json")
    assert code == 0
    rows = {(row["size"], row["type"]): row for row in json.loads(out)}
    assert rows["8B", "Q4_K_M"]["card"] == "rtx-3070"
    assert rows["405B", "BF16"]["mac"] is rows["405B", "BF16"]["card"] is None
    shape = TYPICAL["8B"]
    weights = sum(m.size for m in model_of_shapes("8B", shape.metadata, shape.shapes).matrices)
    assert weights == 8_030_261_248  # Llama 3.1 8B's, without its factors of rope


@pytest.mark.parametrize("size", ["8B", "30B-A3B"])
@given(room=st.integers(4, 80), context=st.sampled_from([256, 4096, 32768]))
@settings(max_examples=5)
def test_as_much_as_fits_is_on_the_card(size, room, context):
    """No more layers, and no more experts, would fit; and the largest context fits while the next does not."""
    shape = TYPICAL[size]
    model = model_of_shapes(size, shape.metadata, shape.shapes)
    fit = report(model, Setup("llama.cpp", context), [device(f"{room}G"), device("cpu-2000G")])
    layers, count, experts = len(model.layers), fit.setup.gpu_layers, fit.setup.cpu_experts
    assert fit.fits or count == 0
    if count <= layers:
        assert not fit.with_setup(gpu_layers=count + 1).fits
    elif experts:
        assert not fit.with_setup(cpu_experts=experts - 1).fits
    largest = fit.largest_context()
    assert largest >= context or not fit.fits
    if largest:
        assert fit.with_setup(context=largest).fits
    if largest < model.context_length:
        assert not fit.with_setup(context=largest + 256).fits


def test_the_output_matrix_is_the_first_layer_on_the_card(folder):
    def on_card(layers: int) -> Fit:
        return ggufkit.fit(folder / "model.gguf", ["24G", "cpu-8G"], gpu_layers=layers)

    assert on_card(0).used(0) == 0
    assert on_card(1).placement.output == 0
    assert set(on_card(1).placement.layers) == {1}
    assert set(on_card(5).placement.layers) == {0}
    tied = sum(line.nbytes for line in on_card(5).lines if "once more" in line.formula)
    assert tied == (4096 * 256 * 2 if on_card(5).model.tied else 0)


def test_experts_that_a_token_does_not_go_through_are_not_read(folder):
    fit = ggufkit.fit(folder / "experts.gguf", ["cpu-8G"])
    (read,) = fit.read(0)
    experts = sum(m.nbytes for m in fit.model.matrices if "_exps." in m.name)
    rest = sum(m.nbytes for m in fit.model.matrices if "_exps." not in m.name and m.name != "token_embd.weight")
    assert read == rest + experts // 2  # 2 of 4


def test_only_the_header_is_fetched(server, tmp_path, run):  # noqa: F811
    shape = TYPICAL["8B"]
    metadata = dict(shape.metadata) | {"tokenizer.ggml.tokens": [f"token{i}" for i in range(shape.vocabulary)]}
    write_sparse(tmp_path / "large.gguf", metadata, shape.shapes)
    header = ggufkit.open(tmp_path / "large.gguf").data_offset
    begun = time.process_time()
    code, out, _ = run("fit", f"{server.url}/large.gguf", "--device", "rtx-3090")
    assert time.process_time() - begun < 2  # of which it takes a third; the machine may be busy
    assert code == 0
    assert f"llama-server -mu {server.url}/large.gguf" in out
    assert server.sent < 1.6 * header


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["{0}/none.gguf"], "does not exist"),
        (["{0}/text.gguf"], "not a GGUF file"),
        (["{0}/cut.gguf"], "cut short"),
        (["{0}/model.gguf", "--device", "rtx-99"], "not known"),
        (["{0}/model.gguf", "--device", "m4-pro-48", "--device", "rtx-4090"], "one memory for all"),
        (["{0}/model.gguf", "--device", "rtx-4090", "--engine", "cpu"], "--engine llama.cpp"),
        (["{0}/model.gguf", "--device", "rtx-4090", "-ctk", "tq4"], "no cache of the type tq4"),
        (["{0}/model.gguf", "--device", "rtx-4090", "-ctv", "q8_0", "-fa", "off"], "only with flash attention"),
        (["{0}/model.gguf", "-c", "-1"], "context must be at least 1"),
        (["{0}/model.gguf", "--type", "Q9_Z"], "no type is called"),
        (["{0}/model.gguf", "--mmproj", "{0}/none.gguf", "--engine", "llama.cpp"], "does not exist"),
        (["{0}/model.gguf", "--lora", "{0}/model.gguf", "--engine", "cpu"], "for llama.cpp"),
        (["{0}"], "no config.json"),
        ([], "MODEL is missing"),
    ],
)
def test_bad_input_is_one_line(run, folder, arguments, text):
    (folder / "text.gguf").write_text("what is this")
    (folder / "cut.gguf").write_bytes((folder / "model.gguf").read_bytes()[:-5000])
    code, out, err = run("fit", *(argument.format(folder) for argument in arguments))
    assert code in (1, 2)
    assert out == ""
    assert text in err
    assert err.count("\n") == 1


def test_a_hostile_file_says_nothing_to_the_terminal(run, tmp_path):
    path = tmp_path / "evil\x1b[2J.gguf"
    write_tiny(path, "llama", metadata={"general.architecture": "llama", "general.name": "\x1b]0;x\x07"})
    _, out, err = run("fit", path, "--explain", "--engine", "llama.cpp")
    assert all(c.isprintable() or c == "\n" for c in out + err)
    huge = {"llama.attention.head_count": Value(ValueType.UINT32, 4_000_000_000)}
    write_tiny(path, "llama", metadata=huge)
    code, out, err = run("fit", path)
    assert (code, out, err.count("\n")) == (1, "", 1)


@given(st.lists(st.tuples(st.integers(1, 5000), st.lists(st.integers(0, 30), max_size=3)), min_size=1, max_size=30))
def test_a_buffer_holds_all_that_is_alive_at_once(described):
    """No smaller than the widest moment, no larger than everything together."""
    graph, made = Graph(), []
    for size, sources in described:
        made.append(graph.op("product", (size,), *(made[i % len(made)] for i in sources if made)))
        graph.expand(made[-1])
    rounded = [-(-4 * size // 32) * 32 for size, _ in described]
    last = {id(t): i for i, t in enumerate(made)}
    for i, tensor in enumerate(made):
        last |= {id(source): i for source in tensor.sources}
    kept = {id(t) for t in made} - {id(s) for t in made for s in t.sources}  # results that nobody reads stay
    alive = [
        sum(rounded[j] for j in range(i + 1) if id(made[j]) in kept or last[id(made[j])] >= i) for i in range(len(made))
    ]
    assert max(alive) <= buffer_size(graph) <= sum(rounded)
