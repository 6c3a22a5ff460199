"""`ggufkit convert`: a Hugging Face checkpoint to GGUF."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ggufkit.cli.common import SIZE
from ggufkit.cli.precision import checkpoint_type, output_options, precision_options, run

__all__ = ["command"]


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("-o", "--outfile", type=click.Path(path_type=Path), help="The file to write.")
@click.option(
    "--type",
    "--outtype",
    "type_",
    metavar="TYPE",
    help="F32, F16, BF16, Q8_0, Q4_K_M and all of quantize's. Default: auto, 16 bits as the checkpoint has them.",
)
@precision_options
@click.option("--split-max-size", type=SIZE, default=0, metavar="SIZE", help="Write files of at most 2G, 500M, …")
@click.option("--split-max-tensors", type=click.IntRange(min=0), default=0, metavar="N", help="… or N tensors each.")
@output_options
def command(
    checkpoint: Path,
    outfile: Path | None,
    type_: str | None,
    precision: dict[str, Any],
    split_max_size: int,
    split_max_tensors: int,
    **options: Any,
) -> None:
    """Convert CHECKPOINT, a folder with config.json, safetensors and a tokenizer, to GGUF.

    The weights go straight to TYPE in one pass, a few rows at a time. Without -o the file is named after the model
    and lies in the checkpoint's folder. The options that choose types are those of `ggufkit quantize`.

    A run that was stopped continues where it was when it is started again.

    \b
    ggufkit convert Llama-3.2-1B -o llama.gguf --type Q4_K_M
    ggufkit convert Llama-3.2-1B --type IQ3_XXS --imatrix imatrix.gguf --split-max-size 2G
    """
    from ggufkit.convert import conversion

    type = checkpoint_type(type_, precision)
    job = conversion(checkpoint, outfile, type, split_max_size=split_max_size, split_max_tensors=split_max_tensors)
    run(job, **options)
