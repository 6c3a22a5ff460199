"""`ggufkit quantize`: llama-quantize's work, with its flags."""

from __future__ import annotations

from typing import Any

import click

from ggufkit.cli.allocation import (
    allocated,
    as_asked,
    budget_options,
    has_budget,
    method_options,
    rounded_job,
    statistics_of,
)
from ggufkit.cli.common import open_model
from ggufkit.cli.precision import output_options, precision_options, recipe_from, run, target_beside
from ggufkit.errors import PolicyError, UsageError

__all__ = ["command"]


@click.command()
@click.argument("arguments", nargs=-1, required=True, metavar="IN [OUT] TYPE [NTHREADS]")
@precision_options
@budget_options
@method_options
@click.option("--keep-split", is_flag=True, help="Write a split model in the same parts.")
@output_options
def command(
    arguments: tuple[str, ...],
    precision: dict[str, Any],
    budget: dict[str, Any],
    how: dict[str, Any],
    keep_split: bool,
    threads: int | None,
    **options: Any,
) -> None:
    """Quantize the GGUF file IN to TYPE: the bytes that llama-quantize writes.

    TYPE is a preset such as Q4_K_M or IQ4_XS, or its number; COPY changes no tensor. It may be left out where a
    --policy has a base. Without OUT the file is called ggml-model-TYPE.gguf and lies beside IN.

    With the statistics of `ggufkit calibrate` as --imatrix, weights are rounded by GPTQ; and in place of TYPE a
    budget may stand, for which each tensor gets the type that costs least.

    A run that was stopped continues where it was when it is started again.

    \b
    ggufkit quantize model-BF16.gguf model-Q4_K_M.gguf Q4_K_M
    ggufkit quantize --imatrix imatrix.gguf --tensor-type attn_v=Q8_0 model-BF16.gguf IQ3_XXS
    ggufkit quantize --imatrix stats.gguf --target-size 3.2G model-BF16.gguf small.gguf
    """
    from ggufkit.jobs.quantize import quantization

    free = has_budget(budget)
    source, target, type_, nthreads = _positional(arguments, has_base=free or precision["policy"] is not None)
    if free and type_ is not None:
        raise UsageError(f"{type_} and a budget both say how large the file becomes; leave one out")
    recipe = recipe_from(type_, precision, default="Q8_0" if free else None)
    statistics = statistics_of(precision["imatrix"])
    with open_model(source) as original:
        found = None
        model, recipe, statistics = as_asked(original, recipe, statistics, how)
        if free:
            found = allocated(model, recipe, budget, statistics, threads or nthreads)
            recipe = found.recipe
        output = target or target_beside(source, recipe)
        job = quantization(model, output, recipe, keep_split=keep_split)
        if how["fold"]:
            types = {p.tensor.name: p.format.name for p in job.plan.tensors if not p.copied}
            model, recipe, statistics = as_asked(model, recipe, statistics, how, types)
            job = quantization(model, output, recipe, keep_split=keep_split)
        run(rounded_job(job, model, statistics, how), found, threads=threads or nthreads, **options)


def _positional(arguments: tuple[str, ...], has_base: bool) -> tuple[str, str | None, str | None, int | None]:
    """IN, OUT, TYPE, NTHREADS, where all but IN may be missing."""
    source, *rest = arguments
    target = type_ = None
    if rest and not _is_type(rest[0]) and (len(rest) > 1 or has_base):
        target = rest.pop(0)
    if rest:
        type_ = rest.pop(0)
    if len(rest) > 1 or not all(n.isascii() and n.isdigit() and int(n) > 0 for n in rest):
        raise UsageError(f"after TYPE only the number of threads may follow, not {' '.join(rest)}")
    return source, target, type_, int(rest[0]) if rest else None


def _is_type(text: str) -> bool:
    from ggufkit.policy.recipe import recipe_of

    try:
        recipe_of(text)
    except PolicyError:
        return False
    return True
