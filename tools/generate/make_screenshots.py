"""The manual's pictures of pages: ggufkit/docs/simulate.png and explore.png, from Chromium through playwright.

python tools/generate/make_screenshots.py
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "models")]

from browser import opened_browser

import ggufkit

DOCS = ROOT / "ggufkit" / "docs"
LOOK = {"width": 1260, "device_scale_factor": 0.6}


def main() -> None:
    with tempfile.TemporaryDirectory() as name, opened_browser() as browser:
        folder = Path(name)
        ggufkit.convert(ROOT / "fixtures" / "pylib-llama", folder / "model-F16.gguf", "F16")
        ggufkit.quantize(folder / "model-F16.gguf", folder / "model-Q4_K_M.gguf", "Q4_K_M")
        block = ggufkit.simulate(folder / "block.html")
        with browser.page(block, height=1180, **LOOK) as page:
            page.locator("#presets button", has_text="Two outliers").click()
            page.get_by_role("button", name="IQ4_NL", exact=True).press("Enter")
            page.locator("header").scroll_into_view_if_needed()
            page.screenshot(path=DOCS / "simulate.png")
        model = ggufkit.explore(folder / "model.html", folder / "model-Q4_K_M.gguf", folder / "model-F16.gguf")
        with browser.page(model, fragment="#tensors", height=820, **LOOK) as page:
            page.get_by_label("Search tensors").fill("ffn")
            page.locator(".list").focus()
            page.keyboard.press("ArrowDown")
            page.wait_for_timeout(300)
            page.screenshot(path=DOCS / "explore.png")
    for picture in ("simulate.png", "explore.png"):
        print(picture, (DOCS / picture).stat().st_size)


if __name__ == "__main__":
    main()
