"""`ggufkit convert`: a Hugging Face checkpoint to GGUF."""

from __future__ import annotations

from pathlib import Path

import click

__all__ = ["command"]


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("-o", "--outfile", type=click.Path(path_type=Path), help="The file to write.")
@click.option(
    "--type",
    "--outtype",
    "type_",
    default="auto",
    show_default=True,
    metavar="TYPE",
    help="F32, F16, BF16, Q8_0, Q4_K_M and all of quantize's, or auto: 16 bits as the checkpoint has them.",
)
@click.option("--force", is_flag=True, help="Replace OUTFILE if it exists.")
@click.option("--threads", type=click.IntRange(min=1), help="Threads; default all CPUs.")
def command(checkpoint: Path, outfile: Path | None, type_: str, force: bool, threads: int | None) -> None:
    """Convert CHECKPOINT, a folder with config.json, safetensors and a tokenizer, to GGUF.

    The weights go straight to TYPE in one pass, a few rows at a time. Without -o the file is named after the model
    and lies in the checkpoint's folder.

    \b
    ggufkit convert Llama-3.2-1B -o llama.gguf --type Q4_K_M
    """
    from ggufkit.cli.progress import progress_bar
    from ggufkit.convert import convert

    click.echo(convert(checkpoint, outfile, type_, force=force, threads=threads, report=progress_bar))
