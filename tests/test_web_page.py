"""The assembly of pages: nothing from a model becomes markup, and the policy names what may run."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ggufkit.errors import FileError
from ggufkit.web import page

HOSTILE = "</script><script>alert(1)</script><!-- \u202e\x00 & ' \" \ud800"


@given(st.text())
def test_json_text_is_json_and_holds_no_markup(text):
    out = page.json_text({text: [text]})
    assert json.loads(out) == {text: [text]}
    assert not set(out) & set("<>&")
    assert out.isascii()


def test_numbers_that_json_lacks_become_null():
    assert json.loads(page.json_text([float("nan"), float("inf"), 1.5])) == [None, None, 1.5]


def test_policy_names_the_hash_of_each_text_that_runs(monkeypatch):
    parts = {"a.html": "<main></main>", "a.css": "p { color: red }", "a.js": "go()"}
    monkeypatch.setattr(page, "part", parts.__getitem__)
    text = page.assemble(HOSTILE, "a.html", styles=["a.css"], scripts=["a.js"], data={"x": HOSTILE})
    rules = text.split('content="')[1].split('"')[0].replace("&#x27;", "'")
    for body in re.findall(r"<(?:style|script)>(.*?)</", text):
        digest = base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in rules
    assert "unsafe" not in rules
    assert "default-src 'none'" in rules
    assert "connect-src 'none'" in rules
    assert text.count("<script") == 2
    assert text.count("</script>") == 2
    assert "\u202e" not in text
    assert "\x00" not in text


def test_long_data_is_compressed_and_the_same_each_time(monkeypatch):
    monkeypatch.setattr(page, "part", lambda name: "")
    value = [HOSTILE] * 3000
    texts = [page.assemble("t", "a", styles=[], scripts=[], data={"x": value}) for _ in range(2)]
    assert texts[0] == texts[1]
    packed = re.search(r'"application/gzip" id="data-x">(.*?)</script>', texts[0])
    assert json.loads(gzip.decompress(base64.b64decode(packed[1]))) == value


def test_a_page_appears_whole_or_not_at_all(tmp_path):
    target = tmp_path / "a.html"
    assert page.write_page(lambda: "one", target) == target
    with pytest.raises(FileError, match="exists already"):
        page.write_page(lambda: 1 / 0, target)
    page.write_page(lambda: "two", target, force=True)
    assert target.read_text() == "two"
