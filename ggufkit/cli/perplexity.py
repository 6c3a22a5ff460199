"""`ggufkit perplexity`: llama-perplexity's work, with its flags."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ggufkit.cli.common import echo_json
from ggufkit.cli.prompt import runtime_options
from ggufkit.cli.text import cache_options, file_windows
from ggufkit.errors import UsageError

if TYPE_CHECKING:
    from ggufkit.evaluate.divergence import Divergence
    from ggufkit.evaluate.windows import Windows
    from ggufkit.runtime.model import Model

__all__ = ["command"]


@click.command()
@click.argument("model")
@click.option("-f", "--file", "text", required=True, type=click.Path(path_type=Path), help="The text to read.")
@click.option("-c", "--ctx-size", "context", type=int, default=512, show_default=True, help="Tokens per window.")
@click.option("--chunks", type=int, help="Look at no more than this many windows; default all.")
@click.option(
    "--kl-divergence-base",
    "--save-all-logits",
    "base",
    type=click.Path(path_type=Path),
    help="File of a model's predictions: written, or with --kl-divergence read.",
)
@click.option("--kl-divergence", is_flag=True, help="Compare with the predictions of --kl-divergence-base.")
@cache_options
@runtime_options
@click.option("--force", is_flag=True, help="Replace a file of predictions that exists.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def command(
    model: str,
    text: Path,
    context: int,
    chunks: int | None,
    base: Path | None,
    kl_divergence: bool,
    types: tuple[str, str],
    on: dict[str, Any],
    force: bool,
    as_json: bool,
) -> None:
    """Measure how well MODEL predicts a text, or how far its predictions are from another model's.

    Of each window the second half is predicted. The numbers are llama-perplexity's, and so is the file of predictions.

    \b
    ggufkit perplexity model-F16.gguf -f wiki.test.raw
    ggufkit perplexity model-F16.gguf -f wiki.test.raw --kl-divergence-base base.kld
    ggufkit perplexity model-Q4_K_M.gguf -f wiki.test.raw --kl-divergence-base base.kld --kl-divergence
    """
    from ggufkit.cli.ahead import ready_to_run
    from ggufkit.runtime.model import load

    if kl_divergence and base is None:
        raise UsageError("--kl-divergence compares with a file of predictions; name it with --kl-divergence-base")
    ready_to_run(model, on, types)
    with load(model, **on) as loaded:
        if kl_divergence and base is not None:
            _compare(loaded, base, chunks, types, as_json)
        else:
            windows = file_windows(loaded, text, context, chunks)
            _measure(loaded, windows, base, types, force, as_json)


def _measure(
    model: Model, windows: Windows, base: Path | None, types: tuple[str, str], force: bool, as_json: bool
) -> None:
    import contextlib

    from ggufkit.cli.progress import token_bar
    from ggufkit.evaluate.perplexity import BaseWriter, perplexity
    from ggufkit.storage.files import AtomicFile

    with contextlib.ExitStack() as stack:
        writer = None
        if base is not None:
            output = stack.enter_context(AtomicFile(base, force))
            writer = BaseWriter(output.file, windows, model.vocabulary)
        advance = stack.enter_context(token_bar(windows.tokens.size, "perplexity"))
        found = perplexity(
            model,
            windows,
            base=writer,
            types=types,
            report=lambda tokens, estimate: advance(tokens, f"{estimate.perplexity:.4f}"),
        )
    if as_json:
        echo_json(
            {"perplexity": found.perplexity, "error": found.error, "tokens": found.tokens, "chunks": len(windows)}
        )
    else:
        click.echo(f"Final estimate: PPL = {found.perplexity:.4f} +/- {found.error:.5f}")


def _compare(model: Model, path: Path, chunks: int | None, types: tuple[str, str], as_json: bool) -> None:
    from ggufkit.cli.progress import token_bar
    from ggufkit.evaluate.perplexity import BaseFile, divergence
    from ggufkit.evaluate.windows import bos_of

    base = BaseFile(path)
    windows = base.windows(chunks, bos_of(model.tokenizer))
    with token_bar(windows.tokens.size, "KL divergence") as advance:
        found = divergence(
            model,
            base,
            windows,
            types=types,
            report=lambda tokens, estimate: advance(tokens, f"{estimate.perplexity:.4f}"),
        )
    if as_json:
        echo_json(found.facts())
    else:
        _show(found)


def _show(found: Divergence) -> None:
    from ggufkit.evaluate.divergence import KLD_ROWS, P_ROWS

    facts = found.facts()

    def row(name: str, key: str) -> None:
        click.echo(f"{name:<30}: {facts[key][0]:10.6f} ± {facts[key][1]:10.6f}")

    click.echo("====== Perplexity statistics ======")
    row("Mean PPL(Q)", "perplexity")
    row("Mean PPL(base)", "base_perplexity")
    click.echo(f"Cor(ln(PPL(Q)), ln(PPL(base))): {100 * facts['correlation']:6.2f}%")
    row("Mean ln(PPL(Q)/PPL(base))", "log_ratio")
    row("Mean PPL(Q)/PPL(base)", "ratio")
    row("Mean PPL(Q)-PPL(base)", "difference")
    click.echo("\n====== KL divergence statistics ======")
    click.echo(f"Mean    KLD: {facts['kld'][0]:10.6f} ± {facts['kld'][1]:10.6f}")
    for name, _ in KLD_ROWS:
        click.echo(f"{name} KLD: {facts['kld_quantiles'][name.strip()]:10.6f}")
    click.echo("\n====== Token probability statistics ======")
    click.echo(f"Mean    Δp: {100 * facts['p_difference'][0]:6.3f} ± {100 * facts['p_difference'][1]:5.3f} %")
    for name, _ in P_ROWS:
        click.echo(f"{name} Δp: {100 * facts['p_difference_quantiles'][name.strip()]:6.3f}%")
    rms, same = facts["p_difference_rms"], facts["same_top"]
    click.echo(f"RMS Δp    : {100 * rms[0]:6.3f} ± {100 * rms[1]:5.3f} %")
    click.echo(f"Same top p: {100 * same[0]:6.3f} ± {100 * same[1]:5.3f} %")
