#!/usr/bin/env python3
"""Make the pages of the manual that say what the code says: verbs.md, python.md, and marked parts of others.

    python tools/generate/make_manual.py            # write what changed
    python tools/generate/make_manual.py --check    # exit code 1 and the names, if something would change

verbs.md has the help of every verb, python.md the docstrings of `ggufkit.__all__`. In other pages the lines between
`<!-- NAME -->` and `<!-- end -->` are made here, see PARTS.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

import ggufkit
from ggufkit import errors
from ggufkit.cli import GROUPS, cli
from ggufkit.cli.help import PAGES
from ggufkit.formats.table import formats

# -- verbs.md ---------------------------------------------------------------------------------------------

VERBS_HEAD = """\
# Verbs

Every verb of the command line with its arguments and options, as `ggufkit VERB --help` shows them.

All verbs take `-q`/`--quiet` (nothing on stderr but errors) and `-h`/`--help`. `info`, `show` and `ls` stand for
`inspect`. Exit codes: see [errors](errors.md).
"""


def verbs_page() -> str:
    context = cli.make_context("ggufkit", [], resilient_parsing=True)
    found = [VERBS_HEAD]
    for group, verbs in GROUPS.items():
        found.append(f"## {group}\n")
        for verb in verbs:
            command = cli.get_command(context, verb)
            assert command is not None
            found.append(verb_section(verb, command, context))
    return "\n".join(found)


def verb_section(verb: str, command: click.Command, parent: click.Context) -> str:
    context = click.Context(command, info_name=verb, parent=parent)
    usage = " ".join(["ggufkit", verb, *command.collect_usage_pieces(context)])
    text, examples = described(inspect.cleandoc(command.help or ""))
    lines = [f"### {verb}\n", f"`{usage}`\n", text]
    if examples:
        lines.append("```sh\n" + "\n".join(examples) + "\n```\n")
    rows = [record for option in command.params if (record := option.get_help_record(context))]
    rows = [row for row in rows if row[1] and not re.search(r"--(quiet|help)\b", row[0])]
    if rows:
        lines += ["| option | |", "|---|---|"]
        lines += [f"| `{cell(name)}` | {escaped(cell(text))} |" for name, text in rows]
        lines.append("")
    return "\n".join(lines)


def described(help: str) -> tuple[str, list[str]]:
    """A verb's help as Markdown, and the lines of its examples (those of blocks after a backspace)."""
    text, examples = [], []
    for paragraph in help.split("\n\n"):
        if not paragraph.startswith("\b"):
            text.append(escaped(paragraph) + "\n")
            continue
        lines = paragraph.splitlines()[1:]
        if all(re.match(r"(ggufkit|echo|eval|cat|curl|mlx_lm)\b", line) for line in lines):
            examples += lines
        else:
            text.append("```text\n" + "\n".join(lines) + "\n```\n")
    return "\n".join(text), examples


def cell(text: str) -> str:
    return re.sub(r"\s+", " ", text).replace("|", "\\|").strip()


def escaped(text: str) -> str:
    """Text as Markdown shows it: `<` and `*` are letters, not tags and emphasis."""
    return re.sub(r"(?<!\\)([<*_])(?=\S)", r"\\\1", text) if "`" not in text else text


# -- python.md --------------------------------------------------------------------------------------------

PYTHON_HEAD = """\
# Python

Everything public of `import ggufkit`, from its docstrings: what each verb does, as functions that return objects.

Nothing prints, nothing exits, every error a user can cause is a `GgufkitError` (see [errors](errors.md)). A submodule
is imported when one of its names is first used, so that `import ggufkit` costs little. Arrays are NumPy's; shapes are
in NumPy's order, the longest stride first.

```python
import ggufkit

with ggufkit.open("model.gguf") as model:  # local, split, https:// or hf://
    model.metadata["general.architecture"]
    model.tensors["token_embd.weight"].floats(0, 10)  # ten rows, float32

with ggufkit.edit("model.gguf") as edit:
    edit.set("general.name", "Tiny")

with ggufkit.load("model.gguf") as model:
    for piece in model.generate("def main(", max_tokens=8):
        print(piece, end="")
```

Blocks and weights:

```python
import numpy as np

from ggufkit.formats.codec import decode, encode

weights = np.linspace(-1, 1, 512, dtype=np.float32).reshape(2, 256)
blocks = encode(weights, "Q4_K")  # (rows, cols) float32 → (rows, row_bytes) uint8
again = decode(blocks, "Q4_K")
assert again.shape == weights.shape
```
"""


def python_page() -> str:
    found = [PYTHON_HEAD]
    for name in sorted(ggufkit.__all__, key=str.lower):
        if not name.startswith("_"):
            found.append(thing(f"ggufkit.{name}", getattr(ggufkit, name), level=2))
    return "\n".join(found)


def thing(name: str, value: Any, level: int) -> str:
    if inspect.ismodule(value):
        return ""
    lines = [f"{'#' * level} {name}\n"]
    if callable(value):
        shown = f"{'class ' if inspect.isclass(value) else ''}{name.rpartition('.')[2]}{signature(value)}"
        lines.append(f"```text\n{shown}\n```\n")
    if isinstance(value, type) or callable(value):
        lines.append(docstring(inspect.getdoc(value) or ""))
    if inspect.isclass(value):
        lines += list(members(value))
    return "\n".join(lines)


def signature(value: Any) -> str:
    """The parameters and what comes back, a parameter a line where they are long."""
    try:
        found = inspect.signature(value)
    except (TypeError, ValueError):
        return ""
    kept = [p for p in found.parameters.values() if p.name != "self"]
    found = found.replace(
        parameters=[p if p.default is p.empty else p.replace(default=_Shown(p.default)) for p in kept]
    )
    parameters = [_unquoted(str(p)) for p in found.parameters.values()]
    kinds = [p.kind for p in found.parameters.values()]
    if inspect.Parameter.KEYWORD_ONLY in kinds and inspect.Parameter.VAR_POSITIONAL not in kinds:
        parameters.insert(kinds.index(inspect.Parameter.KEYWORD_ONLY), "*")
    given = found.return_annotation
    result = (
        "" if given is found.empty else f" -> {given if isinstance(given, str) else inspect.formatannotation(given)}"
    )
    if (line := f"({', '.join(parameters)}){result}") and len(line) <= 100:
        return line
    return "(\n" + "".join(f"    {p},\n" for p in parameters) + f"){result}"


def _unquoted(parameter: str) -> str:
    """`name: type = default` of an annotation that is kept as text."""
    return re.sub(r"^(\**\w+: )'(.*?)'( = |$)", r"\1\2\3", parameter)


class _Shown:
    """A default as a reader wants it: functions by name, no addresses."""

    def __init__(self, value: Any):
        self.text = value.__name__ if inspect.isroutine(value) else re.sub(r"<.* at 0x\w+>", "…", repr(value))

    def __repr__(self) -> str:
        return self.text


def members(value: type) -> Iterator[str]:
    """A class's public methods and properties that have a docstring of their own, a line each."""
    rows = []
    for name, member in vars(value).items():
        function = member.__func__ if isinstance(member, (classmethod, staticmethod)) else member
        text = inspect.getdoc(function) if not isinstance(function, (int, str, tuple, dict)) else None
        if name.startswith("_") or not text or inspect.isclass(function):
            continue
        first = text.split("\n\n")[0].replace("\n", " ")
        call = re.sub(r"\s+", " ", signature(function)).partition(" -> ")[0] if inspect.isfunction(function) else ""
        rows.append(f"| `{cell(name + call)}` | {escaped(cell(first))} |")
    if rows:
        yield "| member | |\n|---|---|\n" + "\n".join(rows) + "\n"


def docstring(text: str) -> str:
    """A numpydoc docstring as Markdown: sections in bold, their entries as a list, drawings fenced."""
    found, in_section = [], False
    for paragraph in text.split("\n\n"):
        lines = paragraph.splitlines()
        if len(lines) > 1 and re.fullmatch(r"-{3,}", lines[1]):
            found.append(f"**{lines[0]}**\n")
            in_section = lines[0] in ("Parameters", "Raises", "Attributes", "Returns")
            lines = lines[2:]
            found.append(entries(lines) if in_section and any(" : " in x for x in lines) else " ".join(lines) + "\n")
        elif all(line.startswith("    ") for line in lines if line):
            found.append("```text\n" + inspect.cleandoc("\n" + paragraph) + "\n```\n")
        else:
            found.append(escaped(paragraph) + "\n")
    return "\n".join(found)


def entries(lines: list[str]) -> str:
    """`name : text`, which goes on in indented lines, as a list."""
    items: list[str] = []
    for line in lines:
        if line.startswith(" ") and items:
            items[-1] += " " + line.strip()
        else:
            items.append(line)
    shown = []
    for item in items:
        name, colon, text = item.partition(" : ")
        shown.append(f"- `{name}`: {text}" if colon else f"- {item}")
    return "\n".join(shown) + "\n"


# -- parts of pages ---------------------------------------------------------------------------------------


def format_table() -> str:
    lines = ["| type | id | weights per block | bytes | bits per weight | fields | falls back to |"]
    lines.append("|---|---:|---:|---:|---:|---|---|")
    for f in formats():
        row = (f.name, f.id, f.block_size, f.type_size, f"{f.bits_per_weight:g}", f"`{f.layout}`", f.fallback or "")
        lines.append("| " + " | ".join(map(str, row)) + " |")
    return "\n".join(lines)


def error_tree() -> str:
    text = inspect.getdoc(errors) or ""
    tree = re.search(r"^    GgufkitError\n(?:    .*\n?)+", text, re.MULTILINE)
    assert tree is not None
    return "```text\n" + inspect.cleandoc("\n" + tree[0].rstrip()) + "\n```"


def drawing(module: str) -> Callable[[], str]:
    """The docstring of a module that draws a layout."""

    def made() -> str:
        text = inspect.getdoc(importlib.import_module(module)) or ""
        return f"```text\n{text}\n```"

    return made


PARTS: dict[str, Callable[[], str]] = {
    "the table of formats": format_table,
    "the tree of errors": error_tree,
    "the drawing of the file": drawing("ggufkit.gguf.header"),
    "the drawing of Q4_0": drawing("ggufkit.formats.legacy"),
    "the drawing of Q4_K": drawing("ggufkit.formats.kquants.q45_k"),
    "the drawing of Q6_K": drawing("ggufkit.formats.kquants.q36_k"),
    "the drawing of MXFP4": drawing("ggufkit.formats.microscale"),
    "the drawing of TQ1_0": drawing("ggufkit.formats.ternary"),
}


def with_parts(page: str) -> str:
    def made(match: re.Match[str]) -> str:
        return f"<!-- {match[1]} -->\n{PARTS[match[1]]()}\n<!-- end -->"

    return re.sub(r"<!-- ([^>]*?) -->\n(?:(?!<!-- end).*\n)*<!-- end -->", made, page)


def pages() -> dict[Path, str]:
    """What the pages should be."""
    found = {PAGES / "verbs.md": verbs_page(), PAGES / "python.md": python_page()}
    for path in sorted(PAGES.glob("*.md")):
        if path not in found:
            found[path] = with_parts(path.read_text("utf-8"))
    return {path: re.sub(r"\n{3,}", "\n\n", text).rstrip() + "\n" for path, text in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing")
    check = parser.parse_args().check
    changed = [(path, text) for path, text in pages().items() if not path.exists() or path.read_text("utf-8") != text]
    for path, text in changed:
        print(path.name)
        if not check:
            path.write_text(text, "utf-8")
    sys.exit(1 if check and changed else 0)


if __name__ == "__main__":
    main()
