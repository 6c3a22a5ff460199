"""`ggufkit undo`: take back the last edit."""

from __future__ import annotations

import click

from ggufkit.cli.editing import copy_progress
from ggufkit.errors import printable
from ggufkit.gguf.edit.session import undo
from ggufkit.gguf.edit.undo import steps_left

__all__ = ["command"]


@click.command()
@click.argument("file")
@click.option("--force", is_flag=True, help="Change FILE even if another program has it open.")
def command(file: str, force: bool) -> None:
    """Take back the last edit of FILE: set, rm or rename; called again, the one before, up to ten.

    The bytes that the edits replaced are in FILE.undo, FILE.undo.2, …. After an edit that wrote the file anew, undo
    writes it anew too.

    \b
    ggufkit undo model.gguf
    """
    undo(file, force=force, progress=copy_progress(file))
    left = steps_left(file)
    more = f"; {left} more can be taken back" if left else ""
    click.echo(f"{printable(file, 4096)}: as before the last edit{more}")
