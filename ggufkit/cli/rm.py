"""`ggufkit rm`: remove metadata or tensors."""

from __future__ import annotations

from typing import Any

import click

from ggufkit.cli.editing import edit_options, editing

__all__ = ["command"]


@click.command()
@click.argument("file")
@click.argument("names", nargs=-1, required=True, metavar="KEY…")
@click.option("--tensor", is_flag=True, help="The names given are those of tensors, not of keys.")
@edit_options
def command(file: str, names: tuple[str, ...], tensor: bool, how: dict[str, Any]) -> None:
    """Remove the metadata KEYs, or tensors, from FILE.

    The room of a key becomes spare room for later edits. Without a tensor the file is written anew, and undo cannot
    bring the tensor back.

    \b
    ggufkit rm model.gguf general.url general.source.url
    """
    with editing(file, how) as e:
        for name in names:
            (e.remove_tensor if tensor else e.remove)(name)
