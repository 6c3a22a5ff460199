"""The manual: every page is listed and linked rightly, and every command and snippet in it runs.

The fences of a page say what a test does with them:

    ```sh               each command is run, `ggufkit` in this process, in a folder with the files that the page names
    ```text output      what the commands before printed on stdout; … stands for anything
    ```python           run, all of a page with the same names
    ```toml NAME        a policy file; written to NAME, if there is one, for the commands below
    ```json NAME        a file
    ```text             a drawing
"""

from __future__ import annotations

import gc
import io
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import make_manual
import pytest
from manual_files import copy_of, stock
from test_gguf_remote import serve, server  # noqa: F401

from ggufkit.cli import ALIASES, GROUPS, VERBS, cli, main
from ggufkit.cli.help import PAGES, about, topics
from ggufkit.policy.policy_file import parse_policy

ROOT = PAGES.parent.parent
LANGUAGES = {"sh", "python", "toml", "json", "text"}

# Verbs that write a file which the folder of the examples has already.
WRITERS = {
    "convert",
    "quantize",
    "merge",
    "split",
    "endian",
    "export-mlx",
    "export-hf",
    "new-metadata",
    "imatrix",
    "calibrate",
    "compare",
    "explore",
    "simulate",
}
# What a test adds so that an example is quick.
QUICKLY = {
    "bench": ["-r", "1", "-n", "4"],
    "run": ["-n", "8"],
    "chat": ["-n", "8"],
    "perplexity": ["--chunks", "1"],
    "compare": ["--chunks", "1"],
    "imatrix": ["--chunks", "1"],
    "calibrate": ["--chunks", "2"],
    "formats": ["--rows", "16"],
}
# What the examples call besides, and no test: they would install something, never end, or read a large checkpoint.
NOT_RUN = re.compile(
    r"(python3? -m (venv|pip)|pip|\.venv/bin|mlx_lm\.|vllm|git|cd|curl|source) ?|ggufkit serve\b|.* --mmproj"
)


@dataclass
class Block:
    language: str
    argument: str
    text: str
    line: int


def blocks(page: str) -> Iterator[Block]:
    """The fenced parts of a page."""
    fence = re.compile(r"^```(\w*)[ ]?(.*)\n((?:(?!```).*\n)*)```$", re.MULTILINE)
    for match in fence.finditer(page):
        yield Block(match[1], match[2].strip(), match[3], page.count("\n", 0, match.start()) + 1)


@pytest.fixture(scope="session")
def stocked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stock(tmp_path_factory.mktemp("manual"))


@pytest.fixture
def shell(stocked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server) -> Shell:  # noqa: F811
    folder = copy_of(stocked, tmp_path / "server" / "here")
    # hf://owner/repo/FILE and https://example.org/FILE are files of the folder.
    for repo in ("meta-llama/Llama-3.2-1B", "Qwen/Qwen3-0.6B"):
        at = tmp_path / repo / "resolve"
        at.mkdir(parents=True)
        (at / "main").symlink_to(folder / "Llama-3.2-1B")
    at = tmp_path / "owner" / "repo" / "resolve"
    at.mkdir(parents=True)
    (at / "main").symlink_to(folder)
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.chdir(folder)
    return Shell(server.url)


class Shell:
    """Runs lines of sh: ggufkit's commands in this process, others by bash."""

    def __init__(self, url: str):
        self.url = url

    def run(self, line: str) -> str:
        """The line's stdout; an exit code that is not 0 is an error, but where a comment says so."""
        line = line.replace("https://example.org", f"{self.url}/server/here")
        code, _, comment = line.partition(" #")
        wanted = int(found[1]) if (found := re.search(r"exits with (\d)", comment)) else 0
        lexer = shlex.shlex(code, posix=True, punctuation_chars="|&>")
        lexer.whitespace_split = True
        out = b""
        for command in parts(list(lexer), "&&"):
            piped = b""
            for piece in parts(command, "|"):
                words, *target = parts(piece, ">")
                piped = self._command(words, piped, wanted)
                if target:
                    path = Path(target[0][0].replace("~", "home"))
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(piped)
                    piped = b""
            out += piped
        return out.decode()

    def _command(self, words: list[str], stdin: bytes, wanted: int) -> bytes:
        if NOT_RUN.match(" ".join(words)):
            return b""
        if words[0] == "eval":  # "$(ggufkit completion bash)"
            return self._command(shlex.split(words[1][2:-1]), stdin, wanted)
        if words[0] != "ggufkit":
            done = subprocess.run(words, input=stdin, stdout=subprocess.PIPE, check=False)
            assert done.returncode == wanted, words
            return done.stdout
        verb, arguments = words[1], words[1:]
        if verb in WRITERS and "--list" not in arguments:
            arguments.append("--force")
        if verb in QUICKLY and (verb != "formats" or "--measure" in arguments):
            arguments += QUICKLY[verb]
        return ggufkit(arguments, stdin, wanted)


def parts(words: list[str], operator: str) -> list[list[str]]:
    """The words between the operators."""
    found: list[list[str]] = [[]]
    for word in words:
        if word == operator:
            found.append([])
        else:
            found[-1].append(word)
    return found


def ggufkit(arguments: list[str], stdin: bytes = b"", wanted: int = 0) -> bytes:
    """Run the command line in this process → stdout."""
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2))
    before = sys.stdin, sys.stdout, sys.stderr
    sys.stdin, sys.stdout, sys.stderr = io.TextIOWrapper(io.BytesIO(stdin), "utf-8"), out, err
    code = 0
    try:
        main(arguments)
    except SystemExit as e:
        code = int(e.code or 0)
    finally:
        sys.stdin, sys.stdout, sys.stderr = before
    assert code == wanted, f"{shlex.join(['ggufkit', *arguments])}: {err.buffer.getvalue().decode()}"
    return out.buffer.getvalue()


def lines(text: str) -> list[str]:
    """The commands of a block."""
    joined = text.replace("\\\n", " ")
    return [line for line in joined.splitlines() if line.strip() and not line.startswith("#")]


def run_page(page: str, shell: Shell) -> None:
    """Run everything in a page, in its order."""
    said, names = "", {"__name__": "manual"}
    for block in blocks(page):
        where = f"line {block.line}"
        gc.collect()  # closes what a command before left open
        assert block.language in LANGUAGES, where
        if block.language == "sh":
            said = "".join(shell.run(line) for line in lines(block.text))
        elif block.language == "python":
            exec(compile(block.text, f"<{where}>", "exec"), names)
        elif block.argument == "output":
            pattern = re.escape(block.text.strip()).replace("…", ".*")
            assert re.fullmatch(pattern, said.strip(), re.DOTALL), f"{where}: {said}"
        else:
            if block.language == "toml":
                parse_policy(block.text, where)
            elif block.language == "json":
                json.loads(block.text)
            if block.argument:
                Path(block.argument).write_text(block.text)


@pytest.mark.parametrize("topic", [topic for topic in topics() if topic != "verbs"])
def test_manual_page_runs(topic: str, shell: Shell):
    run_page(topics()[topic].read_text("utf-8"), shell)


@pytest.mark.parametrize("verb", VERBS)
def test_examples_of_verb_run(verb: str, shell: Shell):
    section = re.search(rf"^### {verb}\n(?:(?!##).*\n)*", topics()["verbs"].read_text("utf-8"), re.MULTILINE)
    assert section is not None
    run_page(section[0], shell)


def test_manual_says_what_the_code_says():
    changed = [path.name for path, text in make_manual.pages().items() if path.read_text("utf-8") != text]
    assert changed == [], "run python tools/generate/make_manual.py"


def test_readme_runs(shell: Shell):
    run_page((ROOT / "README.md").read_text("utf-8"), shell)


@pytest.mark.parametrize("topic", topics())
def test_manual_page_begins_with_title_and_sentence(topic: str):
    page = topics()[topic].read_text("utf-8")
    assert re.match(r"# \S.*\n\n[^#`\n]", page)
    assert 10 < len(about(page)) < 140


@pytest.mark.parametrize("path", [*topics().values(), ROOT / "README.md"], ids=lambda path: path.stem)
def test_manual_links_lead_somewhere(path: Path):
    text = re.sub(r"```.*?```", "", path.read_text("utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if not target.startswith("https://"):
            file, _, anchor = target.partition("#")
            to = path.parent / file if file else path
            assert to.exists(), target
            if anchor:
                titles = re.findall(r"^#+ (.+)$", to.read_text("utf-8"), re.MULTILINE)
                assert anchor in [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles], target


def test_help_lists_topics_and_shows_pages():
    listed = ggufkit(["help"]).decode()
    for topic, path in topics().items():
        assert f"  {topic}" in listed
        assert ggufkit(["help", topic]).decode() == path.read_text("utf-8")
    assert ggufkit(["help", "tokenize"]) == ggufkit(["tokenize", "--help"])
    ggufkit(["help", "nothing-like-this"], wanted=2)


@pytest.mark.parametrize("width", [60, 80, 160])
@pytest.mark.parametrize("topic", topics())
def test_pages_are_set_for_terminals(topic: str, width: int, monkeypatch: pytest.MonkeyPatch):
    from ggufkit.cli import help as page_help

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    shown: list[str] = []
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.setattr(page_help.click, "echo_via_pager", lambda text, color: shown.append(text))
    page_help._show(topics()[topic].read_text("utf-8"))
    text = "".join(shown)
    assert text.strip()
    assert not re.search(r"\x1b\[(?:\d+;)*[34]\d", text)  # no colours


def test_every_verb_has_help_with_an_example():
    context = cli.make_context("ggufkit", [], resilient_parsing=True)
    for verb in VERBS:
        command = cli.get_command(context, verb)
        assert command is not None
        shown = command.get_help(context)
        assert "\\b" not in shown, verb
        assert f"ggufkit {verb}" in shown, f"{verb} --help has no example"
        undocumented = [p.name for p in command.params if isinstance(p, click.Option) and not p.help and not p.hidden]
        assert undocumented == [], verb


def test_help_says_what_it_means():
    """Fragments that only the option above explains."""
    context = cli.make_context("ggufkit", [], resilient_parsing=True)
    for verb in VERBS:
        command = cli.get_command(context, verb)
        assert command is not None
        for parameter in command.params:
            text = getattr(parameter, "help", None) or "Help."
            assert not text.startswith(("…", "The same,", "Of ", "Many of", "Only ", "Without ")), (
                verb,
                parameter.name,
            )
            assert text.endswith("."), (verb, parameter.name, text)


def test_top_level_help_groups_every_verb():
    shown = ggufkit(["--help"]).decode()
    for group, verbs in GROUPS.items():
        assert f"\n{group}:\n" in shown
        for verb in verbs:
            assert f"\n  {verb} " in shown


@pytest.mark.parametrize(("alias", "verb"), ALIASES.items())
def test_aliases_are_the_verbs_themselves(alias: str, verb: str):
    context = cli.make_context("ggufkit", [], resilient_parsing=True)
    assert cli.get_command(context, alias) is cli.get_command(context, verb)


@pytest.mark.parametrize("kind", ["bash", "zsh", "fish"])
def test_completion_prints_a_script(kind: str):
    assert b"_GGUFKIT_COMPLETE" in ggufkit(["completion", kind])


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("ggufkit ins", "plain,inspect"),
        ("ggufkit inspect mod", "file,mod"),
        ("ggufkit help getting", "plain,getting-started"),
        ("ggufkit inspect --summ", "plain,--summary"),
    ],
)
def test_completion_completes(words: str, expected: str):
    environment = {
        **os.environ,
        "_GGUFKIT_COMPLETE": "bash_complete",
        "COMP_WORDS": words,
        "COMP_CWORD": str(words.count(" ")),
    }
    command = [sys.executable, "-m", "ggufkit"]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=False, cwd=ROOT)
    assert expected in done.stdout.splitlines()


def test_quiet_says_nothing_but_errors(stocked: Path, capfd: pytest.CaptureFixture[str]):
    for arguments in (["-q", "run"], ["run", "-q"]):
        with pytest.raises(SystemExit) as e:
            main([*arguments, str(stocked / "model-F16.gguf"), "-p", "def", "-n", "2", "-c", "0", "--no-such"])
        assert e.value.code == 2
        capfd.readouterr()
        main([*arguments, str(stocked / "model-F16.gguf"), "-p", "def", "-n", "2"])
        assert capfd.readouterr().err == ""
