"""`ggufkit rename`: give a metadata key or a tensor another name."""

from __future__ import annotations

from typing import Any

import click

from ggufkit.cli.editing import edit_options, editing

__all__ = ["command"]


@click.command()
@click.argument("file")
@click.argument("old")
@click.argument("new")
@click.option("--tensor", is_flag=True, help="The names given are those of tensors, not of keys.")
@edit_options
def command(file: str, old: str, new: str, tensor: bool, how: dict[str, Any]) -> None:
    """Give the metadata key OLD, or a tensor, of FILE the name NEW.

    \b
    ggufkit rename model.gguf llama.rope.scale llama.rope.scale_linear
    ggufkit rename model.gguf --tensor output.weight out.weight --force
    """
    with editing(file, how) as e:
        (e.rename_tensor if tensor else e.rename)(old, new)
