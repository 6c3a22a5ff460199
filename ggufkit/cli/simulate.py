"""`ggufkit simulate`: a page that shows what each method of quantization does to a block."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ggufkit.cli.common import human_bytes, matrices, model_options, open_model
from ggufkit.errors import UsageError, printable

__all__ = ["command"]


@click.command()
@click.argument("model", required=False)
@click.option("--tensor", metavar="NAME", help="Begin with a block of this tensor of MODEL.")
@click.option("--block", type=click.IntRange(min=0), default=0, show_default=True, help="Which 32 weights of it.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default="simulate.html",
    show_default=True,
    help="Where the page goes.",
)
@click.option("--force", is_flag=True, help="Replace the page if it exists.")
@model_options
def command(model: str | None, tensor: str | None, block: int, output: Path, force: bool, how: dict[str, Any]) -> None:
    """Write a page with a block of 32 weights and what each method of quantization makes of it.

    Weights are dragged or typed; levels, codes, stored bytes, errors of weights and output follow: of uniform steps,
    GGUF's types, NF4, FP8, AWQ, GPTQ step by step, rotations and TurboQuant. The numbers are those of ggufkit's codecs,
    to the last digit. The page needs no network.

    \b
    ggufkit simulate
    ggufkit simulate model-f16.gguf --tensor blk.0.ffn_down.weight --block 17 -o block.html
    """
    from ggufkit.web.page import write_page
    from ggufkit.web.simulate import simulator, tensor_block

    if (model is None) != (tensor is None):
        raise UsageError("a block is of a tensor of a model: give both, MODEL and --tensor NAME")

    def make() -> str:
        if model is None or tensor is None:
            return simulator()
        with open_model(model, how) as opened:
            return simulator(tensor_block(matrices(opened, tensor)[0], block, model))

    write_page(make, output, force=force)
    click.echo(f"{printable(output, 4096)}: {human_bytes(output.stat().st_size)}")
