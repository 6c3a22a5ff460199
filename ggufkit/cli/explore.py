"""`ggufkit explore`: one page about one model, beside another, or about one that is only planned."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from ggufkit.cli.common import human_bytes, model_options, open_model
from ggufkit.errors import UsageError, printable

__all__ = ["command"]


@click.command()
@click.argument("model")
@click.argument("other", required=False)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="The page. Default: MODEL's name with .html, here."
)
@click.option("--as", "type_", metavar="TYPE", help="Show what MODEL, or a checkpoint, would be as TYPE, and why.")
@click.option(
    "--results",
    type=click.Path(path_type=Path),
    help="What `ggufkit compare --json` printed: draw MODEL among others, divergence against size.",
)
@click.option("--no-data", is_flag=True, help="Read the headers alone: no histograms, no errors.")
@click.option(
    "--threads", type=click.IntRange(min=1), help="How many threads work. Default: GGUFKIT_THREADS or all CPUs."
)
@click.option("--force", is_flag=True, help="Replace the page if it exists.")
@model_options
def command(
    model: str,
    other: str | None,
    output: Path | None,
    type_: str | None,
    results: Path | None,
    no_data: bool,
    threads: int | None,
    force: bool,
    how: dict[str, Any],
) -> None:
    """Write a page about MODEL: where its bytes are, which types and why, weights, metadata, tokens, template, memory.

    With OTHER, such as the file that MODEL was made from, also how they differ, and the error of each tensor. Of MODEL
    some rows of each tensor are read, of two models all; of an address only the header. The page needs no network.

    \b
    ggufkit explore model-Q4_K_M.gguf
    ggufkit explore model-Q4_K_M.gguf model-F16.gguf -o beside.html
    ggufkit explore model-BF16.gguf --as Q4_K_M -o plan.html
    ggufkit explore hf://owner/repo/model-Q4_K_M.gguf -o remote.html
    """
    from ggufkit.verbs import plan
    from ggufkit.web.explore import explorer, plan_data
    from ggufkit.web.page import write_page

    target = output or Path(_stem(model) + (f"-{type_}" if type_ else "") + ".html")
    if type_ is not None and (other is not None or results is not None):
        raise UsageError("a plan has no weights to compare yet; leave OTHER and --results out")

    def make() -> str:
        if type_ is not None:
            return explorer(plan_data(plan(model, type_), model, type_))
        return explorer(_read(model, other, results, not no_data, threads, how))

    write_page(make, target, force=force)
    click.echo(f"{printable(target, 4096)}: {human_bytes(target.stat().st_size)}")


def _stem(model: str) -> str:
    name = os.path.basename(model.rstrip("/")).partition("?")[0]
    return name.removesuffix(".gguf") or "model"


def _read(
    model: str, other: str | None, results: Path | None, weights: bool, threads: int | None, how: dict[str, Any]
) -> dict[str, Any]:
    from ggufkit.cli.progress import byte_bar, count_bar
    from ggufkit.gguf.diff import diff_bytes, diff_fields, diff_tensors
    from ggufkit.storage.source import is_address
    from ggufkit.web.explore import beside, model_data

    with open_model(model, how) as opened:
        with count_bar(len(opened.info), "looking at tensors") as advance:
            data = model_data(opened, weights=weights, results=results, advance=advance)
        if other is not None:
            with open_model(other, how) as second:
                local = weights and not is_address(model) and not is_address(other)
                with byte_bar(diff_bytes(second, opened) if local else 0, "comparing") as compared:
                    found = diff_tensors(second, opened, data=local, threads=threads, advance=compared)
                data["other"] = beside(second, diff_fields(second.fields, opened.fields), found)
    return data
