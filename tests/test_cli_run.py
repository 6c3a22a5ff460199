"""`ggufkit tokenize`, `run` and `chat`, on the bundled model."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import vocab_texts

import ggufkit
from ggufkit.cli import main
from ggufkit.cli.prompt import show, unescape
from ggufkit.jobs.convert import convert
from ggufkit.jobs.quantize import quantize

TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'user' %}def {{ m.content }}("
    "{% elif m.role == 'system' %}# {{ m.content }}\n{% else %}{{ m.content }}\n{% endif %}{% endfor %}"
)


@pytest.fixture(scope="module")
def model(fixtures, tmp_path_factory) -> Path:
    return convert(fixtures / "pylib-llama", tmp_path_factory.mktemp("model") / "f16.gguf", "F16")


@pytest.fixture(scope="module")
def chat_model(model) -> Path:
    """The same with a chat template."""
    path = model.with_name("chat.gguf")
    with ggufkit.open(model) as source:
        metadata = {**source.fields, "tokenizer.chat_template": TEMPLATE}
        tensors = [(name, tensor.shape, tensor.format) for name, tensor in source.tensors.items()]
        with ggufkit.Writer(path, metadata, tensors) as out:
            for name, tensor in source.tensors.items():
                out.write(name, 0, tensor.read(0, tensor.rows))
    return path


@pytest.fixture
def run(capsys, monkeypatch):
    """Run a command line with some stdin → (exit code, stdout, stderr)."""

    def go(*arguments: object, stdin: bytes = b"") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), "utf-8"))
        code = 0
        try:
            main([str(a) for a in arguments])
        except SystemExit as e:
            code = int(e.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    return go


# -- tokenize ---------------------------------------------------------------------------------------------


def test_tokenize_shows_ids_and_texts(run, model):
    code, out, _ = run("tokenize", model, "-p", r"def main(\n", "--show-count")
    lines = ["     1 -> '<s>'", "   502 -> ' def'", "  2695 -> ' main'", "  4021 -> '('", r"    13 -> '\n'"]
    assert (code, out.splitlines()) == (0, [*lines, "Total number of tokens: 5"])


def test_tokenize_ids(run, model):
    assert run("tokenize", model, "-p", "def main(", "--ids") == (0, "[1, 502, 2695, 4021]\n", "")
    assert run("tokenize", model, "-p", "def main(", "--ids", "--no-bos")[1] == "[502, 2695, 4021]\n"


def test_tokenize_reads_control_tokens_unless_told_not_to(run, model):
    assert run("tokenize", model, "-p", "</s>", "--ids", "--no-bos")[1] == "[2]\n"
    assert 2 not in json.loads(run("tokenize", model, "-p", "</s>", "--ids", "--no-parse-special")[1])


def test_tokenize_json(run, model):
    found = json.loads(run("tokenize", model, "-p", "def é", "--json")[1])
    assert found["count"] == len(found["tokens"]) == 5
    assert found["tokens"][1] == {"id": 502, "text": " def"}


def test_tokenize_reads_files_and_stdin_as_they_are(run, model, tmp_path):
    text = tmp_path / "prompt.txt"
    text.write_bytes(b"a\\n\xff")
    expected = run("tokenize", model, "-p", "a\\n\udcff", "--no-escape", "--ids")[1]
    assert run("tokenize", model, "-f", text, "--ids")[1] == expected
    assert run("tokenize", model, "--ids", stdin=b"a\\n\xff")[1] == expected


def test_tokenize_needs_no_weights_and_no_numpy(model):
    code = (
        "import sys; from ggufkit.cli import main\n"
        "try: main(['tokenize', sys.argv[1], '-p', 'x'])\nexcept SystemExit: pass\n"
        "print('numpy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(model)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


@pytest.mark.parametrize(
    ("text", "plain"),
    [(r"a\nb\t\r", "a\nb\t\r"), (r"\'\"\\n", "'\"\\n"), (r"\x41\x1fz\xq", "A\x1fz\\xq"), (r"\d\\", "\\d\\")],
)
def test_unescape(text, plain):
    assert unescape(text) == plain


# -- run --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", ["F16", "Q8_0"])
def test_run_writes_the_golden_greedy_text(run, shared, model, tmp_path, preset):
    path = model
    if preset != "F16":
        path = tmp_path / "q.gguf"
        quantize(model, path, preset)
    texts = json.loads((shared / "golden" / "greedy.json").read_text())[preset]
    prompt = "import os\n"
    code, out, err = run("run", path, "-p", prompt, "-n", 32, "--temp", 0, "--no-display-prompt")
    assert (code, out.rstrip("\n")) == (0, texts[prompt].rstrip("\n"))
    assert "4 prompt tokens" in err
    assert "32 generated" in err


def test_run_shows_the_prompt_and_what_follows(run, model):
    code, out, err = run("run", model, "-p", "def main(", "-n", 4, "--temp", 0, "--no-perf")
    assert code == 0
    assert out.startswith("def main(self):")
    assert "prompt tokens" not in err


def test_run_with_a_seed_repeats_itself(run, model):
    texts = [run("run", model, "-p", "import ", "-n", 12, "-s", seed)[1] for seed in (3, 3, 4)]
    assert texts[0] == texts[1] != texts[2]


def test_run_stops_before_a_stop_string(run, model):
    out = run("run", model, "-p", r"import os\n", "-n", 32, "--temp", 0, "--no-display-prompt", "-r", r"\nimport")[1]
    assert out == "import unittest\n"


def test_run_says_when_the_context_is_full(run, model):
    code, _, err = run("run", model, "-p", "def main(", "-c", 8, "--temp", 0)
    assert code == 0
    assert "ggufkit: the context of 8 tokens is full; give a larger one with -c\n" in err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["-p", "def main(self, other, more): pass", "-c", "4"], 2, "the context room for 4; shorten it"),
        (["-p", ""], 0, ""),  # starts from BOS
        ([], 2, "there is no prompt; give one with -p or -f, or on stdin"),
        (["-p", "x", "-f", "y"], 2, "-p and -f both give the text"),
        (["-f", "nowhere.txt"], 1, "cannot read nowhere.txt: does not exist"),
        (["-p", "x", "--temp", "-1"], 2, "temperature is -1.0"),
        (["-p", "x", "-r", ""], 2, "a stop string is empty"),
    ],
    ids=str,
)
def test_run_refuses_in_one_line(run, model, arguments, code, message):
    found, _, err = run("run", model, *arguments, "-n", 1, "--no-perf")
    assert found == code
    assert message in err
    assert len(err.splitlines()) <= 1 or "compiling" in err


def test_run_of_a_file_without_a_tokenizer(run, model, tmp_path):
    with ggufkit.open(model) as source:
        metadata = {key: field for key, field in source.fields.items() if not key.startswith("tokenizer.")}
        tensors = [(name, tensor.shape, tensor.format) for name, tensor in source.tensors.items()]
        with ggufkit.Writer(tmp_path / "m.gguf", metadata, tensors) as out:
            for name, tensor in source.tensors.items():
                out.write(name, 0, tensor.read(0, tensor.rows))
    code, _, err = run("run", tmp_path / "m.gguf", "-p", "x")
    assert code == 1
    assert "the file has no tokenizer (tokenizer.ggml.model)" in err


@pytest.mark.skipif(os.name == "nt", reason="no SIGINT to another process")
def test_ctrl_c_ends_a_run_cleanly(model):
    command = [sys.executable, "-m", "ggufkit", "run", str(model), "-p", "x", "-c", "100000", "--ignore-eos"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.read(4)  # it writes
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert out.endswith(b"\n")
    assert err.splitlines()[-1] == b"ggufkit: interrupted"
    assert b"Traceback" not in err


def test_terminal_gets_nothing_that_steers_it(monkeypatch):
    text = "a\x1b[2J\x07\tb\n\udcff"
    assert show(text) == "a\x1b[2J\x07\tb\n?"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert show(text) == "a\\x1b[2J\\x07\tb\n?"


# -- chat -------------------------------------------------------------------------------------------------


def test_chat_answers_every_line_and_knows_what_was_said(run, chat_model):
    messages = b"main\nother\n/reset\nmain\n/exit\nnever\n"
    code, out, err = run("chat", chat_model, "-n", 6, "--temp", 0, stdin=messages)
    assert code == 0
    first, _, rest = out.partition("\n")
    assert first.startswith("self")
    assert rest.rstrip().endswith(first.rstrip()) or first in rest  # the same again after /reset
    lines = [line for line in err.splitlines() if "prompt tokens" in line]
    assert len(lines) == 3
    assert "of them known" not in lines[0]
    assert "of them known" in lines[1]


def test_chat_takes_a_system_message_and_a_template(run, model, tmp_path):
    template = tmp_path / "t.jinja"
    template.write_text("{{ messages[0].role }}{{ messages[0].content }}import os\n")
    code, out, _ = run(
        "chat", model, "--chat-template-file", template, "--system", "S", "-p", "x", "-n", 4, "--temp", 0, "--no-perf"
    )
    assert code == 0
    assert out


def test_chat_message_goes_on_after_a_backslash(run, model, tmp_path):
    template = tmp_path / "t.jinja"
    template.write_text("{{ raise_exception(messages[0].content) }}")
    code, _, err = run("chat", model, "--chat-template-file", template, stdin=b"one\\\ntwo\n")
    assert code == 2
    assert r"refuses this conversation: one\ntwo" in err


def test_chat_that_outgrows_the_context_goes_on(run, chat_model):
    messages = b"main\n" + b"a_very_long_name_of_a_function_with_many_tokens_in_it_indeed_yes\n" + b"/reset\nx\n"
    code, out, err = run("chat", chat_model, "-n", 3, "-c", 16, "--temp", 0, "--no-perf", stdin=messages)
    assert code == 0
    assert "the context room for 16; shorten it" in err
    assert "/reset starts anew" in err
    assert len(out.splitlines()) >= 2


@pytest.mark.parametrize(
    ("template", "message"),
    [(None, "no chat template"), ("{% for %}", "is broken, line 1"), ("{{ messages.x.y }}", "failed:")],
)
def test_chat_refuses_in_one_line(run, model, tmp_path, template, message):
    options = []
    if template is not None:
        (tmp_path / "t.jinja").write_text(template)
        options = ["--chat-template-file", tmp_path / "t.jinja"]
    code, _, err = run("chat", model, *options, "-p", "x")
    assert code == 1
    assert message in err
    assert "Traceback" not in err


def test_vocabulary_alone_cannot_run_but_tokenizes(run, tmp_path):
    tokens = {"<unk>": 2, "<s>": 3, "</s>": 3, "\u2581a": 1, "\u2581": 1, "a": 1}
    path = vocab_texts.write_vocab(tmp_path / "v.gguf", "llama", tokens)
    assert run("tokenize", path, "-p", "a", "--ids")[1] == "[1, 3]\n"
    code, _, err = run("run", path, "-p", "a")
    assert code == 1
    assert len(err.splitlines()) == 1


def test_a_prompt_is_kept_in_a_file(model, run, tmp_path):
    saved = tmp_path / "prompt.cache"
    flags = ["-p", "import os\\nimport sys\\n", "-n", 4, "--temp", 0, "--prompt-cache", saved]
    for types in (["--cache", "small"], ["-ctk", "q8_0", "-ctv", "tq4"]):
        saved.unlink(missing_ok=True)
        code, first, _ = run("run", model, *flags, *types)
        assert code == 0
        before = saved.read_bytes()
        code, again, _ = run("run", model, *flags, *types)
        assert (code, again) == (0, first)
        assert saved.read_bytes()[:64] == before[:64]
    code, out, err = run("run", model, *flags)
    assert (code, out) == (2, "")
    assert "prompt.cache: the saved cache is of another model, backend or type" in err


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "other"])
def test_a_damaged_cache_is_told(model, run, tmp_path, damage):
    saved = tmp_path / "prompt.cache"
    flags = ["-p", "import os", "-n", 1, "--temp", 0, "--prompt-cache", saved]
    assert run("run", model, *flags)[0] == 0
    data = bytearray(saved.read_bytes())
    data[len(data) // 2] ^= 1
    bad = {"cut": data[:-100], "flip": data, "empty": b"", "other": b"GGUF" * 100}[damage]
    saved.write_bytes(bad)
    code, out, err = run("run", model, *flags)
    assert (code, out) == (2, "")
    assert "is not a saved cache, or it is damaged" in err
    assert saved.read_bytes() == bad


def test_a_chat_starts_from_what_it_kept(chat_model, run, tmp_path):
    saved = tmp_path / "chat.cache"
    flags = ["--system", "import os", "-n", 4, "--temp", 0, "--prompt-cache", saved, "--cache", "smallest"]
    first = run("chat", chat_model, *flags, stdin=b"main\n")
    again = run("chat", chat_model, *flags, stdin=b"main\n")
    assert first[0] == again[0] == 0
    assert first[1] == again[1]


def test_chat_answers_again_takes_files_and_saves(run, chat_model, tmp_path):
    (tmp_path / "said.txt").write_text("from a file")
    saved = tmp_path / "talk.json"
    messages = f"import os\n/regenerate\n/file {tmp_path / 'said.txt'}\n/save {saved}\n/save {saved}\n/file\n"
    code, out, err = run("chat", chat_model, "-n", 4, "--temp", 0, stdin=messages.encode())
    assert code == 0
    talk = json.loads(saved.read_text())
    assert [m["content"] for m in talk if m["role"] == "user"] == ["import os", "from a file"]
    assert out.splitlines()[0] == out.splitlines()[1]  # the same again
    assert "exists already" in err
    assert "needs the path" in err


def test_run_through_the_chat_template(run, chat_model):
    _, chatted, _ = run("chat", chat_model, "-p", "import os", "-n", 6, "--temp", 0, stdin=b"")
    code, out, _ = run("run", chat_model, "--chat", "-p", "import os", "-n", 6, "--temp", 0)
    assert (code, out) == (0, chatted)
    assert run("run", chat_model, "--chat", "-p", "x", "--chat-template-kwargs", "[1]")[0] == 2
    assert run("run", chat_model, "--chat", "-p", "x", "--chat-template-kwargs", "{")[0] == 2
