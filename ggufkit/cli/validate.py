"""`ggufkit validate`: everything that is wrong with a model."""

from __future__ import annotations

import sys
from typing import Any

import click

from ggufkit.cli.checkpoints import described, is_checkpoint_folder
from ggufkit.cli.common import echo_json, model_options, open_model
from ggufkit.errors import GGUFError, GgufkitError, printable

__all__ = ["command"]


def _check_folder(file: str, as_json: bool) -> None:
    """Say whether a checkpoint can be converted, and what it is."""
    error, found = "", {}
    try:
        found = described(file)
    except GgufkitError as e:
        error = str(e)
    if as_json:
        findings = [{"level": "error", "message": error, "offset": None}] if error else []
        echo_json({"file": file, "valid": not error, "findings": findings, **found})
    elif error:
        click.echo(f"error: {error}\n{printable(file, 4096)}: broken")
    else:
        click.echo(f"{printable(file, 4096)}: valid, {found['checkpoint']}")
    if error:
        sys.exit(1)


@click.command()
@click.argument("file")
@click.option("--strict", is_flag=True, help="Warnings make the exit code 1, too.")
@click.option("--no-data", is_flag=True, help="Look at the header alone, not at the tensors' numbers.")
@click.option(
    "--threads", type=click.IntRange(min=1), help="How many threads work. Default: GGUFKIT_THREADS or all CPUs."
)
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@model_options
def command(file: str, strict: bool, no_data: bool, threads: int | None, as_json: bool, how: dict[str, Any]) -> None:
    """Check FILE: its structure, tensor data, tokenizer, chat templates and hyperparameters.

    An error means that the file is broken, and the exit code is 1. A warning means that the file is a valid GGUF,
    but that llama.cpp would not load the model or not run it well: numbers that are not finite, ids outside the
    vocabulary, missing hyperparameters, a template that does not compile. Of a checkpoint's folder the settings, names,
    shapes and scales are checked: whatever convert would refuse.

    \b
    ggufkit validate model.gguf
    ggufkit validate --strict --no-data https://example.org/model.gguf
    """
    from ggufkit.cli.progress import byte_bar
    from ggufkit.gguf.validate import check_model, refused

    if is_checkpoint_folder(file):
        _check_folder(file, as_json)
        return
    try:
        model = open_model(file, how)
    except GGUFError as e:
        findings = [refused(e)]
    else:
        total = 0 if no_data else sum(info.nbytes for info in model.info.values())
        with model, byte_bar(total, "checking") as advance:
            findings = check_model(model, data=not no_data, threads=threads, advance=advance)
    broken = any(finding.level == "error" for finding in findings)
    if as_json:
        listed = [{"level": f.level, "message": f.message, "offset": f.offset} for f in findings]
        echo_json({"file": file, "valid": not broken, "findings": listed})
    else:
        for finding in findings:
            click.echo(f"{finding.level}: {finding}")
        verdict = "broken" if broken else "valid"
        count = len(findings) - broken
        more = "" if broken else f", {count or 'no'} warning{'' if count == 1 else 's'}"
        click.echo(f"{printable(file, 4096)}: {verdict}{more}")
    if broken or (strict and findings):
        sys.exit(1)
