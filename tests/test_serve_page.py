"""The chat page in a real browser: a conversation, stop, reload, dark mode."""

from __future__ import annotations

import contextlib
import re

import pytest

pytest.importorskip("uvicorn")
pytest.importorskip("llguidance")
pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

from browser import opened_browser
from served import chat_model, serving

NAMED = "#model-name:text-is('tiny')"  # its policy lets no test evaluate a string
KEY = "a-key-of-some-length"


@pytest.fixture(scope="module")
def model(fixtures, tmp_path_factory):
    return chat_model(fixtures, tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def url(model):
    with serving(model, {"context": 2048}) as url:
        yield url


@pytest.fixture(scope="module")
def browser():
    with opened_browser() as browser:
        yield browser.chromium


@contextlib.contextmanager
def opened(browser, url, **context):
    """The page; what it says on its console, throws, or asks of others is an error at the end."""
    errors: list[str] = []
    place = browser.new_context(viewport={"width": 900, "height": 700}, **context)
    page = place.new_page()
    page.on("console", lambda message: errors.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda request: errors.append(request.url) if not request.url.startswith(url) else None)
    page.goto(url)
    try:
        yield page
    finally:
        place.close()
    assert errors == []


def ask(page, text, limit="24"):
    page.locator("#settings summary").first.click()
    page.fill("#max_tokens", limit)
    page.fill("#seed", "1")
    page.locator("#settings summary").first.click()
    page.fill("#message", text)
    page.press("#message", "Enter")


def test_a_conversation_and_its_reload(browser, url):
    with opened(browser, url) as page:
        page.wait_for_selector(NAMED)
        ask(page, "def main(")
        page.wait_for_selector(".turn.assistant .measures")
        said = page.inner_text(".turn.assistant .text")
        assert said.strip()
        assert re.search("24 written .* cut off", page.inner_text(".turn.assistant .measures"))
        page.fill("#message", "import <b>os</b> & 'x'")
        page.click("#send")
        page.wait_for_selector(".turn.assistant >> nth=1 >> .measures")
        assert page.inner_text(".turn.user >> nth=1") == "import <b>os</b> & 'x'"
        assert "known" in page.inner_text(".turn.assistant >> nth=1 >> .measures")
        page.reload()
        page.wait_for_selector(NAMED)
        assert page.locator(".turn").count() == 4
        assert page.inner_text(".turn.assistant .text") == said
        assert page.input_value("#max_tokens") == "24"
        page.click("#again")
        page.wait_for_selector(".turn.assistant >> nth=1 >> .measures")
        assert page.locator(".turn").count() == 4
        page.click("#new")
        assert page.locator(".turn").count() == 0


def test_stop(browser, url):
    with opened(browser, url) as page:
        page.wait_for_selector(NAMED)
        ask(page, "def main(", limit="1500")
        page.locator(".turn.assistant .text", has_text=re.compile(r"\S[\s\S]{10}")).wait_for()
        page.click("#stop")
        page.wait_for_selector(".turn.assistant .measures:has-text('stopped')")
        length = len(page.inner_text(".turn.assistant .text"))
        page.wait_for_timeout(300)
        assert len(page.inner_text(".turn.assistant .text")) == length
        assert page.is_visible("#send")


def test_probabilities_and_facts(browser, url):
    with opened(browser, url) as page:
        page.wait_for_selector(NAMED)
        page.locator("#settings summary").first.click()
        page.check("#probabilities")
        page.locator("#settings summary").first.click()
        ask(page, "def main(")
        page.wait_for_selector(".turn.assistant .measures")
        page.locator(".tokens [role=button]").nth(3).click()
        assert page.locator(".alternatives tbody tr").count() == 5
        page.locator("#about summary").click()
        assert "Q8_0" in page.inner_text("#facts")


def test_dark(browser, url):
    colours = {}
    for scheme in ("light", "dark"):
        with opened(browser, url, color_scheme=scheme) as page:
            colours[scheme] = page.evaluate("getComputedStyle(document.body).backgroundColor")
            page.click("button[aria-label=Colours]")
            page.click("button[aria-label=Colours]")
            chosen = page.evaluate("getComputedStyle(document.body).backgroundColor")
            colours[f"{scheme}, chosen dark"] = chosen
    assert colours["light"] != colours["dark"] == colours["light, chosen dark"] == colours["dark, chosen dark"]


def test_a_key_is_asked_for(browser, model):
    with serving(model, {"context": 256}, keys=(KEY,)) as url:
        place = browser.new_context()
        page = place.new_page()
        page.goto(url)
        page.wait_for_selector("#key:visible")
        page.fill("#key", KEY)
        page.press("#key", "Tab")
        page.wait_for_selector(NAMED)
        place.close()
