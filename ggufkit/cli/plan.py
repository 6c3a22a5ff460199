"""`ggufkit plan`: which type each tensor would get, and why."""

from __future__ import annotations

from typing import Any

import click

from ggufkit.cli.allocation import allocated, budget_options, has_budget, statistics_of
from ggufkit.cli.common import open_model
from ggufkit.cli.precision import checkpoint_type, inexact_option, precision_options, recipe_from, target_beside
from ggufkit.cli.show_plan import echo_plan
from ggufkit.errors import UsageError

__all__ = ["command"]


@click.command()
@click.argument("source")
@click.argument("type_", metavar="[TYPE]", required=False)
@precision_options
@budget_options
@inexact_option
@click.option("--summary", is_flag=True, help="Show only the totals of each type and the size, without the tensors.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def command(
    source: str,
    type_: str | None,
    precision: dict[str, Any],
    budget: dict[str, Any],
    inexact: str | None,
    summary: bool,
    as_json: bool,
) -> None:
    """Show which type each tensor of SOURCE gets as TYPE, why, and the exact size of the file, without writing it.

    SOURCE is a GGUF file, as for quantize, or a checkpoint's folder or hf://owner/repo, as for convert.

    \b
    ggufkit plan model-BF16.gguf Q4_K_M
    ggufkit plan Llama-3.2-1B IQ3_XXS --imatrix imatrix.gguf --policy mine.toml --json
    ggufkit plan model-BF16.gguf --imatrix stats.gguf --target-bpw 4.5
    """
    from ggufkit.checkpoint.folder import is_checkpoint
    from ggufkit.jobs.convert import conversion
    from ggufkit.jobs.quantize import quantization

    free = has_budget(budget)
    if is_checkpoint(source):
        if free:
            raise UsageError("types are chosen by their cost for a GGUF file; convert the checkpoint first")
        echo_plan(conversion(source, type=checkpoint_type(type_, precision), inexact=inexact), as_json, summary)
        return
    if free and type_ is not None:
        raise UsageError(f"{type_} and a budget both say how large the file becomes; leave one out")
    recipe = recipe_from(type_, precision, default="Q8_0" if free else None)
    with open_model(source) as model:
        found = allocated(model, recipe, budget, statistics_of(precision["imatrix"])) if free else None
        recipe = recipe if found is None else found.recipe
        echo_plan(quantization(model, target_beside(source, recipe), recipe), as_json, summary, found)
