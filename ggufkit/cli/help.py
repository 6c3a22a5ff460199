"""`ggufkit help`: the manual, the Markdown files of `ggufkit/docs`.

A page is a file there: its name is the topic, its first line `# Title`, its second paragraph begins with the sentence
that the list of topics shows.
"""

from __future__ import annotations

import re
import shutil
import sys
from difflib import get_close_matches
from pathlib import Path

import click

from ggufkit.cli import ALIASES, VERBS, cli
from ggufkit.errors import UsageError

__all__ = ["PAGES", "about", "command", "topics"]

PAGES = Path(__file__).parent.parent / "docs"


def topics() -> dict[str, Path]:
    """Topic → its page, how to start first."""
    found = {path.stem: path for path in PAGES.glob("*.md")}
    return dict(sorted(found.items(), key=lambda item: (item[0] != "getting-started", item[0])))


def about(page: str) -> str:
    """What a page is about: its first sentence."""
    paragraph = page.split("\n\n", 2)[1].replace("\n", " ")
    sentence = re.split(r"(?<=[.:]) ", paragraph)[0].rstrip(":")
    return re.sub(r"\[([^]]*)\]\([^)]*\)|`", r"\1", sentence)


def _topic_names(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    return [name for name in (*topics(), *VERBS) if name.startswith(incomplete)]


@click.command()
@click.argument("topic", required=False, shell_complete=_topic_names)
def command(topic: str | None) -> None:
    """Show the page of the manual on TOPIC, or the help of a verb. Without TOPIC, list the topics.

    On a terminal a page is set in columns and colours; elsewhere it is the Markdown text.

    \b
    ggufkit help
    ggufkit help getting-started
    ggufkit help policy-files > policy-files.md
    """
    pages = topics()
    if topic is None:
        return _list(pages)
    name = topic.lower().removesuffix(".md")
    if name in pages:
        return _show(pages[name].read_text("utf-8"))
    if name in VERBS or name in ALIASES:
        verb = ALIASES.get(name, name)
        root = click.get_current_context().find_root()
        found = cli.get_command(root, verb)
        assert found is not None
        return click.echo(found.get_help(click.Context(found, info_name=verb, parent=root)))
    near = get_close_matches(name, (*pages, *VERBS), n=2)
    hint = f"did you mean {' or '.join(near)}?" if near else "`ggufkit help` lists the topics"
    raise UsageError(f"there is no page on {topic!r}; {hint}")


def _list(pages: dict[str, Path]) -> None:
    formatter = click.HelpFormatter(width=min(100, shutil.get_terminal_size().columns - 2))
    with formatter.section("Topics"):
        formatter.write_dl([(name, about(path.read_text("utf-8"))) for name, path in pages.items()])
    click.echo(formatter.getvalue() + "\n`ggufkit help TOPIC` shows a page, `ggufkit help VERB` the help of a verb.")


def _show(text: str) -> None:
    """Markdown on a terminal as rich sets it, a screen at a time; elsewhere as it is."""
    if not sys.stdout.isatty():
        return click.echo(text, nl=False)
    from rich.console import Console
    from rich.markdown import Markdown

    size = shutil.get_terminal_size()
    console = Console(width=min(size.columns, 100))
    with console.capture() as captured:
        console.print(Markdown(_plain_fences(text)))
    shown = captured.get()
    if shown.count("\n") < size.lines:
        return click.echo(shown, nl=False)
    return click.echo_via_pager(shown, color=True)


def _plain_fences(text: str) -> str:
    """The text whose fences name a language alone, without the name of a file."""
    return re.sub(r"^```(\w+) .*$", r"```\1", text, flags=re.MULTILINE)
