"""`ggufkit calibrate`: what quantize wants to know of a model, from one pass over a text."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ggufkit.cli.text import file_tokens
from ggufkit.errors import UsageError, printable

if TYPE_CHECKING:
    import numpy as np

    from ggufkit.calibrate.statistics import Statistics
    from ggufkit.runtime.model import Model

__all__ = ["command"]

_SAVE_EVERY = 60.0  # seconds


@click.command()
@click.argument("source")
@click.option(
    "-f", "--file", "texts", multiple=True, type=click.Path(path_type=Path), help="The text; of several, all of them."
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default=Path("stats.gguf"),
    show_default=True,
    help="The file to write.",
)
@click.option("-c", "--ctx-size", "context", type=int, default=512, show_default=True, help="Tokens a window.")
@click.option("--chunks", type=int, default=None, help="Look at so many windows; default as many as 16384 tokens fill.")
@click.option("--chat", is_flag=True, help="The text is JSON lines of chats, put into the model's template.")
@click.option("--parse-special", is_flag=True, help="Read control tokens in the text as what they are.")
@click.option(
    "--moment-width", "width", type=click.IntRange(64, 1 << 16), help="Columns of a matrix's moment; default 2048."
)
@click.option("--merge", is_flag=True, help="SOURCE and the files of -f are statistics: add them.")
@click.option("-t", "--threads", type=click.IntRange(min=1), help="Default: GGUFKIT_THREADS or all CPUs.")
@click.option(
    "--backend",
    type=click.Choice(["cpu", "mlx"]),
    default="cpu",
    show_default=True,
    help="What multiplies; by the CPU statistics are the same bytes everywhere.",
)
@click.option("--force", is_flag=True, help="Replace the file if it exists.")
def command(
    source: str,
    texts: tuple[Path, ...],
    output: Path,
    context: int,
    chunks: int | None,
    chat: bool,
    parse_special: bool,
    width: int | None,
    merge: bool,
    threads: int | None,
    backend: str,
    force: bool,
) -> None:
    """Learn from a text what errors of SOURCE's weights cost: inputs, their moments, gradients.

    The file is for quantize, as --imatrix: then weights are rounded by GPTQ and types can be chosen under a budget.
    llama-quantize reads it as an importance matrix. Stopped and started again, the work goes on where it was.

    \b
    ggufkit calibrate model-F16.gguf -f text.txt -o stats.gguf
    ggufkit quantize --imatrix stats.gguf --like Q3_K_M model-F16.gguf small.gguf
    """
    from ggufkit.calibrate.fisher import collect
    from ggufkit.calibrate.on_mlx import multiply_on
    from ggufkit.calibrate.statistics import WIDTH, merged, read_statistics, write_statistics
    from ggufkit.calibrate.tape import Tape
    from ggufkit.cli.progress import note, token_bar
    from ggufkit.runtime.model import load

    if output.exists() and not force:
        raise UsageError(f"{printable(output)} exists already; give --force to replace it")
    if not texts:
        raise UsageError("-f is missing: the text, or with --merge more statistics")
    if merge:
        write_statistics(output, merged([read_statistics(path) for path in (Path(source), *texts)]), force=force)
        click.echo(output)
        return
    with load(source, backend=Tape(threads=threads, multiply=multiply_on(backend))) as model:
        windows = _windows(model, texts, context, chunks, chat, parse_special)
        partial = _Partial(output, model, windows, width or WIDTH)
        begun = partial.begun()
        names = tuple(str(path) for path in texts)
        with token_bar(windows.size, "calibrating") as advance:
            if begun is not None:
                advance(begun.windows.size, "")
            found = collect(
                model,
                windows,
                names,
                begun=begun,
                width=width or WIDTH,
                report=lambda tokens: advance(tokens, ""),
                save=partial.save,
            )
    write_statistics(output, found, force=force)
    partial.remove()
    idle = sum(int((sums.counts == 0).sum()) for sums in found.squares.values())
    if idle:
        note(f"{idle} matrices of experts were never used; a longer text might reach them")
    click.echo(output)


def _windows(
    model: Model, texts: tuple[Path, ...], context: int, chunks: int | None, chat: bool, parse_special: bool
) -> np.ndarray:
    """Windows of all texts, one after the other: (count, length) int32, as the model sees them."""
    import numpy as np

    from ggufkit.evaluate.windows import Windows

    tokens: list[int] = []
    for path in texts:
        tokens += file_tokens(model, path, chat=chat, parse_special=parse_special)
    vocab = model.tokenizer.vocab
    bos = vocab.bos if vocab.add_bos else None
    found = Windows(np.array(tokens, np.int32), context, chunks or max(1, 16384 // context), bos)
    return np.stack([seen for seen, _ in found])


class _Partial:
    """What a run leaves behind every minute, for the next one."""

    def __init__(self, output: Path, model: Model, windows: np.ndarray, width: int):
        from ggufkit.jobs.quantize import source_key

        key = hashlib.sha256(source_key(model.gguf) + windows.tobytes() + str(width).encode()).hexdigest()[:16]
        self.path = output.with_name(f"{output.name}.{key}.partial")
        self.windows, self.due = windows, time.monotonic() + _SAVE_EVERY

    def begun(self) -> Statistics | None:
        from ggufkit.calibrate.statistics import read_statistics

        return read_statistics(self.path) if self.path.exists() else None

    def save(self, found: Statistics) -> None:
        from ggufkit.calibrate.statistics import write_statistics

        if time.monotonic() >= self.due and len(found.windows) < len(self.windows):
            write_statistics(self.path, found, force=True)
            self.due = time.monotonic() + _SAVE_EVERY

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
