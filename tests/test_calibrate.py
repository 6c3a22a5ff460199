"""Calibrate and quantize, whole: statistics as files, GPTQ on the way through a model, budgets, what goes wrong."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner
from tiny_models import write_tiny

import ggufkit
from ggufkit.calibrate.allocation import allocation, types_of
from ggufkit.calibrate.costs import costs
from ggufkit.calibrate.equivalent import scaled
from ggufkit.calibrate.fisher import collect
from ggufkit.calibrate.job import with_gptq
from ggufkit.calibrate.on_mlx import multiply_on
from ggufkit.calibrate.rounding import FORMS, form_of, rounding_errors
from ggufkit.calibrate.statistics import is_statistics, merged, read_statistics, write_statistics
from ggufkit.calibrate.tape import Tape
from ggufkit.cli import cli
from ggufkit.errors import GGUFError, GgufkitError, PolicyError, UsageError
from ggufkit.importance.imatrix_file import read_imatrix
from ggufkit.jobs.convert import convert
from ggufkit.jobs.quantize import quantization
from ggufkit.policy.recipe import recipe_of
from ggufkit.runtime.model import Model, load

LENGTH = 64


def run(*arguments: object):
    return CliRunner().invoke(cli, list(map(str, arguments)), catch_exceptions=False)


def statistics_of(path, windows, **options):
    with load(path, backend=Tape(threads=1)) as model:
        return collect(model, windows, ("text",), **options)


@pytest.fixture(scope="module")
def model(fixtures, tmp_path_factory):
    return convert(fixtures / "pylib-llama", tmp_path_factory.mktemp("calibrate") / "f16.gguf", "F16")


@pytest.fixture(scope="module")
def windows(model):
    text = "import os\n\n\ndef walk(path):\n    for name in sorted(os.listdir(path)):\n        yield path, name\n\n\n"
    with load(model) as loaded:
        tokens = loaded.tokenizer.encode((text + "class Walk(Exception):\n    pass\n") * 20)
    return np.array(tokens[: 6 * LENGTH], np.int32).reshape(6, LENGTH)


@pytest.fixture(scope="module")
def statistics(model, windows):
    return statistics_of(model, windows)


@pytest.fixture(scope="module")
def stats_file(statistics, tmp_path_factory):
    path = tmp_path_factory.mktemp("statistics") / "stats.gguf"
    write_statistics(path, statistics)
    return path


# -- statistics -------------------------------------------------------------------------------------------


def test_statistics_read_back(statistics, stats_file):
    found = read_statistics(stats_file)
    assert is_statistics(stats_file)
    assert found.inputs == statistics.inputs
    assert found.inputs["blk.1.attn_v.weight"] == "blk.1.attn_q.weight"
    np.testing.assert_array_equal(found.windows, statistics.windows)
    for name in statistics.fisher:
        np.testing.assert_allclose(found.fisher[name], statistics.fisher[name], rtol=1e-6)
        np.testing.assert_array_equal(found.moment(name), statistics.moment(name))
    np.testing.assert_array_equal(found.metric("token_embd.weight"), statistics.metric("token_embd.weight"))


def test_statistics_are_an_importance_matrix(model, windows, stats_file):
    """What llama-imatrix would write, but for what it rounds on the way."""
    from ggufkit.calibrate.imatrix import collect as collect_imatrix
    from ggufkit.evaluate.windows import Windows

    found = read_imatrix(stats_file)
    with load(model) as loaded:
        sums = collect_imatrix(loaded, Windows(windows.reshape(-1), LENGTH))
    for name, expected in sums.items():
        values = expected.squares[0] / expected.counts[0]
        np.testing.assert_allclose(found.values[name], values, rtol=0.02, atol=1e-3 * values.max())


def test_two_halves_are_the_whole(model, windows, statistics):
    with load(model, backend=Tape(threads=2)) as loaded:
        begun = collect(loaded, windows[:4], ("text",))
        whole = collect(loaded, windows, begun=begun)
    for name in statistics.fisher:
        np.testing.assert_allclose(whole.fisher[name], statistics.fisher[name], rtol=1e-6)
    np.testing.assert_allclose(whole.moment("output.weight"), statistics.moment("output.weight"), rtol=1e-4, atol=1e-5)
    both = merged([statistics_of(model, windows[:2]), statistics_of(model, windows[2:])])
    assert both.tokens == statistics.tokens
    np.testing.assert_allclose(both.moment("output.weight"), statistics.moment("output.weight"), rtol=1e-4, atol=1e-5)


def test_wide_inputs_have_moments_in_blocks(model, windows, statistics):
    found = statistics_of(model, windows[:2], width=128)
    assert [len(block) for block in found.moments["blk.0.attn_q.weight"]] == [128, 128]
    moment = found.moment("blk.0.attn_q.weight")
    assert not moment[:128, 128:].any()
    assert moment[:128, :128].any()


def test_statistics_do_not_depend_on_threads(model, windows):
    one, three = (collect(load(model, backend=Tape(threads=threads)), windows[:2]) for threads in (1, 3))
    for name in one.fisher:
        np.testing.assert_array_equal(one.fisher[name], three.fisher[name])
    np.testing.assert_array_equal(one.metrics["token_embd.weight"], three.metrics["token_embd.weight"])


def test_other_files_are_no_statistics(model, tmp_path):
    assert not is_statistics(model)
    assert not is_statistics(tmp_path / "missing.gguf")
    with pytest.raises(GGUFError, match="not a file of calibrate"):
        read_statistics(model)


def test_weights_that_are_not_finite(tmp_path):
    write_tiny(tmp_path / "tiny.gguf", "llama", format="F32")
    with ggufkit.open(tmp_path / "tiny.gguf") as gguf:
        infos = [(t.name, t.shape, t.format) for t in gguf.tensors.values()]
        with ggufkit.Writer(tmp_path / "nan.gguf", gguf.metadata, infos) as writer:
            for tensor in gguf.tensors.values():
                values = tensor.floats().copy()
                if tensor.name == "blk.0.attn_q.weight":
                    values[3] = np.nan
                writer.write(tensor.name, 0, values.view(np.uint8))
    with pytest.raises(GgufkitError, match="not finite"):
        statistics_of(tmp_path / "nan.gguf", np.arange(24, dtype=np.int32).reshape(2, 12))


def test_encoders_predict_nothing(tmp_path):
    write_tiny(tmp_path / "tiny.gguf", "bert+mean", format="F32")
    with pytest.raises(UsageError, match="cannot be calibrated"):
        statistics_of(tmp_path / "tiny.gguf", np.zeros((2, 8), np.int32))


# -- quantizing -------------------------------------------------------------------------------------------


def divergence(model, other, windows):
    """Mean KL divergence from one model's predictions to another's."""
    logs = []
    for path in (model, other):
        with load(path) as loaded:
            cache = loaded.new_cache(LENGTH, "F32", "F32")
            rows = []
            for window in windows:
                cache.truncate(0)
                z = loaded.forward(window, cache, "all").astype(np.float64)
                rows.append(z - np.logaddexp.reduce(z, -1, keepdims=True))
            logs.append(np.concatenate(rows))
    return float((np.exp(logs[0]) * (logs[0] - logs[1])).sum(-1).mean())


def quantized(model, target, statistics, recipe, **options):
    with ggufkit.open(model) as gguf:
        job = quantization(gguf, target, recipe)
        with_gptq(job, gguf, statistics, **options).write(force=True)
    return target


def test_gptq_and_chosen_types_beat_the_preset(model, windows, statistics, stats_file, tmp_path):
    with ggufkit.open(model) as gguf:
        recipe = recipe_of("IQ3_XXS")
        recipe = type(recipe)(recipe.preset, imatrix=read_imatrix(stats_file))
        plain = quantization(gguf, tmp_path / "plain.gguf", recipe).write()[0]
        found = allocation(gguf, recipe, statistics, like="IQ3_XXS")
    chosen = quantized(model, tmp_path / "chosen.gguf", statistics, found.recipe)
    alone = quantized(model, tmp_path / "alone.gguf", statistics, found.recipe, streams=False)
    assert chosen.stat().st_size <= plain.stat().st_size
    before, after = divergence(model, plain, windows), divergence(model, chosen, windows)
    assert after < 0.35 * before
    assert after < divergence(model, alone, windows) < 0.6 * before


def test_bytes_are_the_same_for_any_threads_and_after_a_kill(model, statistics, tmp_path, monkeypatch):
    recipe = recipe_of("Q4_K_M")
    with ggufkit.open(model) as gguf:
        contents = []
        for threads in (1, 3):
            job = with_gptq(quantization(gguf, tmp_path / f"{threads}.gguf", recipe), gguf, statistics, sweeps=1)
            contents.append(job.write(threads=threads)[0].read_bytes())
        assert contents[0] == contents[1]
        from ggufkit.calibrate import streams

        made, rounds = [], streams.rounded

        def stop(*arguments):
            made.append(1)
            if len(made) == 9:
                raise KeyboardInterrupt
            return rounds(*arguments)

        monkeypatch.setattr(streams, "rounded", stop)
        job = with_gptq(quantization(gguf, tmp_path / "killed.gguf", recipe), gguf, statistics, sweeps=1)
        with pytest.raises(KeyboardInterrupt):
            job.write()
        assert job.write()[0].read_bytes() == contents[0]
        assert len(made) < 9 + len(statistics.fisher)


@pytest.mark.parametrize("name", ["llama+experts", "qwen2", "gemma3", "deepseek2", "mamba", "mamba2"])
def test_families(tmp_path, name):
    """Fused matrices, biases, experts, tied embeddings, norms of heads: all are quantized, and better than plainly."""
    path = tmp_path / "tiny.gguf"
    write_tiny(path, name, format="F32")
    windows = np.random.default_rng(0).integers(0, 60, (4, LENGTH)).astype(np.int32)
    found = statistics_of(path, windows)
    warnings: list[str] = []
    with ggufkit.open(path) as gguf:
        plain = quantization(gguf, tmp_path / "plain.gguf", recipe_of("Q4_0")).write()[0]
        job = with_gptq(
            quantization(gguf, tmp_path / "gptq.gguf", recipe_of("Q4_0")), gguf, found, warn=warnings.append
        )
        better = job.write()[0]
        assert {
            p.tensor.name for p in job.plan.tensors if p.format.name == "Q4_0"
        } <= found.fisher.keys() | found.metrics.keys()
    assert divergence(path, better, windows) < divergence(path, plain, windows)
    assert all("expert" in text for text in warnings)


def test_experts_that_no_token_reached(tmp_path):
    write_tiny(tmp_path / "tiny.gguf", "llama+experts", format="F32")
    windows = np.full((2, 12), 7, np.int32)
    found = statistics_of(tmp_path / "tiny.gguf", windows)
    warnings: list[str] = []
    with ggufkit.open(tmp_path / "tiny.gguf") as gguf:
        with_gptq(quantization(gguf, tmp_path / "q.gguf", recipe_of("Q4_0")), gguf, found, warn=warnings.append).write()
    assert any("met no token" in text and "ffn_down_exps" in text for text in warnings)


def test_costs_fall_with_bits(model, statistics):
    with ggufkit.open(model) as gguf:
        tensors = [t for t in gguf.tensors.values() if len(t.shape) == 2]
        found = costs(tensors, statistics, ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"), "output.weight")
    for options in found.values():
        values = [option.cost for option in options.values()]
        assert values == sorted(values, reverse=True)
        assert values[-1] > 0


@pytest.mark.parametrize("type_", ["Q8_0", "Q4_K"])
def test_rounded_activations_cost_what_is_predicted(model, windows, tmp_path, type_):
    """A file of weights that were decoded from another, and that other, differ in nothing but activations."""
    with ggufkit.open(model) as gguf:
        path = quantization(gguf, tmp_path / "grid.gguf", replace(recipe_of(type_), pure=True)).write()[0]
    with ggufkit.open(path) as gguf:
        exact = quantization(gguf, tmp_path / "exact.gguf", replace(recipe_of("F32"), allow_requantize=True)).write()[0]
    statistics = statistics_of(exact, windows)
    with ggufkit.open(path) as gguf:
        predicted = sum(statistics.rounding_cost(name, gguf.info[name].format.name) for name in statistics.rounding)
    assert 0.75 < predicted / divergence(exact, path, windows) < 1.33


def test_rounding_of_activations():
    x = np.random.default_rng(0).standard_normal((3, 512)).astype(np.float32)
    x[0, :256] = 0
    for form, group in FORMS.items():
        errors, step = rounding_errors(x, form), np.abs(x.reshape(3, -1, group)).max(-1, keepdims=True) / 127
        assert (np.abs(errors.reshape(3, -1, group)) <= 0.501 * step).all()
        assert not errors[0, :256].any()
    assert not rounding_errors(x[:, :96], "Q8_K").any()
    assert [form_of(name) for name in ("Q4_0", "Q4_K", "F16", "TQ1_0")] == ["Q8_0", "Q8_K", None, None]


def test_statistics_by_mlx(model, windows, statistics):
    pytest.importorskip("mlx.core")
    with load(model, backend=Tape(threads=1, multiply=multiply_on("mlx"))) as loaded:
        found = collect(loaded, windows)
    assert found.moments.keys() == statistics.moments.keys()
    for name, blocks in statistics.moments.items():
        np.testing.assert_allclose(found.moments[name][0], blocks[0], atol=1e-4 * np.abs(blocks[0]).max())
    for name, values in statistics.fisher.items():
        np.testing.assert_allclose(found.fisher[name], values, atol=1e-3 * values.max())


def test_statistics_of_another_model(tmp_path, statistics):
    write_tiny(tmp_path / "tiny.gguf", "llama", format="F32")
    with ggufkit.open(tmp_path / "tiny.gguf") as gguf, pytest.raises(PolicyError, match="another"):
        allocation(gguf, recipe_of("Q8_0"), statistics, like="Q4_0")


def test_types_by_class_and_by_name():
    assert types_of("metal") == ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")
    assert types_of("q4_k, IQ4_XS") == ("Q4_K", "IQ4_XS")
    with pytest.raises(PolicyError):
        types_of("Q4_K,F16")


@pytest.mark.parametrize("tokens", [1, 3])
def test_statistics_of_a_few_tokens(tmp_path, tokens):
    """Moments of so little rank are damped until they can be used; the file runs."""
    write_tiny(tmp_path / "tiny.gguf", "llama", format="F32")
    found = statistics_of(tmp_path / "tiny.gguf", np.full((1, tokens), 5, np.int32))
    warnings: list[str] = []
    with ggufkit.open(tmp_path / "tiny.gguf") as gguf:
        for streams in (True, False):
            job = quantization(gguf, tmp_path / "q.gguf", recipe_of("Q4_0"))
            with_gptq(job, gguf, found, streams=streams, warn=warnings.append).write(force=True)
            with load(tmp_path / "q.gguf") as model:
                assert np.isfinite(model.forward([1, 2, 3], model.new_cache(8))).all()
    assert warnings == []


def test_moments_that_cannot_be_used(tmp_path):
    """The matrix is encoded plainly, and a warning names it; the others are not touched by that."""
    write_tiny(tmp_path / "tiny.gguf", "llama", format="F32")
    found = statistics_of(tmp_path / "tiny.gguf", np.arange(48, dtype=np.int32).reshape(4, 12))
    found.moments["blk.0.attn_output.weight"][0][:] = np.nan
    found.moments["blk.1.ffn_down.weight"][0][:] = 0
    found.moments["blk.0.attn_q.weight"][0][:, 7] = found.moments["blk.0.attn_q.weight"][0][7] = 0  # a dead column
    warnings: list[str] = []
    with ggufkit.open(tmp_path / "tiny.gguf") as gguf:
        for name, warn in (("plain", None), ("gptq", warnings.append)):
            job = quantization(gguf, tmp_path / f"{name}.gguf", recipe_of("Q4_0"))
            (job if warn is None else with_gptq(job, gguf, found, streams=False, warn=warn)).write()
    assert len(warnings) == 2
    assert all("is encoded without the text" in text for text in warnings)
    assert {name for text in warnings for name in [text.split()[0]]} == {
        "blk.0.attn_output.weight",
        "blk.1.ffn_down.weight",
    }
    same = {
        t.name for t in ggufkit.diff(tmp_path / "plain.gguf", tmp_path / "gptq.gguf").tensors if t.status == "identical"
    }
    assert {"blk.0.attn_output.weight", "blk.1.ffn_down.weight"} <= same
    assert "blk.0.attn_q.weight" not in same


def test_activations_that_overflow(tmp_path):
    """Finite weights whose products are not: one line that names the matrix."""
    write_tiny(tmp_path / "tiny.gguf", "llama", format="F32")
    with ggufkit.open(tmp_path / "tiny.gguf") as gguf:
        huge = {"blk.0.ffn_up.weight": scaled(gguf.tensors["blk.0.ffn_up.weight"], None, np.full(64, 3e38, np.float32))}
        model = Model(gguf.with_tensors(huge), Tape(threads=1))
        with pytest.raises(GgufkitError, match=r"what meets blk\.0\.ffn_down\.weight is not finite"):
            collect(model, np.arange(24, dtype=np.int32).reshape(2, 12), ("text",))


def test_prediction_of_gptq(model, statistics):
    """What GPTQ is said to gain, when all tensors are tried, and when some stand for all."""
    with ggufkit.open(model) as gguf:
        found = allocation(gguf, recipe_of("Q8_0"), statistics, like="Q3_K_S")
        predicted = found.after_gptq()
    assert 0.1 * found.predicted < predicted < 0.9 * found.predicted


# -- the command line -------------------------------------------------------------------------------------


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.py"
    path.write_text("def add(a, b):\n    return a + b\n\n\n" * 30)
    return path


def test_verbs(model, text, tmp_path):
    stats = tmp_path / "stats.gguf"
    assert run("calibrate", model, "-f", text, "-c", 32, "--chunks", 4, "-o", stats).exit_code == 0
    assert [p.name for p in tmp_path.iterdir() if "partial" in p.name] == []
    both = tmp_path / "both.gguf"
    assert run("calibrate", "--merge", stats, "-f", stats, "-o", both).exit_code == 0
    assert read_statistics(both).windows.shape == (8, 32)
    plan = run("plan", model, "--imatrix", stats, "--target-bpw", 4.5, "--json")
    found = json.loads(plan.stdout)
    assert found["bits_per_weight"] <= 4.5
    sizes = [point["size"] for point in found["frontier"]]
    assert sizes == sorted(sizes)
    assert found["predicted_kld"] > 0
    small = tmp_path / "small.gguf"
    arguments = ("quantize", "--imatrix", stats, "--target-size", "2.5M", "--types", "cpu", model, small)
    assert run(*arguments).exit_code == 0
    assert 2_400_000 < small.stat().st_size <= 2_500_000
    table = run("plan", model, "--imatrix", stats, "--like", "Q4_K_M").stdout
    assert "predicted KLD" in table


def test_chats(model, tmp_path):
    lines = [{"messages": [{"role": "user", "content": "def add(a, b):\n" * 40}]}] * 2
    path = tmp_path / "chat.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    with_template = shutil.copy(model, tmp_path / "chat.gguf")
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    assert run("set", with_template, f"tokenizer.chat_template=str:{template}").exit_code == 0
    stats = tmp_path / "stats.gguf"
    result = run("calibrate", with_template, "-f", path, "--chat", "-c", 32, "--chunks", 2, "-o", stats)
    assert result.exit_code == 0
    assert read_statistics(stats).windows.shape == (2, 32)
    matrix = tmp_path / "imatrix.gguf"
    assert run("imatrix", with_template, "-f", path, "--chat", "-c", 32, "--chunks", 2, "-o", matrix).exit_code == 0
    theirs, ours = read_imatrix(matrix), read_imatrix(stats)
    name = "blk.0.attn_q.weight"
    np.testing.assert_allclose(ours.values[name], theirs.values[name], rtol=0.02, atol=1e-3 * theirs.values[name].max())
    path.write_text("not a chat\n")
    with pytest.raises(UsageError, match="line 1: not a chat"):
        run("calibrate", with_template, "-f", path, "--chat", "-o", stats, "--force")


@pytest.mark.parametrize(("arguments", "message"), [
    (["--target-size", "2M", "MODEL", "out.gguf"], "needs the statistics"),
    (["--method", "gptq", "MODEL", "out.gguf", "Q4_0"], "needs the statistics"),
    (["--target-size", "2M", "--like", "Q4_0", "MODEL", "out.gguf"], "leave out two"),
    (["--types", "cpu", "MODEL", "out.gguf", "Q4_0"], "--types needs"),
    (["--like", "Q4_0", "MODEL", "out.gguf", "Q4_0"], "leave one out"),
])  # fmt: skip
def test_usage(model, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=message):
        run("quantize", *(model if a == "MODEL" else a for a in arguments))
    assert list(tmp_path.iterdir()) == []


def test_a_budget_that_is_too_small(model, stats_file, tmp_path):
    with pytest.raises(PolicyError, match="too small"):
        run("quantize", "--imatrix", stats_file, "--target-size", "100K", model, tmp_path / "out.gguf")


def test_a_text_that_is_too_short(model, tmp_path):
    (tmp_path / "text").write_text("short")
    with pytest.raises(UsageError, match="tokens"):
        run("calibrate", model, "-f", tmp_path / "text", "-o", tmp_path / "stats.gguf")
