"""`ggufkit imatrix`: llama-imatrix's work, with its flags."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ggufkit.cli.progress import note
from ggufkit.cli.prompt import runtime_options
from ggufkit.cli.text import file_windows
from ggufkit.errors import UsageError, printable

__all__ = ["command"]


@click.command()
@click.argument("model")
@click.option("-f", "--file", "text", required=True, type=click.Path(path_type=Path), help="The text to read.")
@click.option(
    "-o",
    "--output-file",
    "output",
    type=click.Path(path_type=Path),
    default=Path("imatrix.gguf"),
    show_default=True,
    help="The file to write.",
)
@click.option(
    "--output-format",
    type=click.Choice(["gguf", "dat"]),
    help="File format of the matrix. Default: dat for a file that is called so, else gguf.",
)
@click.option("-c", "--ctx-size", "context", type=int, default=512, show_default=True, help="Tokens per window.")
@click.option("--chunks", type=int, help="Look at no more than this many windows; default all.")
@click.option("--process-output", is_flag=True, help="Collect importance for the output matrix, too.")
@click.option("--chat", is_flag=True, help="The text is JSON lines of chats, put into the model's template.")
@click.option("--parse-special", is_flag=True, help="Read control tokens in the text as what they are.")
@runtime_options
@click.option("--force", is_flag=True, help="Replace the file if it exists.")
def command(
    model: str,
    text: Path,
    output: Path,
    output_format: str | None,
    context: int,
    chunks: int | None,
    process_output: bool,
    chat: bool,
    parse_special: bool,
    on: dict[str, Any],
    force: bool,
) -> None:
    """Make an importance matrix: which columns of its matrices MODEL uses most when it reads a text.

    Quantizing with it keeps what matters. The file is read by llama-quantize, too.

    \b
    ggufkit imatrix model-F16.gguf -f calibration.txt -o imatrix.gguf
    ggufkit quantize --imatrix imatrix.gguf model-F16.gguf IQ3_XXS
    """
    from ggufkit.calibrate.imatrix import collect
    from ggufkit.cli.ahead import ready_to_run
    from ggufkit.cli.progress import token_bar
    from ggufkit.importance.imatrix_file import write_imatrix
    from ggufkit.runtime.model import load

    if output.exists() and not force:
        raise UsageError(f"{printable(output)} exists already; give --force to replace it")
    ready_to_run(model, {**on, "as_ggml": True})
    with load(model, **on, as_ggml=True) as loaded:
        windows = file_windows(loaded, text, context, chunks, parse_special, chat)
        with token_bar(windows.tokens.size, "importance") as advance:
            sums = collect(loaded, windows, lambda tokens: advance(tokens, ""), output=process_output)
    legacy = output_format == "dat" or (output_format is None and output.suffix == ".dat")
    write_imatrix(output, sums, [str(text)], len(windows), context, legacy=legacy, force=force)
    idle = sum(int((found.counts == 0).sum()) for found in sums.values())
    if idle:
        note(f"{idle} matrices of experts were never used; a longer text might reach them")
    click.echo(output)
