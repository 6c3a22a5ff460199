"""`ggufkit diff`: how two models differ."""

from __future__ import annotations

import sys
from collections import Counter
from typing import Any

import click

from ggufkit.cli.common import echo_json, echo_table, model_options, open_model, show_shape, show_value
from ggufkit.errors import printable
from ggufkit.gguf.diff import FieldDiff, TensorDiff, diff_bytes, diff_fields, diff_tensors
from ggufkit.gguf.header import Field

__all__ = ["command"]


@click.command()
@click.argument("a")
@click.argument("b")
@click.option("--no-data", is_flag=True, help="Compare the headers alone, not the tensors' contents.")
@click.option("--all", "all_tensors", is_flag=True, help="List identical tensors, too.")
@click.option("--summary", is_flag=True, help="Show only how many keys and tensors differ, and the largest errors.")
@click.option("--exit-code", is_flag=True, help="Exit with 1 when the models differ.")
@click.option(
    "--threads", type=click.IntRange(min=1), help="How many threads work. Default: GGUFKIT_THREADS or all CPUs."
)
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@model_options
def command(
    a: str,
    b: str,
    no_data: bool,
    all_tensors: bool,
    summary: bool,
    exit_code: bool,
    threads: int | None,
    as_json: bool,
    how: dict[str, Any],
) -> None:
    """Compare the models A and B: metadata, and the type, shape and contents of each tensor.

    Contents are compared as numbers where their types differ: the error is the root mean square of the difference
    over that of A's weights.

    \b
    ggufkit diff model-f16.gguf model-Q4_K_M.gguf
    ggufkit diff --summary model-f16.gguf model-Q4_K_M.gguf
    """
    from ggufkit.cli.progress import byte_bar

    with open_model(a, how) as one, open_model(b, how) as other:
        fields = diff_fields(one.fields, other.fields)
        with byte_bar(0 if no_data else diff_bytes(one, other), "comparing") as advance:
            tensors = diff_tensors(one, other, data=not no_data, threads=threads, advance=advance)
        if as_json:
            echo_json(
                {"a": a, "b": b, "metadata": list(map(field_facts, fields)), "tensors": list(map(facts, tensors))}
            )
        else:
            click.echo(f"A  {printable(a, 4096)}")
            click.echo(f"B  {printable(b, 4096)}")
            if summary:
                echo_summary(fields, tensors)
            else:
                echo_fields(fields)
                echo_tensors(tensors, all_tensors)
    if exit_code and (fields or any(t.status not in ("identical", "same type") for t in tensors)):
        sys.exit(1)


def echo_summary(fields: list[FieldDiff], tensors: list[TensorDiff]) -> None:
    """How many differ, and of each pair of types the mean and the largest error."""
    kinds = Counter("added" if f.a is None else "removed" if f.b is None else "changed" for f in fields)
    click.echo(f"  metadata  {', '.join(f'{n} {kind}' for kind, n in kinds.items()) or 'the same'}")
    counts = Counter(tensor.status for tensor in tensors)
    click.echo(f"  tensors   {', '.join(f'{n} {status}' for status, n in counts.items()) or 'none'}")
    by_type: dict[str, list[TensorDiff]] = {}
    for t in tensors:
        if t.a is not None and t.b is not None and t.status in ("differs", "requantized"):
            by_type.setdefault(f"{t.a.format.name} → {t.b.format.name}", []).append(t)
    if by_type:
        rows = [(types, len(some), *_errors(some)) for types, some in by_type.items()]
        click.echo()
        echo_table(rows, ("types", "tensors", "of rms, mean", "greatest", "tensor"), right=(1, 2, 3))


def _errors(tensors: list[TensorDiff]) -> tuple[str, str, str]:
    worst = max(tensors, key=lambda t: t.relative)
    mean = sum(t.relative for t in tensors) / len(tensors)
    return f"{100 * mean:.3g} %", f"{100 * worst.relative:.3g} %", printable(worst.name)


def echo_fields(fields: list[FieldDiff]) -> None:
    click.echo(f"\nmetadata ({len(fields)} keys differ)")
    for field in fields:
        key = printable(field.key)
        if field.a is None or field.b is None:
            sign, only = ("+", field.b) if field.a is None else ("-", field.a)
            click.echo(f"  {sign} {key}  {shown(only)}")
        elif field.first is not None:
            what = f"{field.items} items differ, the first is {field.first}"
            click.echo(f"  ~ {key}  {field.a.describe()} → {field.b.describe()}: {what}")
        else:
            click.echo(f"  ~ {key}  {shown(field.a)} → {shown(field.b)}")


def shown(field: Field | None) -> str:
    return "" if field is None else f"{field.describe()} {show_value(field)}"


def echo_tensors(tensors: list[TensorDiff], everything: bool) -> None:
    counts = Counter(tensor.status for tensor in tensors)
    click.echo(f"\ntensors ({', '.join(f'{n} {status}' for status, n in counts.items()) or 'none'})")
    rows = []
    for t in tensors:
        if t.status in ("identical", "same type") and not everything:
            continue
        types = [info.format.name for info in (t.a, t.b) if info is not None]
        shapes = [show_shape(info.shape) for info in (t.a, t.b) if info is not None]
        numbers = ("", "", "")
        if t.status in ("differs", "requantized"):
            numbers = (f"{t.rms:.3g}", f"{100 * t.relative:.3g} %", f"{t.largest:.3g}")
        pairs = [" → ".join(dict.fromkeys(pair)) for pair in (types, shapes)]
        rows.append((printable(t.name), t.status, *pairs, *numbers))
    if rows:
        echo_table(rows, ("tensor", "contents", "type", "shape", "rms", "of rms", "largest"), right=(4, 5, 6))


def field_facts(field: FieldDiff) -> dict[str, Any]:
    facts: dict[str, Any] = {"key": field.key}
    for name, pair in (("a", field.a), ("b", field.b)):
        if pair is not None:
            facts[name] = {"type": pair.describe(), **({} if pair.item_type else {"value": pair.value})}
    if field.first is not None:
        facts |= {"items": field.items, "first": field.first}
    return facts


def facts(tensor: TensorDiff) -> dict[str, Any]:
    facts: dict[str, Any] = {"name": tensor.name, "contents": tensor.status}
    for name, info in (("a", tensor.a), ("b", tensor.b)):
        if info is not None:
            facts[name] = {"type": info.format.name, "shape": list(reversed(info.shape))}
    if tensor.status in ("differs", "requantized"):
        facts |= {"rms": tensor.rms, "relative_rms": tensor.relative, "largest": tensor.largest}
    return facts
