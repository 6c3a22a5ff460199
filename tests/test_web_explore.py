"""`ggufkit explore`: its data, the page in a real browser with hostile names, a model of 70B, bad input."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from browser import Browser, opened_browser

import ggufkit
from ggufkit import FORMATS, Value, ValueType
from ggufkit.cli import main
from ggufkit.errors import FileError, GGUFError, UsageError
from ggufkit.formats.codec import decode
from ggufkit.gguf.writer import FileLayout
from ggufkit.memory import Device, Setup, model_of, report
from ggufkit.verbs import plan
from ggufkit.web.contents import MOST_TENSORS, Shown, tensors_of
from ggufkit.web.explore import model_data, plan_data
from ggufkit.web.samples import decoded_rows

EVIL = "</script><script>window.evil = 1</script><img src=x onerror='window.evil=2'>\u202e\x1b[31m\u200b&lt;"
TEMPLATE = "{% for m in messages %}<s>{{ m.role }}" + EVIL.replace("'", "") + "{{ m.content }}{% endfor %}"


@pytest.fixture(scope="module")
def browser():
    with opened_browser() as found:
        yield found


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, fixtures: Path) -> Path:
    """source.gguf, small.gguf made of it, and evil.gguf, whose every text is hostile."""
    folder = tmp_path_factory.mktemp("explore")
    ggufkit.convert(fixtures / "pylib-llama", folder / "source.gguf", "F16")
    ggufkit.quantize(folder / "source.gguf", folder / "small.gguf", "Q4_K_M")
    with ggufkit.open(folder / "small.gguf") as model:
        fields = {key: field for key, field in model.fields.items() if key != "general.name"}
        tokens = model.metadata["tokenizer.ggml.tokens"]
        tensors = list(model.tensors.values())
        fields |= {
            "general.name": EVIL,
            "tokenizer.chat_template": TEMPLATE,
            "tokenizer.ggml.tokens": [*tokens[:-2], EVIL, "\u202eabc\x00"],
            f"evil.{EVIL[:30]}": EVIL * 3,
        }
        names = [f"blk.0.{EVIL[:50]}" if t.name == "blk.0.attn_q.weight" else t.name for t in tensors]
        layout = [(name, t.shape, t.format) for name, t in zip(names, tensors, strict=True)]
        with ggufkit.Writer(folder / "evil.gguf", fields, layout) as writer:
            for name, tensor in zip(names, tensors, strict=True):
                writer.write(name, 0, tensor.read(0, tensor.rows))
    return folder


@pytest.fixture(scope="module")
def small_page(models: Path) -> Path:
    rest = {"same_top": [0.9, 0.01], "perplexity": [9.0, 0.1]}
    results = {
        "base": {"path": "/a/source.gguf", "bytes": 10_000_000},
        "models": [
            {"path": f"/b/{name}.gguf", "bytes": size, "bpw": 4.5, "kld": [kld, kld / 9], **rest}
            for name, size, kld in (("small", (models / "small.gguf").stat().st_size, 0.02), ("x", 9_000_000, 0.001))
        ],
    }  # fmt: skip
    (models / "results.json").write_text(json.dumps(results))
    return ggufkit.explore(
        models / "small.html", models / "small.gguf", models / "source.gguf", results=models / "results.json"
    )


# ---- Data ---------------------------------------------------------------------------------------------------------


def test_reasons_are_those_of_the_plan(models: Path):
    with ggufkit.open(models / "small.gguf") as model:
        shown = model_data(model, weights=False)["model"]
    planned = {p.tensor.name: p for p in plan(models / "source.gguf", "Q4_K_M").tensors}
    reasons = [shown["reasons"][i] for i in shown["tensors"]["reason"]]
    assert reasons == [planned[name].reason for name in shown["tensors"]["name"]]


def test_a_plan_is_shown_as_the_file_would_be(models: Path):
    made = plan_data(plan(models / "source.gguf", "Q4_K_M"), "source.gguf", "Q4_K_M")["model"]
    with ggufkit.open(models / "small.gguf") as model:
        shown = model_data(model, weights=False)["model"]
    assert made["facts"]["size"] == (models / "small.gguf").stat().st_size
    assert made["tensors"] == shown["tensors"]
    assert made["types"] == shown["types"]


def test_memory_of_every_stop_is_that_of_fit(models: Path):
    with ggufkit.open(models / "small.gguf") as model:
        memory, described = model_data(model, weights=False)["memory"], model_of(model)
    for engine, found in memory["engines"].items():
        place = Device("any", "host" if engine == "cpu" else "unified", 1 << 60, 1 << 60, engine=engine)
        for kind, rows in found["types"].items():
            for slots, row in zip(memory["slots"], rows, strict=True):
                for context, parts in zip(memory["contexts"], row, strict=True):
                    wanted = report(described, Setup(engine, context, slots, keys=kind, values=kind), [place]).nbytes
                    assert found["weights"] + sum(parts.values()) == wanted


@pytest.mark.parametrize("form", [f for f in FORMATS.values() if f.is_quantized and f.encodable], ids=lambda f: f.name)
def test_opened_blocks_are_the_codecs(form):
    blocks = np.random.default_rng(form.id).integers(0, 256, (2, 4 * form.type_size), dtype=np.uint8)
    assert decoded_rows(blocks, form).tobytes() == decode(blocks, form).tobytes() or np.array_equal(
        decoded_rows(blocks, form), decode(blocks, form), equal_nan=True
    )


def test_what_is_left_out_is_counted():
    shown = [Shown(f"t{i}", (1,), FORMATS["F32"], 4, 4 * i) for i in range(MOST_TENSORS + 5)]
    listed = tensors_of(shown)
    assert listed["left_out"] == 5
    assert len(listed["tensors"]["name"]) == MOST_TENSORS


def test_weights_that_are_not_finite_and_rows_of_millions(tmp_path: Path):
    x = np.arange(256, dtype=np.float32).reshape(2, 128)
    x[0, 3], x[1, 5] = np.inf, np.nan
    tensors = [("odd.weight", (2, 128), FORMATS["F32"]), ("wide.weight", (1 << 21,), FORMATS["F16"])]
    with ggufkit.Writer(tmp_path / "odd.gguf", {"general.architecture": "clip"}, tensors) as writer:
        writer.write("odd.weight", 0, x.view(np.uint8))
        writer.write("wide.weight", 0, np.zeros((1, 1 << 22), np.uint8))
    with ggufkit.open(tmp_path / "odd.gguf") as model:
        odd, wide = model_data(model)["samples"]
    assert wide is None
    assert odd["broken"] == 2
    assert sum(odd["histogram"]["counts"]) == 254
    assert odd["heat"]["high"] < 256


# ---- The page -----------------------------------------------------------------------------------------------------


def test_every_tab_opens_without_an_error(browser: Browser, small_page: Path):
    with browser.page(small_page) as page:
        tabs = page.locator("[role=tab]")
        titles = tabs.all_inner_texts()
        assert titles[:6] == ["Overview", "Layers", "Tensors", "Metadata", "Vocabulary", "Chat template"]
        assert titles[6:] == ["Memory", "Beside another", "Quality"]
        for i, title in enumerate(titles):
            tabs.nth(i).click()
            page.locator("[role=tabpanel]:visible .panel").first.wait_for()
            page.wait_for_timeout(50)
            assert page.locator("[role=tabpanel]:visible .warn").count() == 0, title
        page.locator("#tab-layers").press("ArrowRight")
        assert page.locator("[role=tab][aria-selected=true]").inner_text() == "Tensors"


def test_tensors_are_searched_sorted_and_walked_through(browser: Browser, small_page: Path):
    with browser.page(small_page, fragment="#tensors") as page:
        page.get_by_label("Search tensors").fill("ffn_down q6_k")
        rows = page.locator(".list .space [role=row]")
        names = rows.evaluate_all("all => all.map((row) => row.children[0].innerText)")
        assert names
        assert all("ffn_down" in name for name in names)
        page.get_by_label("Search tensors").fill("")
        page.locator(".list-head button", has_text="Bytes").click()
        page.locator(".list-head button", has_text="Bytes").click()
        page.locator(".list").focus()
        page.keyboard.press("ArrowDown")
        assert page.locator(".beside h2").inner_text() == "output.weight"
        assert page.locator(".beside .bytes span").count() > 100
        assert page.locator(".beside svg.histogram rect").count() >= 60


def test_matrix_shows_errors_and_opens_tensors(browser: Browser, small_page: Path):
    with browser.page(small_page, fragment="#layers", color_scheme="dark", width=420) as page:
        page.locator("#panel-layers select").select_option("error")
        cell = page.locator(".matrix button").first
        cell.focus()
        page.keyboard.press("ArrowDown")
        label = page.evaluate("document.activeElement.getAttribute('aria-label')")
        assert "error" in label
        page.keyboard.press("Enter")
        page.locator(".beside h2", has_text=label.split(":")[0]).wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") <= 420


def test_typed_texts_are_cut_as_python_cuts_them(browser: Browser, small_page: Path, models: Path):
    text = "def f(x):\n    return '世界' <s>"
    with ggufkit.open(models / "small.gguf") as model:
        ids = ggufkit.load_tokenizer(model).encode(text)
    with browser.page(small_page, fragment="#vocabulary") as page:
        page.get_by_label("A text to cut into tokens").fill(text)
        shown = page.locator(".tokens sub")
        assert [int(n) for n in shown.all_inner_texts()] == ids


def test_results_mark_the_file(browser: Browser, small_page: Path):
    with browser.page(small_page, fragment="#quality") as page:
        assert page.locator("circle[r='8'] title").text_content() == "small.gguf: 0.02"


def test_hostile_texts_stay_in_their_cells(browser: Browser, models: Path):
    path = ggufkit.explore(models / "evil.html", models / "evil.gguf", models / "source.gguf")
    scripts = path.read_text().count("<script")
    with browser.page(path, width=500) as page:
        for tab in page.locator("[role=tab]").all():
            tab.click()
            page.locator("[role=tabpanel]:visible .panel").first.wait_for()
            page.wait_for_timeout(150)
            assert page.evaluate("window.evil") is None
            assert page.locator("img").count() == 0
            assert page.locator("script").count() == scripts
            text = page.evaluate("document.body.innerText")
            assert not set(text) & set("\u202e\x1b\x00\u200b"), tab.inner_text()
            assert page.evaluate("document.documentElement.scrollWidth") <= 500, tab.inner_text()
        page.locator("#tab-template").click()
        assert "window.evil" in page.locator(".rendered").inner_text()
        page.locator("#tab-metadata").click()
        page.get_by_label("Search metadata").fill("</script><script>")
        assert page.locator(".metadata tbody tr").count() >= 3


# ---- Size, time, bad input ----------------------------------------------------------------------------------------


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A sparse file with the shape of Llama 3.1 70B in Q4_K_M."""
    width, inner, kv, layers, vocabulary = 8192, 28672, 1024, 80, 128256
    numbers = {"context_length": 131072, "embedding_length": width, "block_count": layers, "feed_forward_length": inner}
    numbers |= {"attention.head_count": 64, "attention.head_count_kv": 8, "vocab_size": vocabulary}
    metadata: dict[str, object] = {"general.architecture": "llama", "general.file_type": Value(ValueType.UINT32, 15)}
    metadata |= {f"llama.{name}": Value(ValueType.UINT32, n) for name, n in numbers.items()}
    matrices = {"attn_q": (width, width), "attn_k": (kv, width), "attn_v": (kv, width), "attn_output": (width, width)}
    matrices |= {"ffn_gate": (inner, width), "ffn_up": (inner, width), "ffn_down": (width, inner)}
    tensors = [("token_embd.weight", (vocabulary, width), FORMATS["Q4_K"])]
    for i in range(layers):
        tensors += [(f"blk.{i}.{name}.weight", shape, FORMATS["Q4_K"]) for name, shape in matrices.items()]
        tensors += [(f"blk.{i}.{name}.weight", (width,), FORMATS["F32"]) for name in ("attn_norm", "ffn_norm")]
    tensors += [
        ("output_norm.weight", (width,), FORMATS["F32"]),
        ("output.weight", (vocabulary, width), FORMATS["Q6_K"]),
    ]
    layout = FileLayout(metadata, tensors)
    path = tmp_path / "large.gguf"
    with path.open("wb") as file:
        file.write(layout.header)
        file.truncate(layout.size)
    return path


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_a_70b_takes_seconds_and_little_memory(large: Path, tmp_path: Path):
    # VmHWM is of the program alone; what getrusage has begins with the size of the process that started it.
    program = (
        "import resource, sys; from ggufkit.cli import cli; cli.main(sys.argv[1:], standalone_mode=False); "
        "used = resource.getrusage(resource.RUSAGE_SELF); print(used.ru_utime + used.ru_stime); "
        "print(*(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    )
    target = tmp_path / "large.html"
    arguments = [sys.executable, "-c", program, "explore", str(large), "-o", str(target)]
    run = subprocess.run(arguments, capture_output=True, text=True, check=True)
    seconds, memory = run.stdout.split()[-2:]
    assert int(memory) <= 150_000
    assert float(seconds) <= 5
    assert target.stat().st_size <= 8_000_000


def test_bad_input_is_one_line_and_leaves_nothing(models: Path, tmp_path: Path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.gguf").write_text("no model")
    (tmp_path / "cut.gguf").write_bytes((models / "small.gguf").read_bytes()[:300_000])
    (tmp_path / "results.json").write_text('{"models": [{"path": 1}]}')
    small = models / "small.gguf"
    with pytest.raises(GGUFError, match="not a GGUF file"):
        ggufkit.explore("a.html", "text.gguf")
    with pytest.raises(GGUFError, match="cut short"):
        ggufkit.explore("a.html", "cut.gguf")
    with pytest.raises(FileError, match="does not exist"):
        ggufkit.explore("none/a.html", small)
    with pytest.raises(UsageError, match="is not a comparison as JSON"):
        ggufkit.explore("a.html", small, results="results.json")
    with pytest.raises(UsageError, match="a plan has no weights"):
        ggufkit.explore("a.html", small, small, type="Q8_0")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut.gguf", "results.json", "text.gguf"]
    (tmp_path / "a.html").write_text("mine")
    with pytest.raises(SystemExit):
        main(["explore", str(small), "-o", "a.html"])
    assert "exists already; give --force" in capsys.readouterr().err
    assert (tmp_path / "a.html").read_text() == "mine"


def test_a_full_disk_is_one_line(models: Path, small_disk: Path):
    (small_disk / "filler").write_bytes(bytes(1_900_000))
    with pytest.raises(FileError, match="no space left"):
        ggufkit.explore(small_disk / "a.html", models / "small.gguf")
    assert [path.name for path in small_disk.iterdir()] == ["filler"]
