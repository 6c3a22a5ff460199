"""A real browser for the tests of pages: Chromium as the system has it, driven by playwright."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

__all__ = ["Browser", "opened_browser"]


class Browser:
    """Opens pages from file://; what a page says on its console or throws is an error, at the end."""

    def __init__(self, chromium: Any):
        self.chromium = chromium

    @contextmanager
    def page(
        self, path: Path, width: int = 1280, height: int = 900, fragment: str = "", **context: Any
    ) -> Iterator[Any]:
        errors: list[str] = []
        place = self.chromium.new_context(viewport={"width": width, "height": height}, **context)
        try:
            page = place.new_page()
            page.on(
                "console", lambda message: errors.append(message.text) if message.type in ("error", "warning") else None
            )
            page.on("pageerror", lambda error: errors.append(str(error)))
            page.on(
                "request", lambda request: errors.append(request.url) if not request.url.startswith("file:") else None
            )
            page.goto(path.as_uri() + fragment)
            yield page
        finally:
            place.close()
        assert errors == []


@contextmanager
def opened_browser() -> Iterator[Browser]:
    """Skips, and says why, where there is no browser."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("there is no Chromium on this machine")
    with playwright.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield Browser(browser)
        browser.close()
