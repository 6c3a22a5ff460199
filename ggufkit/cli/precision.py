"""Options that say what becomes of each tensor, shared by convert, quantize and plan.

The flags are llama-quantize's, and mean what they mean there.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ggufkit.checkpoint.packed import INEXACT
from ggufkit.cli.common import SIZE
from ggufkit.errors import UsageError, printable
from ggufkit.storage.source import is_address

if TYPE_CHECKING:
    from ggufkit.calibrate.allocation import Allocation
    from ggufkit.importance.imatrix_file import Imatrix
    from ggufkit.jobs.job import Job
    from ggufkit.policy.recipe import Recipe

__all__ = [
    "checkpoint_type",
    "gathered",
    "imatrix_of",
    "imatrix_options",
    "inexact_option",
    "output_options",
    "precision_options",
    "recipe_from",
    "run",
    "target_beside",
    "with_options",
]

_FILE = click.Path(path_type=Path)

_IMPORTANCE = [
    click.option(
        "--imatrix",
        type=_FILE,
        metavar="FILE",
        help="Importance matrix, GGUF or .dat; `ggufkit imatrix` makes one, and `ggufkit calibrate` more than that.",
    ),
    click.option(
        "--include-weights",
        multiple=True,
        metavar="NAME",
        help="Use the importance matrix only for tensors whose names contain NAME.",
    ),
    click.option(
        "--exclude-weights",
        multiple=True,
        metavar="NAME",
        help="Do not use the importance matrix for tensors whose names contain NAME.",
    ),
]

_PRECISION = [
    *_IMPORTANCE,
    click.option("--policy", type=_FILE, metavar="FILE", help="Rules in a TOML file; see `ggufkit help policy-files`."),
    click.option(
        "--tensor-type", multiple=True, metavar="REGEX=TYPE", help="Type of the tensors whose names match: attn_q=Q8_0."
    ),
    click.option(
        "--tensor-type-file",
        multiple=True,
        type=_FILE,
        metavar="FILE",
        help="A file of REGEX=TYPE, separated by spaces or lines; tried after --tensor-type.",
    ),
    click.option("--output-tensor-type", metavar="TYPE", help="Type of output.weight."),
    click.option("--token-embedding-type", metavar="TYPE", help="Type of the token embeddings."),
    click.option("--leave-output-tensor", is_flag=True, help="Keep output.weight as it is."),
    click.option("--pure", is_flag=True, help="One type for all tensors, without the preset's mix."),
    click.option(
        "--allow-requantize",
        "--requantize",
        is_flag=True,
        help="Accept tensors that are quantized already; quality suffers.",
    ),
    click.option(
        "--lattice",
        type=click.Choice(("auto", "on", "off")),
        help="Keep the scales of tensors that were trained for Q4_0, Q8_0 and the like. Default: auto, where nine in "
        "ten blocks have such.",
    ),
    click.option("--prune-layers", metavar="L0,L1,…", help="Leave these layers out."),
    click.option(
        "--override-kv",
        multiple=True,
        metavar="KEY=TYPE:VALUE",
        help="Set a key of the metadata; TYPE is int, float, bool or str.",
    ),
]

# What becomes of matrices of quantized checkpoints that no block holds: of convert and plan.
inexact_option = click.option(
    "--inexact",
    type=click.Choice(INEXACT, case_sensitive=False),
    help="What matrices of a quantized checkpoint become that no block holds exactly. step: the smallest type that "
    "rounds by less than their own steps; F16, BF16, F32; preset: what TYPE says. Default: step for auto, else preset.",
)

_OUTPUT = [
    click.option("--force", is_flag=True, help="Replace the output if it exists."),
    click.option(
        "--threads", type=click.IntRange(min=1), help="How many threads work. Default: GGUFKIT_THREADS or all CPUs."
    ),
    click.option(
        "--memory", type=SIZE, default="512M", show_default=True, metavar="SIZE", help="Memory that buffers may take."
    ),
    click.option("--dry-run", is_flag=True, help="Write nothing; show the plan as `ggufkit plan` does."),
    click.option("--json", "as_json", is_flag=True, help="The plan as JSON."),
]


def precision_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that choose types; the command gets them as one dict, `precision`, for `recipe_from`."""
    return with_options(_PRECISION, gathered(_PRECISION, "precision", command))


def imatrix_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of the importance matrix alone; one dict, `importance`, for `imatrix_of`."""
    return with_options(_IMPORTANCE, gathered(_IMPORTANCE, "importance", command))


def output_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of writing: `force`, `threads`, `memory`, `dry_run`, `as_json`."""
    return with_options(_OUTPUT, command)


def with_options(options: list[Any], command: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(options):
        command = option(command)
    return command


def gathered(options: list[Any], name: str, command: Callable[..., Any]) -> Callable[..., Any]:
    """`command`, which gets the values of `options` as one dict."""
    names = [parameter.name for parameter in click.command()(with_options(options, lambda: None)).params]

    @functools.wraps(command)
    def wrapped(**arguments: Any) -> Any:
        return command(**{name: {key: arguments.pop(key) for key in names}}, **arguments)

    return wrapped


def checkpoint_type(type_: str | None, precision: dict[str, Any]) -> str | Recipe:
    """What the options ask a checkpoint to become: `convert.convert`'s type.

    F16, Q8_0 and the like are the converter's own types, until an option asks for llama-quantize's work.
    """
    plain = not any(precision.values())
    if type_ is None or type_.lower() == "auto":
        return "auto" if plain else recipe_from(None, precision, default="COPY")
    return type_ if plain else recipe_from(type_, precision)


def recipe_from(type_: str | None, precision: dict[str, Any], default: str | None = None) -> Recipe:
    """What the options ask for.

    Parameters
    ----------
    type_ : the preset's name; None for the policy file's base.
    default : where the policy has none either.

    Raises
    ------
    GgufkitError : an option is malformed, or a file cannot be read.
    UsageError : options contradict each other, or there is no type.
    """
    from dataclasses import replace

    from ggufkit.policy.custom import (
        layer_numbers,
        metadata_override,
        target_format,
        tensor_type_file,
        tensor_type_rule,
    )
    from ggufkit.policy.policy_file import read_policy
    from ggufkit.policy.recipe import recipe_of

    policy = read_policy(precision["policy"]) if precision["policy"] else None
    if type_ is not None:
        recipe = recipe_of(type_)
    elif policy is not None and policy.base is not None:
        recipe = recipe_of(policy.base.name)
    elif default is not None:
        recipe = recipe_of(default)
    else:
        raise UsageError("TYPE is missing, such as Q4_K_M")
    rules = [tensor_type_rule(text, f"--tensor-type {printable(text)}") for text in precision["tensor_type"]]
    for path in precision["tensor_type_file"]:
        rules += tensor_type_file(path)
    if policy is not None:
        rules += policy.rules
    output, token_embd = precision["output_tensor_type"], precision["token_embedding_type"]
    pruned = precision["prune_layers"]
    return replace(
        recipe,
        rules=tuple(rules),
        leave_output=precision["leave_output_tensor"],
        pure=precision["pure"],
        output=target_format(output, "--output-tensor-type") if output else None,
        token_embd=target_format(token_embd, "--token-embedding-type") if token_embd else None,
        imatrix=imatrix_of(precision),
        allow_requantize=precision["allow_requantize"],
        prune_layers=layer_numbers(pruned, "--prune-layers") if pruned else (),
        lattice=precision["lattice"] or "auto",
        overrides=tuple(metadata_override(text, "--override-kv") for text in precision["override_kv"]),
    )


def target_beside(source: str, recipe: Recipe) -> Path:
    """The output's path where none is given, as llama-quantize names it; of a remote source in the current folder."""
    name = f"ggml-model-{recipe.name}.gguf"
    return Path(name) if is_address(source) else Path(source).with_name(name)


def imatrix_of(precision: dict[str, Any]) -> Imatrix | None:
    """The importance matrix that the options name, or None.

    Raises
    ------
    GgufkitError : it cannot be read.
    UsageError : options contradict each other.
    """
    include, exclude = precision["include_weights"], precision["exclude_weights"]
    if include and exclude:
        raise UsageError("--include-weights and --exclude-weights cannot be used together")
    if precision["imatrix"] is None:
        if include or exclude:
            raise UsageError("--include-weights and --exclude-weights need an --imatrix")
        return None
    from ggufkit.importance.imatrix_file import read_imatrix

    return read_imatrix(precision["imatrix"]).selected(include, exclude)


def run(
    job: Job,
    found: Allocation | None = None,
    *,
    dry_run: bool,
    as_json: bool,
    force: bool,
    threads: int | None,
    memory: int,
) -> None:
    """Write the output, or show its plan, as the options of `output_options` say. found: see `echo_plan`."""
    from ggufkit.cli.ahead import ready_to_write
    from ggufkit.cli.progress import note, progress_bar
    from ggufkit.cli.show_plan import echo_plan

    if dry_run:
        return echo_plan(job, as_json, found=found)
    for remark in job.plan.notes:
        note(remark)
    ready_to_write(job)
    paths = job.write(force=force, threads=threads, memory=memory, report=progress_bar)
    if as_json:
        return echo_plan(job, as_json, found=found)
    for path in paths:
        click.echo(path)
    return None
