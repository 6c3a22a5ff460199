"""`ggufkit quantize`: llama-quantize's work, with its flags."""

from __future__ import annotations

from typing import Any

import click

from ggufkit.cli.common import open_model
from ggufkit.cli.precision import output_options, precision_options, recipe_from, run, target_beside
from ggufkit.errors import PolicyError, UsageError

__all__ = ["command"]


@click.command()
@click.argument("arguments", nargs=-1, required=True, metavar="IN [OUT] TYPE [NTHREADS]")
@precision_options
@click.option("--keep-split", is_flag=True, help="Write a split model in the same parts.")
@output_options
def command(
    arguments: tuple[str, ...], precision: dict[str, Any], keep_split: bool, threads: int | None, **options: Any
) -> None:
    """Quantize the GGUF file IN to TYPE: the bytes that llama-quantize writes.

    TYPE is a preset such as Q4_K_M or IQ4_XS, or its number; COPY changes no tensor. It may be left out where a
    --policy has a base. Without OUT the file is called ggml-model-TYPE.gguf and lies beside IN.

    A run that was stopped continues where it was when it is started again.

    \b
    ggufkit quantize model-BF16.gguf model-Q4_K_M.gguf Q4_K_M
    ggufkit quantize --imatrix imatrix.gguf --tensor-type attn_v=Q8_0 model-BF16.gguf IQ3_XXS
    """
    from ggufkit.jobs.quantize import quantization

    source, target, type_, nthreads = _positional(arguments, has_base=precision["policy"] is not None)
    recipe = recipe_from(type_, precision)
    with open_model(source) as model:
        job = quantization(model, target or target_beside(source, recipe), recipe, keep_split=keep_split)
        run(job, threads=threads or nthreads, **options)


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
