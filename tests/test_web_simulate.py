"""`ggufkit simulate`: the page in a real browser, and the verb's errors."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from browser import Browser, opened_browser

import ggufkit
from ggufkit.cli import main
from ggufkit.errors import FileError, UsageError
from ggufkit.evaluate.methods import METHODS, Situation, measure
from ggufkit.web.simulate import tensor_block

HOSTILE = "blk.0.</script><script>window.evil=1</script>\u202e\x1b.weight"


@pytest.fixture(scope="module")
def browser():
    with opened_browser() as found:
        yield found


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("simulate") / "model.gguf"
    weights = np.random.default_rng(0).standard_normal((4, 64)).astype(np.float32)
    with ggufkit.Writer(
        path, {"general.architecture": "llama"}, [(HOSTILE, (4, 64), ggufkit.FORMATS["F32"])]
    ) as writer:
        writer.write(HOSTILE, 0, weights.view(np.uint8))
    return path


@pytest.fixture
def page_of(tmp_path: Path) -> Path:
    return ggufkit.simulate(tmp_path / "simulate.html")


def outputs(page) -> dict[str, float]:
    """What the page itself has computed."""
    return page.evaluate("Object.fromEntries(results.map((r) => [r.method.name, r.output]))")


def expected(page) -> dict[str, float]:
    s = json.loads(page.evaluate("JSON.stringify({...state, weights: Array.from(state.weights)})"))
    situation = Situation(np.array(s["weights"], np.float32), np.array(s["activations"], float), s["rho"], s["alpha"])
    return {name: float(measure(name, situation).output[0]) for name in METHODS}


def test_page_is_small_and_opens_with_the_outlier(browser: Browser, page_of: Path):
    assert page_of.stat().st_size <= 250_000
    with browser.page(page_of) as page:
        assert page.locator("#presets [aria-pressed=true]").inner_text() == "Outlier 4.85"
        assert page.locator("#table tbody tr").count() == len(METHODS)
        assert outputs(page) == expected(page)


def test_dragging_a_bar_changes_every_number_to_pythons(browser: Browser, page_of: Path):
    with browser.page(page_of) as page:
        before = outputs(page)
        box = page.locator("#weights-chart [data-index='4']").bounding_box()
        x = box["x"] + box["width"] / 2
        page.mouse.move(x, box["y"] + box["height"] / 2)
        page.mouse.down()
        page.mouse.move(x, box["y"] + box["height"] * 0.2, steps=4)
        page.mouse.up()
        page.wait_for_function("state.weights[4] > 2")
        page.locator("#rho").fill("12")
        page.wait_for_function("state.rho === 0.6")
        page.wait_for_timeout(100)
        after = outputs(page)
        assert after == expected(page)
        assert all(after[name] != before[name] for name in METHODS)


def test_keyboard_sorting_numbers_and_links(browser: Browser, page_of: Path):
    with browser.page(page_of, color_scheme="dark") as page:
        page.locator("#weights-chart [data-index='0']").focus()
        page.keyboard.press("ArrowRight")
        old = page.evaluate("state.weights[1]")
        page.keyboard.press("Shift+ArrowUp")
        assert page.evaluate("state.weights[1]") > old
        assert page.evaluate("document.activeElement.dataset.index") == "1"
        page.get_by_role("button", name="Bits / weight").click()
        assert page.locator("#table tbody tr td button").first.inner_text() == "TQ2_0"
        page.locator("#table button", has_text="GPTQ").press("Enter")
        assert page.locator("#detail h2").inner_text() == "GPTQ"
        page.locator("summary").click()
        page.get_by_label("number 7").first.fill("-1.25")
        page.get_by_label("number 7").first.press("Tab")
        assert page.evaluate("state.weights[7]") == -1.25
        fragment = "#" + page.evaluate("link()").split("#")[1]
        weights = page.evaluate("Array.from(state.weights)")
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(18, 19, 22)"
    with browser.page(page_of, fragment=fragment) as page:
        assert page.evaluate("Array.from(state.weights)") == weights
        assert page.locator("#detail h2").inner_text() == "GPTQ"
    with browser.page(page_of, fragment="#0,99,1,matched,1,zzz") as page:
        assert page.locator("#detail h2").inner_text() == "Q4_0"


def test_python_of_the_page_gives_its_digits(browser: Browser, page_of: Path, capsys):
    with browser.page(page_of) as page:
        page.get_by_role("button", name="Hot activation").click()
        page.locator("#table button", has_text="AWQ").click()
        code = page.evaluate("asPython()")
        shown = page.evaluate("results.find((r) => r.method.name === 'AWQ')")
    names: dict = {}
    exec(code, names)
    capsys.readouterr()
    assert names["found"].output[0] == shown["output"]
    assert names["found"].rms[0] == shown["rms"]


def test_block_of_a_tensor_with_a_hostile_name(browser: Browser, model: Path, tmp_path: Path):
    path = ggufkit.simulate(tmp_path / "block.html", model, tensor=HOSTILE, block=7)
    with browser.page(path, width=400) as page:
        with ggufkit.open(model) as opened:
            weights = opened.tensors[HOSTILE].floats(3, 4)[0, 32:]
        assert page.evaluate("Array.from(state.weights.subarray(0, 32))") == weights.tolist()
        assert page.evaluate("window.evil") is None
        assert "\u202e" not in page.evaluate("document.body.innerText")
        assert page.evaluate("document.documentElement.scrollWidth") <= 400


@pytest.mark.parametrize("type_", ["Q4_K", "Q8_0", "F16"])
def test_blocks_are_those_of_the_row(type_: str, tmp_path: Path):
    weights = np.random.default_rng(1).standard_normal((3, 512)).astype(np.float32)
    stored = ggufkit.encode(weights, type_)
    with ggufkit.Writer(tmp_path / "m.gguf", {}, [("w", (3, 512), ggufkit.FORMATS[type_])]) as writer:
        writer.write("w", 0, stored)
    decoded = ggufkit.decode(stored, type_)
    with ggufkit.open(tmp_path / "m.gguf") as model:
        for block in (0, 5, 15, 16, 47):
            row, column = divmod(block, 16)
            found = tensor_block(model.tensors["w"], block, "m.gguf")["weights"]
            rest = decoded[row, 32 * column :]
            assert found == np.resize(rest, 256).tolist()


def test_errors_say_what_is_wrong(model: Path, tmp_path: Path, capsys):
    with pytest.raises(UsageError, match="has 8 blocks of 32 weights, 0 to 7; there is no block 8"):
        ggufkit.simulate(tmp_path / "a.html", model, tensor=HOSTILE, block=8)
    with pytest.raises(UsageError, match="no tensor nope"):
        ggufkit.simulate(tmp_path / "a.html", model, tensor="nope")
    with pytest.raises(FileError, match="does not exist"):
        ggufkit.simulate(tmp_path / "none" / "a.html")
    for arguments in (["simulate", str(model)], ["simulate", "--tensor", "x"]):
        with pytest.raises(SystemExit) as exit_:
            main(arguments)
        assert exit_.value.code == 2
        assert capsys.readouterr().err.startswith("ggufkit: a block is of a tensor of a model")
    assert list(tmp_path.iterdir()) == []
