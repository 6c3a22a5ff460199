"""`ggufkit plan`: which type each tensor would get, and why."""

from __future__ import annotations

from typing import Any

import click

from ggufkit.cli.common import open_model
from ggufkit.cli.precision import checkpoint_type, inexact_option, precision_options, recipe_from, target_beside
from ggufkit.cli.show_plan import echo_plan

__all__ = ["command"]


@click.command()
@click.argument("source")
@click.argument("type_", metavar="[TYPE]", required=False)
@precision_options
@inexact_option
@click.option("--summary", is_flag=True, help="Show only the totals of each type and the size, without the tensors.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def command(
    source: str, type_: str | None, precision: dict[str, Any], inexact: str | None, summary: bool, as_json: bool
) -> None:
    """Show which type each tensor of SOURCE gets as TYPE, why, and the exact size of the file, without writing it.

    SOURCE is a GGUF file, as for quantize, or a checkpoint's folder or hf://owner/repo, as for convert.

    \b
    ggufkit plan model-BF16.gguf Q4_K_M
    ggufkit plan Llama-3.2-1B IQ3_XXS --imatrix imatrix.gguf --policy mine.toml --json
    """
    from ggufkit.checkpoint.folder import is_checkpoint
    from ggufkit.jobs.convert import conversion
    from ggufkit.jobs.quantize import quantization

    if is_checkpoint(source):
        echo_plan(conversion(source, type=checkpoint_type(type_, precision), inexact=inexact), as_json, summary)
        return
    recipe = recipe_from(type_, precision)
    with open_model(source) as model:
        echo_plan(quantization(model, target_beside(source, recipe), recipe), as_json, summary)
