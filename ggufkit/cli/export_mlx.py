"""`ggufkit export-mlx`: a GGUF file as a folder that mlx-lm loads."""

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
    help="Type of scales, norms and unquantized matrices. Default: float16 where it rounds none of them, else float32.",
)
@click.option("--force", is_flag=True, help="Replace FOLDER if it exists.")
def command(model: str, folder: Path, dtype: str | None, force: bool) -> None:
    """Write MODEL, a GGUF file, as FOLDER for mlx-lm: config.json, safetensors, tokenizer.

    Quantized weights become MLX's quantized arrays with the same numbers. Types that MLX has no arrays for (Q6_K, Q3_K,
    Q2_K, IQ…) become float16 matrices, and that is said. `ggufkit convert FOLDER` is the way back.

    \b
    ggufkit export-mlx model-Q4_K_M.gguf model-mlx && mlx_lm.generate --model model-mlx
    """
    from ggufkit.cli.progress import byte_bar, note
    from ggufkit.jobs.to_mlx import export_mlx

    for remark in export_mlx(model, folder, dtype=dtype, force=force, report=byte_bar):
        note(remark)
    click.echo(folder)
