"""`ggufkit formats`: the tensor types, and what each would do to a model's weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ggufkit.cli import noise
from ggufkit.cli.common import echo_json, echo_table, human_count, matrices, model_options, open_model
from ggufkit.errors import UsageError, printable
from ggufkit.formats.table import Format, format_by_name, formats

__all__ = ["command"]


@click.command()
@click.option("--measure", "file", metavar="FILE", help="Encode the weights of a model to each type and compare.")
@click.argument("tensor", required=False)
@click.option("--types", metavar="A,B,…", help="Look at these types alone.")
@click.option(
    "--rows",
    type=click.IntRange(min=0),
    default=1024,
    show_default=True,
    help="With --measure: look at this many rows of each tensor, evenly spread; 0 for all.",
)
@click.option(
    "--threads", type=click.IntRange(min=1), help="How many threads work. Default: GGUFKIT_THREADS or all CPUs."
)
@click.option(
    "--numbers",
    is_flag=True,
    help="Show the noise of FP8 and INT8 instead: on random data, or with --measure on weights.",
)
@click.option(
    "-f",
    "--file",
    "text",
    type=click.Path(path_type=Path),
    help="With --measure and --numbers: on what meets the weights when the model reads this text.",
)
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@model_options
def command(
    file: str | None,
    tensor: str | None,
    types: str | None,
    rows: int,
    threads: int | None,
    numbers: bool,
    text: Path | None,
    as_json: bool,
    how: dict[str, Any],
) -> None:
    """List the tensor types of GGUF; or measure what each would do to the matrices of FILE, or to TENSOR in it.

    The error in the list is rms error over rms weight for normally distributed weights. Types that need an
    importance matrix are measured with equal importance for all columns.

    \b
    ggufkit formats
    ggufkit formats --measure model-f16.gguf blk.0.ffn_down.weight
    ggufkit formats --numbers
    ggufkit formats --measure model-f16.gguf --numbers -f text.txt
    ggufkit formats --measure model-f16.gguf --types Q4_K,Q5_K,Q6_K --json
    """
    chosen = [format_by_name(name.strip()) for name in types.split(",")] if types else formats()
    if text is not None and not (numbers and file):
        raise UsageError("a text is for the activations of a model: --measure FILE --numbers")
    if numbers and types:
        raise UsageError("--types are block formats; leave it out with --numbers")
    if numbers and file is None:
        noise.show_random(as_json)
    elif numbers and text is not None:
        if tensor is not None:
            raise UsageError("activations are those of the whole model; leave out TENSOR")
        noise.show_activations(str(file), text, as_json)
    elif numbers:
        noise.show_weights(str(file), tensor, rows, as_json, how)
    elif file is None:
        if tensor is not None:
            raise UsageError(f"TENSOR {printable(tensor)} needs a model to be in: --measure FILE {printable(tensor)}")
        listing(chosen, as_json)
    else:
        measurement(file, tensor, chosen, rows, threads, as_json, how)


def listing(chosen: list[Format], as_json: bool) -> None:
    from ggufkit.evaluate.format_error import NORMAL_ERROR

    if as_json:
        echo_json([{**facts(format), "normal_error": NORMAL_ERROR.get(format.name)} for format in chosen])
        return
    rows = []
    for format in chosen:
        error = NORMAL_ERROR.get(format.name)
        rows.append(
            (
                format.name,
                format.id,
                f"{format.bits_per_weight:g}",
                format.block_size,
                format.type_size,
                "yes" if format.encodable else "no, activations",
                "yes" if format.needs_importance else "",
                "" if error is None else f"{100 * error:.3g} %",
            )
        )
    head = ("type", "id", "bits per weight", "block", "bytes", "encodable", "needs imatrix", "error, normal")
    echo_table(rows, head, right=(1, 2, 3, 4, 7))


def facts(format: Format) -> dict[str, Any]:
    return {
        "name": format.name,
        "id": format.id,
        "bits_per_weight": format.bits_per_weight,
        "block_size": format.block_size,
        "type_size": format.type_size,
        "encodable": format.encodable,
        "needs_imatrix": format.needs_importance,
    }


def measurement(
    file: str,
    name: str | None,
    chosen: list[Format],
    rows: int,
    threads: int | None,
    as_json: bool,
    how: dict[str, Any],
) -> None:
    from ggufkit.evaluate.format_error import measure_tensors

    wanted = [f for f in chosen if f.encodable and (f.is_quantized or f.name in ("F16", "BF16"))]
    with open_model(file, how) as model:
        tensors = matrices(model, name)
        errors, refused = measure_tensors(tensors, wanted, rows, threads)
    by_size = sorted((f for f in wanted if f.name in errors), key=lambda f: f.bits_per_weight)
    if as_json:
        echo_json(
            {
                "file": model.path,
                "tensors": [tensor.name for tensor in tensors],
                "types": [
                    {
                        **facts(f),
                        "weights": errors[f.name].weights,
                        "rmse": errors[f.name].rmse,
                        "relative": errors[f.name].relative,
                        "sqnr_db": errors[f.name].sqnr,
                        "worst_block_rmse": errors[f.name].worst,
                        "worst_block": dict(zip(("tensor", "row", "column"), errors[f.name].worst_at, strict=True)),
                    }
                    for f in by_size
                ],
                "refused": refused,
            }
        )
        return
    measured = max((error.weights for error in errors.values()), default=0)
    what = printable(name) if name else f"{len(tensors)} tensors"
    click.echo(f"{printable(model.path, 4096)}: {human_count(measured)} weights of {what}")
    table = []
    for f in by_size:
        error = errors[f.name]
        tensor, row, column = error.worst_at
        where = f"{printable(tensor)} row {row} column {column}" if error.worst else ""
        table.append(
            (
                f.name,
                f"{f.bits_per_weight:g}",
                f"{error.rmse:.3g}",
                f"{100 * error.relative:.3g} %",
                f"{error.sqnr:.1f} dB",
                f"{error.worst:.3g}",
                where,
            )
        )
    head = ("type", "bits per weight", "rmse", "of rms", "SQNR", "worst block", "where")
    echo_table(table, head, right=range(1, 6))
    for reason in refused.values():
        click.echo(f"  not measured: {reason}")
