"""`ggufkit merge`: the files of a split model into one, with the flags of llama-gguf-split."""

from __future__ import annotations

import os

import click

from ggufkit.cli.common import human_bytes, open_model
from ggufkit.errors import UsageError, os_errors, printable
from ggufkit.storage.source import is_address

__all__ = ["command"]


@click.command()
@click.argument("source", metavar="GGUF_IN")
@click.argument("target", metavar="GGUF_OUT")
@click.option("--drop-split-keys", is_flag=True, help="Leave out the split.* keys: gives back the file that was split.")
@click.option("--delete-splits", is_flag=True, help="Delete the files of GGUF_IN once GGUF_OUT is complete.")
@click.option("--dry-run", is_flag=True, help="Show the plan and write nothing.")
@click.option("--force", is_flag=True, help="Replace GGUF_OUT if it exists.")
def command(source: str, target: str, drop_split_keys: bool, delete_splits: bool, dry_run: bool, force: bool) -> None:
    """Merge the split model GGUF_IN, given by any of its files, into GGUF_OUT.

    The file is that of llama-gguf-split, byte for byte: it keeps the split.* keys, with a count of 0.

    \b
    ggufkit merge part-00001-of-00004.gguf model.gguf
    """
    from ggufkit.cli.progress import byte_bar
    from ggufkit.gguf.copy import merge

    if delete_splits and is_address(source):
        raise UsageError("the files on a server cannot be deleted; leave out --delete-splits")
    with open_model(source) as model:
        names = [part.source.name for part in model.parts]
        nbytes = sum(info.nbytes for info in model.info.values())
        if dry_run:
            click.echo(
                f"{printable(target, 4096)}: {len(names)} files, {len(model.info)} tensors, {human_bytes(nbytes)}"
            )
            return
        with byte_bar(nbytes, "merging") as advance:
            merge(model, target, drop_split_keys=drop_split_keys, force=force, advance=advance)
    if delete_splits:
        for name in names:
            with os_errors(name, "delete"):
                os.unlink(name)
    click.echo(target)
