"""`ggufkit quantize`: llama-quantize's work, with its flags."""

from __future__ import annotations

from pathlib import Path

import click

from ggufkit.errors import PolicyError, UsageError

__all__ = ["command"]


@click.command()
@click.argument("arguments", nargs=-1, required=True, metavar="IN [OUT] TYPE [NTHREADS]")
@click.option("--force", is_flag=True, help="Replace OUT if it exists.")
@click.option("--threads", type=click.IntRange(min=1), help="Threads; default all CPUs.")
def command(arguments: tuple[str, ...], force: bool, threads: int | None) -> None:
    """Quantize the GGUF file IN to TYPE: the bytes that llama-quantize writes.

    TYPE is a preset such as Q4_K_M or IQ4_XS, or its number. Without OUT the file is called ggml-model-TYPE.gguf and
    lies beside IN.

    \b
    ggufkit quantize model-BF16.gguf model-Q4_K_M.gguf Q4_K_M
    """
    from ggufkit.cli.progress import progress_bar
    from ggufkit.quantize import quantize

    source, target, type_, nthreads = _positional(arguments)
    for path in quantize(source, target, type_, force=force, threads=threads or nthreads, report=progress_bar):
        click.echo(path)


def _positional(arguments: tuple[str, ...]) -> tuple[str, str, str, int | None]:
    """IN, OUT, TYPE, NTHREADS, where OUT and NTHREADS may be missing."""
    from ggufkit.policy.presets import preset_by_name

    source, *rest = arguments
    if not rest:
        raise UsageError("TYPE is missing, such as Q4_K_M")
    try:
        target = str(Path(source).parent / f"ggml-model-{preset_by_name(rest[0]).name}.gguf")
    except PolicyError:
        if len(rest) == 1:
            raise
        target = rest.pop(0)
    type_, *more = rest
    if len(more) > 1 or not all(n.isascii() and n.isdigit() and int(n) > 0 for n in more):
        raise UsageError(f"after TYPE only the number of threads may follow, not {' '.join(more)}")
    return source, target, type_, int(more[0]) if more else None
