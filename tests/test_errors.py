"""Errors: hints in Python's words and in those of the command line, and messages that name no flag themselves."""

from __future__ import annotations

import ast
import pickle
import re
from pathlib import Path

import click
import pytest

from ggufkit.cli.hints import in_flags
from ggufkit.errors import FileError, GGUFError, GgufkitError, Hint

PACKAGE = Path(__file__).parent.parent / "ggufkit"

FLAG = re.compile(r"(?:^|[\s(`'\"])(?:--[a-z]|-[a-zA-Z]\b(?! [-+*/=<>]))")


@click.command()
@click.argument("source", metavar="GGUF_IN")
@click.argument("target", metavar="GGUF_OUT")
@click.option("-c", "--ctx-size", type=int)
@click.option("--spare", type=int)
@click.option("--force", is_flag=True)
@click.option("--allow-v1", is_flag=True)
@click.option("--max-header", type=int)
def verb(**options):
    """A verb."""


@pytest.mark.parametrize(
    ("hint", "python", "flags"),
    [
        ("give {force=True} to replace it", "give force=True to replace it", "give --force to replace it"),
        ("give a larger {context}", "give a larger context=…", "give a larger -c"),
        ("{spare=0} removes it", "spare=0 removes it", "--spare 0 removes it"),
        ("choose another {output}", "choose another output=…", "choose another GGUF_OUT"),
        ("allow {limits=Limits(header=…)}", "allow limits=Limits(header=…)", "allow --max-header"),
        ("take {limits=Limits(versions=(1, 2, 3))}", "take limits=Limits(versions=(1, 2, 3))", "take --allow-v1"),
        (Hint("free room", "give {force=True}"), "free room, or give force=True", "free room, or give --force"),
        (Hint("a", "b", "c"), "a, b, or c", "a, b, or c"),
        (Hint("shorten it", "take {backend=cpu}"), "shorten it, or take backend=cpu", "shorten it"),
    ],
)
def test_a_hint_in_python_and_in_flags(hint, python, flags):
    error = GgufkitError("no", hint)
    assert str(error) == f"no; {python}"
    assert in_flags(error, verb) == f"no; {flags}"


def test_a_hint_that_the_verb_has_no_option_for_is_left_out():
    assert in_flags(GgufkitError("no", "take {backend=cpu}"), verb) == "no"
    assert in_flags(GgufkitError("no", "give {force=True}"), None) == "no"
    assert in_flags(GgufkitError("no"), verb) == str(GgufkitError("no")) == "no"


def test_errors_keep_their_hint_when_they_are_pickled():
    error = pickle.loads(pickle.dumps(GGUFError("is wrong", "a.gguf", 4, "give {force=True}")))
    assert str(error) == "a.gguf: is wrong (byte 4); give force=True"
    assert (error.reason, error.path, error.offset) == ("is wrong", "a.gguf", 4)


def texts(path: Path) -> list[str]:
    """The texts of a module that are no docstrings. A flag alone is no message: an argument of another program."""
    tree = ast.parse(path.read_text())
    docs = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    return [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs and " " in node.value
    ]


def test_the_library_names_no_flags_in_its_messages():
    named = {
        f"{path.relative_to(PACKAGE)}: {text}"
        for path in PACKAGE.rglob("*.py")
        if path.relative_to(PACKAGE).parts[0] not in ("cli", "kernels")
        for text in texts(path)
        if FLAG.search(text) and "\n" not in text
    }
    assert named == set()


def test_a_verb_says_its_own_flags(tmp_path, capsys):
    from ggufkit.cli import main

    path = tmp_path / "config.json"
    path.write_text("{}")
    with pytest.raises(SystemExit) as caught:
        main(["inspect", str(path)])
    assert caught.value.code == 1
    assert capsys.readouterr().err.startswith(f"ggufkit: {path}: ")
    assert issubclass(FileError, GgufkitError)
