"""`ggufkit verify`: is a quantized model what llama.cpp's algorithms make of its source?"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from ggufkit.cli.common import echo_json, echo_table, open_model
from ggufkit.cli.precision import imatrix_of, imatrix_options
from ggufkit.errors import printable

if TYPE_CHECKING:
    from ggufkit.evaluate.verify import Verdict

__all__ = ["command"]


@click.command()
@click.argument("source", metavar="SRC")
@click.argument("quantized", metavar="QUANT")
@imatrix_options
@click.option("--sample", is_flag=True, help="Look at a few rows of each tensor only.")
@click.option(
    "--threads", type=click.IntRange(min=1), help="How many threads work. Default: GGUFKIT_THREADS or all CPUs."
)
@click.option("--json", "as_json", is_flag=True, help="As JSON, with the tensors that are exact.")
def command(
    source: str,
    quantized: str,
    importance: dict[str, Any],
    sample: bool,
    threads: int | None,
    as_json: bool,
) -> None:
    """Encode the weights of SRC again, and say which tensors of the GGUF file QUANT are exactly that.

    SRC is the GGUF file or the checkpoint's folder that QUANT was made from. Where an importance matrix was used, the
    same has to be given. Exits with 1 if a tensor differs, is missing, or cannot be checked.

    \b
    ggufkit verify model-BF16.gguf model-Q4_K_M.gguf
    ggufkit verify Llama-3.2-1B model-IQ3_XXS.gguf --imatrix imatrix.gguf --sample
    """
    from ggufkit.checkpoint.folder import is_checkpoint
    from ggufkit.cli.progress import progress_bar
    from ggufkit.evaluate.verify import verify

    imatrix = imatrix_of(importance)
    with open_model(quantized) as model:
        if is_checkpoint(source):
            from ggufkit.jobs.convert import as_gguf, plan_convert

            checkpoint = as_gguf(source)
            through = {p.tensor.name: p.result for p in plan_convert(checkpoint).tensors}
            # llama.cpp's converter encodes Q8_0 from the weights themselves, llama-quantize from the 16-bit file.
            sources = [through, checkpoint.tensors]
            verdicts = verify(sources, model.tensors, imatrix, sample=sample, threads=threads, report=progress_bar)
        else:
            with open_model(source) as original:
                sources = [original.tensors]
                verdicts = verify(sources, model.tensors, imatrix, sample=sample, threads=threads, report=progress_bar)
        used = model.metadata.get("quantize.imatrix.file")
    inexact = [v for v in verdicts if not v.exact]
    note = ""
    if inexact and imatrix is None and used is not None:
        note = f"it was made with the importance matrix {printable(used)}; give that as --imatrix"
    if as_json:
        echo_json({"exact": not inexact, "note": note, "tensors": [_as_dict(v) for v in verdicts]})
    else:
        _echo(verdicts, inexact, sample, note)
    if inexact:
        sys.exit(1)


def _echo(verdicts: list[Verdict], inexact: list[Verdict], sample: bool, note: str) -> None:
    different = [v for v in inexact if not v.problem]
    if different:
        rows = [
            (
                printable(v.name),
                f"{v.source} → {v.format}",
                f"{v.different} of {v.blocks}",
                f"{v.relative(v.distance):.3g}",
                f"{v.largest:.3g}",
                f"{v.relative(v.error):.4g}",
                f"{v.relative(v.best_error):.4g}",
            )
            for v in different
        ]
        head = ("tensor", "type", "blocks differ", "distance", "largest", "error", "llama.cpp's")
        echo_table(rows, head, right=range(2, 7))
        click.echo("  distance and errors: rms over rms weight, in the rows that differ\n")
    for v in inexact:
        if v.problem:
            click.echo(f"  {printable(v.name)}: {printable(v.problem, 400)}")
    if note:
        click.echo(f"  {note}")
    rows_said = " in the rows looked at" if sample else ""
    click.echo(
        f"  {len(verdicts) - len(inexact)} of {len(verdicts)} tensors are exactly what llama.cpp makes{rows_said}"
    )


def _as_dict(v: Verdict) -> dict[str, Any]:
    known: dict[str, Any] = {"name": v.name, "source": v.source, "type": v.format, "exact": v.exact}
    if v.problem:
        return {**known, "problem": v.problem}
    known |= {"blocks": v.blocks, "different": v.different}
    if v.different:
        known |= {
            "distance": v.relative(v.distance),
            "largest": v.largest,
            "error": v.relative(v.error),
            "best_error": v.relative(v.best_error),
        }
    return known
