"""`ggufkit endian`: the same model in the other byte order."""

from __future__ import annotations

import click

from ggufkit.cli.common import open_model

__all__ = ["command"]


@click.command()
@click.argument("source", metavar="GGUF_IN")
@click.argument("order", type=click.Choice(["big", "little", "native"]))
@click.argument("target", metavar="GGUF_OUT")
@click.option("--force", is_flag=True, help="Replace GGUF_OUT if it exists.")
def command(source: str, order: str, target: str, force: bool) -> None:
    """Write GGUF_IN with all numbers in byte ORDER: header, metadata and the blocks of every tensor type.

    Big-endian files are for llama.cpp on IBM Z and alike.

    \b
    ggufkit endian model.gguf big model-be.gguf
    """
    import sys

    from ggufkit.cli.progress import byte_bar
    from ggufkit.gguf.copy import copy_model

    byteorder = sys.byteorder if order == "native" else order
    with open_model(source) as model, byte_bar(sum(info.nbytes for info in model.info.values()), "copying") as advance:
        copy_model(model, target, model.fields, byteorder=byteorder, force=force, advance=advance)
    click.echo(target)
