"""What quantize and plan share: a budget in place of a type, and GPTQ."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ggufkit.cli.common import SIZE
from ggufkit.cli.precision import gathered, with_options
from ggufkit.errors import UsageError

if TYPE_CHECKING:
    from ggufkit.calibrate.allocation import Allocation
    from ggufkit.calibrate.statistics import Statistics
    from ggufkit.gguf.reader import GGUF
    from ggufkit.jobs.job import Job
    from ggufkit.policy.recipe import Recipe

__all__ = [
    "allocated",
    "as_asked",
    "budget_options",
    "has_budget",
    "method_options",
    "rounded_job",
    "statistics_of",
]

_BUDGET = [
    click.option(
        "--target-size", "size", type=SIZE, metavar="SIZE", help="Types by their cost, for a file of so many bytes."
    ),
    click.option("--target-bpw", "bits", type=click.FloatRange(min=0, min_open=True), help="So many bits per weight."),
    click.option("--like", metavar="PRESET", help="As many bytes as this preset takes."),
    click.option("--types", metavar="LIST", help="Choose from these types, or of a class: all, cpu, metal."),
]

_METHOD = [
    click.option(
        "--method",
        type=click.Choice(["plain", "gptq"]),
        help="How weights are rounded: gptq where --imatrix is a file of calibrate, else plain, as llama.cpp.",
    ),
    click.option(
        "--two-streams/--one-stream",
        "streams",
        default=True,
        help="Aim at the original's outputs, running the text along; or round each matrix for itself.",
    ),
    click.option(
        "--sweeps",
        type=click.IntRange(0, 100),
        default=2,
        show_default=True,
        help="Sweeps of coordinate descent after GPTQ.",
    ),
    click.option(
        "--fold",
        type=click.Choice(["awq"]),
        help="Fold scales into norms and matrices that leave the model what it is and its errors smaller.",
    ),
    click.option(
        "--tune",
        type=click.Choice(["norms"]),
        help="When all is rounded, learn norm weights that bring predictions nearer to the original's.",
    ),
    click.option("--rotate", is_flag=True, help="Turn the stream between the blocks, where that is exact."),
]


def budget_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of a budget; one dict, `budget`."""
    return with_options(_BUDGET, gathered(_BUDGET, "budget", command))


def method_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of GPTQ; one dict, `how`."""
    return with_options(_METHOD, gathered(_METHOD, "how", command))


def has_budget(budget: dict[str, Any]) -> bool:
    """Whether there is a budget in place of a type.

    Raises
    ------
    UsageError : there are two, or types to choose from and no budget.
    """
    given = [name for name in ("size", "bits", "like") if budget[name] is not None]
    if len(given) > 1:
        raise UsageError("--target-size, --target-bpw and --like are three ways to say one thing; leave out two")
    if budget["types"] is not None and not given:
        raise UsageError("--types needs --target-size, --target-bpw or --like")
    return bool(given)


def statistics_of(path: Path | None) -> Statistics | None:
    """What calibrate wrote, or None where --imatrix is something else, or nothing."""
    if path is None:
        return None
    from ggufkit.calibrate.statistics import is_statistics, read_statistics

    return read_statistics(path) if is_statistics(path) else None


def allocated(
    model: GGUF, recipe: Recipe, budget: dict[str, Any], statistics: Statistics | None, threads: int | None = None
) -> Allocation:
    """Types under the budget.

    Raises
    ------
    UsageError : there are no statistics.
    """
    from ggufkit.calibrate.allocation import allocation, types_of

    if statistics is None:
        needed = "to choose types by their cost needs the statistics of `ggufkit calibrate`, as --imatrix"
        poor = "; an importance matrix does not know what errors cost"
        raise UsageError(needed + (poor if recipe.imatrix is not None else ""))
    return allocation(
        model,
        recipe,
        statistics,
        size=budget["size"],
        bits=budget["bits"],
        like=budget["like"],
        types=types_of(budget["types"]),
        threads=threads,
    )


def as_asked(
    model: GGUF, recipe: Recipe, statistics: Statistics | None, how: dict[str, Any], types: dict[str, str] | None = None
) -> tuple[GGUF, Recipe, Statistics | None]:
    """The model with the other weights that --rotate, or with `types` --fold, asks for; with what belongs to it.

    Parameters
    ----------
    types : tensor name → format; for --fold, which needs to know them.
    """
    wanted = how["rotate"] if types is None else how["fold"]
    if not wanted:
        return model, recipe, statistics
    if types is None:
        if statistics is None:
            raise UsageError("--rotate needs the statistics of `ggufkit calibrate`, as --imatrix")
        from ggufkit.calibrate.rotate import rotated

        found = rotated(model, statistics)
        if more := found.model.tensors.keys() - model.tensors.keys():
            from ggufkit.cli.progress import note

            note(f"the output matrix is no longer that of the embeddings, so the file also has {', '.join(more)}")
    else:
        from ggufkit.calibrate.fold import folded

        found = folded(model, statistics or _poor(recipe, model), types)
    if (given := recipe.imatrix) is not None:
        values = {**given.values, **found.statistics.imatrix(given.path).values}
        recipe = replace(recipe, imatrix=replace(given, values=values))
    return found.model, recipe, None if statistics is None else found.statistics


def _poor(recipe: Recipe, model: GGUF) -> Statistics:
    """What the importance matrix says, with a note of what it does not."""
    from ggufkit.calibrate.poor import poor_statistics
    from ggufkit.cli.progress import note

    if recipe.imatrix is None:
        raise UsageError("--fold needs an importance matrix or the statistics of `ggufkit calibrate`, as --imatrix")
    note("scales are folded by an importance matrix; GPTQ and types under a budget need statistics of calibrate")
    return poor_statistics(recipe.imatrix, model)


def rounded_job(job: Job, model: GGUF, statistics: Statistics | None, how: dict[str, Any]) -> Job:
    """The job with the method that the options ask for."""
    if how["fold"] or how["rotate"]:  # other weights: a run with them cannot go on with one without
        job = replace(job, resume_key=job.resume_key + f" fold {how['fold']} rotate {how['rotate']}".encode())
    method = how["method"] or ("plain" if statistics is None else "gptq")
    if statistics is None:
        if method == "gptq" or how["tune"]:
            what = "GPTQ" if method == "gptq" else "--tune"
            raise UsageError(f"{what} needs the statistics of `ggufkit calibrate`, as --imatrix")
        return job
    from ggufkit.calibrate.job import with_gptq, with_tuned_norms
    from ggufkit.cli.progress import note

    if method == "gptq":
        job = with_gptq(job, model, statistics, streams=how["streams"], sweeps=how["sweeps"], warn=note)
    return with_tuned_norms(job, model, statistics, tell=note) if how["tune"] else job
