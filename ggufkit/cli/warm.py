"""`ggufkit warm`: compile kernels before they are needed."""

from __future__ import annotations

import click

from ggufkit.cli.text import cache_options
from ggufkit.errors import UsageError

__all__ = ["command"]


@click.command()
@click.argument("model", required=False)
@click.option("--all", "everything", is_flag=True, help="Compile all kernels: every type, cache and operation.")
@cache_options
def command(model: str | None, everything: bool, types: tuple[str, str]) -> None:
    """Compile the kernels that running MODEL takes, or all of them, for this CPU, and keep them.

    Other verbs do this by themselves when they begin; this is for images and machines that should start quickly.
    Kernels of versions that are not in use any more are removed.

    \b
    ggufkit warm model.gguf
    ggufkit warm model.gguf -ctk q8_0 -ctv q8_0
    """
    from ggufkit.cli.ahead import ready_for_everything, ready_to_run
    from ggufkit.kernels.ahead import prune

    if everything == (model is not None):
        raise UsageError("give either a MODEL or --all")
    count = ready_to_run(model, {"backend": "cpu"}, types) if model is not None else ready_for_everything()
    prune()
    click.echo(f"{count} kernels compiled" if count else "all kernels are ready")
