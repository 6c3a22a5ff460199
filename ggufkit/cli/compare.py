"""`ggufkit compare`: what each byte buys, of several models of one source."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ggufkit.cli.common import echo_json, echo_table, human_bytes
from ggufkit.cli.prompt import runtime_options
from ggufkit.cli.text import cache_options, file_windows
from ggufkit.errors import UsageError, printable

if TYPE_CHECKING:
    from ggufkit.evaluate.compare import Comparison

__all__ = ["command"]


@click.command()
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@click.option("--base", required=True, metavar="SOURCE", help="The model that they were made from.")
@click.option("-f", "--file", "text", required=True, type=click.Path(path_type=Path), help="The text to read.")
@click.option("-c", "--ctx-size", "context", type=int, default=512, show_default=True, help="Tokens per window.")
@click.option("--chunks", type=int, help="Look at no more than this many windows; default all.")
@click.option(
    "--plot", type=click.Path(path_type=Path), help="Draw KL divergence against size into this file: .svg or .html."
)
@cache_options
@runtime_options
@click.option("--force", is_flag=True, help="Replace a plot that exists.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def command(
    models: tuple[str, ...],
    base: str,
    text: Path,
    context: int,
    chunks: int | None,
    plot: Path | None,
    types: tuple[str, str],
    on: dict[str, Any],
    force: bool,
    as_json: bool,
) -> None:
    """Compare MODELs with the SOURCE that they were made from: bytes, KL divergence, perplexity, in one table.

    SOURCE reads the text once. The numbers are llama-perplexity's: of each window the second half is predicted, KLD is
    the mean divergence from SOURCE in nats per token, with its standard error and percentiles; same top is how often
    the most likely token is the same.

    \b
    ggufkit compare model-Q4_K_M.gguf model-IQ3_XXS.gguf --base model-F16.gguf -f wiki.test.raw -c 256
    ggufkit compare model-Q4_K_M.gguf model-IQ3_XXS.gguf --base model-F16.gguf -f wiki.test.raw -c 256 --plot curve.svg
    """
    import contextlib

    from ggufkit.cli.ahead import ready_to_run
    from ggufkit.cli.progress import token_bar
    from ggufkit.evaluate.compare import compare
    from ggufkit.runtime.model import load

    if plot is not None:
        _check(plot, force)
    for path in (base, *models):
        ready_to_run(path, on, types)
    with contextlib.ExitStack() as stack:
        source, *others = (stack.enter_context(load(path, **on)) for path in (base, *models))
        windows = file_windows(source, text, context, chunks)
        with token_bar(windows.tokens.size * (1 + len(others)), "comparing") as advance:
            found = compare(source, others, windows, types=types, report=advance)
    if plot is not None:
        _draw(found, plot, force)
    if as_json:
        echo_json({"text": str(text), "context": context, "chunks": len(windows), **found.as_json()})
    else:
        _show(found)


def _check(plot: Path, force: bool) -> None:
    if plot.suffix.lower() not in (".svg", ".html"):
        raise UsageError(f"--plot draws .svg or .html, not {printable(plot.name)}")
    if plot.exists() and not force:
        raise UsageError(f"{printable(plot)} exists already; give --force to replace it")


def _draw(found: Comparison, path: Path, force: bool) -> None:
    from ggufkit.errors import os_errors
    from ggufkit.evaluate.plot import as_page, as_svg
    from ggufkit.storage.files import AtomicFile

    title = f"{printable(Path(found.path).name.removesuffix('.gguf'), 60)}: KL divergence by size"
    drawn = (as_page if path.suffix.lower() == ".html" else as_svg)(found, title).encode()
    with AtomicFile(path, force) as output, os_errors(path, "write"):
        left = memoryview(drawn)
        while left:
            left = left[output.file.write(left) :]


def _show(found: Comparison) -> None:
    head = ("model", "size", "bpw", "KLD", "±", "median", "90 %", "99 %", "99.9 %", "same top", "perplexity", "±")
    rows: list[tuple[str, ...]] = [
        (
            printable(Path(found.path).name, 40),
            human_bytes(found.nbytes),
            f"{found.bpw:.2f}",
            *[""] * 7,
            f"{found.estimate.perplexity:.4f}",
            f"{found.estimate.error:.4f}",
        )
    ]
    for model in found.models:
        facts = model.divergence.facts()
        quantiles = facts["kld_quantiles"]
        rows.append(
            (
                printable(Path(model.path).name, 40),
                human_bytes(model.nbytes),
                f"{model.bpw:.2f}",
                *(f"{value:.5f}" for value in facts["kld"]),
                *(f"{quantiles[name]:.5f}" for name in ("Median", "90.0%", "99.0%", "99.9%")),
                f"{100 * facts['same_top'][0]:.2f} %",
                *(f"{value:.4f}" for value in facts["perplexity"]),
            )
        )
    echo_table(rows, head, right=range(1, len(head)))
