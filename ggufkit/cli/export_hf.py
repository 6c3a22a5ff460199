"""`ggufkit export-hf`: a GGUF file as a folder that transformers and vLLM load."""

from __future__ import annotations

from pathlib import Path

import click

__all__ = ["command"]


@click.command()
@click.argument("model")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--dtype",
    type=click.Choice(["float16", "bfloat16", "float32"]),
    help="Type of all that does not stay quantized. Default: as it is, and float16 for what is decoded.",
)
@click.option(
    "--layout",
    type=click.Choice(["compressed-tensors", "gptq", "awq"]),
    default="compressed-tensors",
    show_default=True,
    help="Layout of what stays quantized; awq has 4 bits only.",
)
@click.option("--decode", is_flag=True, help="Let nothing stay quantized.")
@click.option("--force", is_flag=True, help="Replace FOLDER if it exists.")
def command(model: str, folder: Path, dtype: str | None, layout: str, decode: bool, force: bool) -> None:
    """Write MODEL, a GGUF file, as FOLDER for transformers and vLLM: config.json, safetensors, tokenizer.

    Matrices in Q4_0, Q5_0 and Q8_0, and in Q4_1 where that is possible, stay quantized with the same numbers, as
    compressed-tensors, GPTQ or AWQ have them; all others are decoded, and that is said. What a checkpoint has no place
    for is refused. `ggufkit convert FOLDER` is the way back.

    \b
    ggufkit export-hf model-Q4_0.gguf model-hf && vllm serve model-hf
    """
    from ggufkit.cli.progress import byte_bar, note
    from ggufkit.jobs.to_huggingface import export_hf

    notes = export_hf(model, folder, dtype=dtype, decode=decode, layout=layout, force=force, report=byte_bar)
    for remark in notes:
        note(remark)
    click.echo(folder)
