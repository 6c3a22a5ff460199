"""`ggufkit split`: one model into several files, with the flags of llama-gguf-split."""

from __future__ import annotations

from typing import Any

import click

from ggufkit.cli.common import SIZE, human_bytes, open_model
from ggufkit.errors import printable
from ggufkit.gguf.shards import DEFAULT_TENSORS, Shard, split_names, split_tensors

__all__ = ["command"]


@click.command()
@click.argument("source", metavar="GGUF_IN")
@click.argument("target", metavar="GGUF_OUT")
@click.option("--split-max-tensors", type=click.IntRange(min=1), metavar="N", help="Tensors in each file; default 128.")
@click.option("--split-max-size", type=SIZE, metavar="N(M|G)", help="Bytes of tensors in each file, e.g. 500M or 4G.")
@click.option("--no-tensor-first-split", is_flag=True, help="The first file holds the metadata alone.")
@click.option("--dry-run", is_flag=True, help="Show the plan and write nothing.")
@click.option("--force", is_flag=True, help="Replace files that exist.")
def command(
    source: str,
    target: str,
    split_max_tensors: int | None,
    split_max_size: int | None,
    no_tensor_first_split: bool,
    dry_run: bool,
    force: bool,
) -> None:
    """Split the model GGUF_IN into files GGUF_OUT-00001-of-0000N.gguf.

    The files are those of llama-gguf-split, byte for byte. llama.cpp and ggufkit open the model by its first file;
    ggufkit by any of them. A model that is split already is divided anew.

    \b
    ggufkit split --split-max-size 4G model.gguf part
    """
    from ggufkit.cli.progress import byte_bar
    from ggufkit.gguf.copy import write_shards

    if split_max_tensors is None and split_max_size is None:
        split_max_tensors = DEFAULT_TENSORS
    with open_model(source) as model:
        limits: dict[str, Any] = {
            "max_tensors": split_max_tensors,
            "max_bytes": split_max_size,
            "no_tensor_first_split": no_tensor_first_split,
        }
        if dry_run:
            shards = split_tensors(model.fields, model.info, **limits)
            echo_plan(target, shards, [sum(model.info[name].nbytes for name in shard.tensors) for shard in shards])
            return
        with byte_bar(sum(info.nbytes for info in model.info.values()), "splitting") as advance:
            paths = write_shards(model, target, force=force, advance=advance, **limits)
    for path in paths:
        click.echo(path)


def echo_plan(target: str, shards: list[Shard], sizes: list[int]) -> None:
    for path, shard, size in zip(split_names(target, len(shards)), shards, sizes, strict=True):
        click.echo(f"{printable(path, 4096)}: {len(shard.tensors)} tensors, {human_bytes(size)}")
