"""`ggufkit inspect`: what is in a model."""

from __future__ import annotations

import sys
from collections.abc import Callable
from fnmatch import fnmatchcase
from math import prod
from typing import Any

import click

from ggufkit.cli.checkpoints import described, is_checkpoint_folder
from ggufkit.cli.common import (
    echo_json,
    echo_table,
    human_bytes,
    human_count,
    matrices,
    model_options,
    open_model,
    show_item,
    show_shape,
    show_value,
)
from ggufkit.errors import UsageError, printable
from ggufkit.gguf.header import Field
from ggufkit.gguf.reader import GGUF
from ggufkit.gguf.summary import ranges, roles, summary, type_shares

__all__ = ["command"]


@click.command()
@click.argument("file")
@click.option("--summary", "only_summary", is_flag=True, help="Show the summary alone.")
@click.option("--kv", metavar="GLOB", help="Show the metadata whose keys match, e.g. 'tokenizer.*'.")
@click.option("--tensors", "only_tensors", is_flag=True, help="Show the table of all tensors.")
@click.option("--map", "only_map", is_flag=True, help="Draw which layer has how many bits in which role.")
@click.option("--histogram", metavar="TENSOR", help="Draw how the weights of a tensor are spread.")
@click.option("--json", "as_json", is_flag=True, help="Everything as JSON, arrays without their items.")
@click.option("--json-array", is_flag=True, help="Everything as JSON, arrays with their items.")
@click.option("--partial", is_flag=True, help="Also a download that was only begun, and what is missing.")
@model_options
def command(
    file: str,
    only_summary: bool,
    kv: str | None,
    only_tensors: bool,
    only_map: bool,
    histogram: str | None,
    as_json: bool,
    json_array: bool,
    partial: bool,
    how: dict[str, Any],
) -> None:
    """Show what is in FILE: a summary, the types by layer, the metadata and the tensors.

    FILE is a GGUF, any shard of a split one, or an address (https://…, hf://owner/repo/file). Only the header is
    read. With --summary, --kv, --tensors or --map only these parts are shown; a terminal gets the map, too. Of a
    checkpoint's folder one line says what it is, and how it is quantized.

    \b
    ggufkit inspect model.gguf
    ggufkit inspect --kv 'tokenizer.chat_template' model.gguf
    ggufkit inspect --map model.gguf
    ggufkit inspect --histogram blk.0.ffn_down.weight model.gguf
    ggufkit inspect --partial model.gguf.part
    """
    if is_checkpoint_folder(file):
        found = described(file)
        if as_json or json_array:
            echo_json({"filename": file, **found})
        else:
            click.echo(f"{printable(file, 4096)}: {found['checkpoint']}; {human_count(found['weights'])} weights")
        return
    with open_model(file, {**how, "partial": partial}) as model:
        if as_json or json_array:
            echo_json(as_dict(model, kv, json_array))
            return
        if histogram is not None:
            _echo_histogram(model, histogram)
            return
        everything = not (only_summary or kv or only_tensors or only_map)
        if everything or only_summary:
            echo_summary(model)
            echo_missing(model)
            echo_types(model)
        if only_map or (everything and sys.stdout is not None and sys.stdout.isatty()):
            from ggufkit.cli.model_map import echo_map

            if not echo_map(model, "\nmap" if everything else "map") and only_map:
                raise UsageError(f"{printable(model.path)} has no layers to draw")
        if everything or kv:
            echo_metadata(model, kv or "*", whole=bool(kv))
        if everything or only_tensors:
            echo_tensors(model)


def _echo_histogram(model: GGUF, name: str) -> None:
    from ggufkit.cli.model_map import echo_histogram
    from ggufkit.evaluate.histogram import histogram

    (tensor,) = matrices(model, name)
    echo_histogram(name, tensor.format.name, histogram(tensor))


def section(title: str) -> None:
    click.echo(f"\n{title}")


def echo_summary(model: GGUF) -> None:
    facts = summary(model)
    click.echo(printable(model.path, 4096))
    order = "" if model.byteorder == "little" else ", big-endian"
    size = f"{human_bytes(facts.pop('size'))}, GGUF v{model.version}{order}, alignment {model.alignment}"
    files = facts.pop("files")
    rows = [("size", size if files == 1 else f"{size}, {files} files")]
    shown: dict[str, Callable[[Any], str]] = {
        "parameters": lambda n: f"{human_count(n)} ({n})",
        "bytes": human_bytes,
        "bits_per_weight": lambda bits: f"{bits:.2f}",
    }
    names = {"bytes": "data", "bits_per_weight": "bits per weight"}
    for name, value in facts.items():
        text = shown.get(name, show_item)(value)
        rows.append((names.get(name, name.replace("_", " ")), text))
    for name, text in rows:
        click.echo(f"  {name:<20}{text}")


def missing(model: GGUF) -> dict[str, int]:
    """Tensors whose data is not all there → bytes that are missing."""
    found = {}
    for name, info in model.info.items():
        lacking = model.file_offset(name) + info.nbytes - model.part_of(name).source.size
        if lacking > 0:
            found[name] = min(lacking, info.nbytes)
    return found


def echo_missing(model: GGUF) -> None:
    lacking = missing(model)
    if lacking:
        total = sum(info.nbytes for info in model.info.values())
        gone = sum(lacking.values())
        click.echo(
            f"  {'missing':<20}{len(lacking)} of {len(model.info)} tensors, {human_bytes(gone)} of "
            f"{human_bytes(total)} ({100 * gone / total:.0f} %); the first is {printable(next(iter(lacking)))}"
        )


def echo_types(model: GGUF) -> None:
    shares = type_shares(model.info.values())
    if not shares:
        return
    section("types")
    total = sum(share.nbytes for share in shares) or 1
    rows = [
        (s.format, s.tensors, human_count(s.weights), human_bytes(s.nbytes), f"{100 * s.nbytes / total:.1f} %")
        for s in shares
    ]
    echo_table(rows, ("type", "tensors", "weights", "bytes", "share"), right=range(1, 5))

    section("types by layer")
    rows_by_role = []
    for role in roles(model.info.values()):
        types = [
            f"{name} {', '.join(ranges(layers))}" if layers else name
            for name, layers in sorted(role.layers.items(), key=lambda item: item[1])
        ]
        shapes = list(dict.fromkeys(show_shape(info.shape) for info in role.infos))
        rows_by_role.append((printable(role.name), shapes[0] + (" …" if len(shapes) > 1 else ""), "; ".join(types)))
    echo_table(rows_by_role, ("tensor", "shape", "type and layers"))


def echo_metadata(model: GGUF, glob: str, whole: bool) -> None:
    fields = matching(model, glob)
    if whole and len(fields) == 1:
        # One key asked for: its value in full length, line breaks included.
        (field,) = fields
        items = list(field.items())
        click.echo(f"{printable(field.key)}  {field.describe()}")
        for item in items:
            for line in str(item).split("\n") if isinstance(item, str) else [show_item(item)]:
                click.echo("  " + printable(line, 1 << 20))
        return
    section(f"metadata ({len(fields)} keys)")
    rows = [(printable(f.key), f.describe(), show_value(f)) for f in fields]
    echo_table(rows, ("key", "type", "value"))


def matching(model: GGUF, glob: str | None) -> list[Field]:
    return [field for key, field in model.fields.items() if glob is None or fnmatchcase(key, glob)]


def echo_tensors(model: GGUF) -> None:
    section(f"tensors ({len(model.info)})")
    rows = [
        (printable(name), info.format.name, show_shape(info.shape), human_bytes(info.nbytes), model.file_offset(name))
        for name, info in model.info.items()
    ]
    echo_table(rows, ("tensor", "type", "shape", "bytes", "offset"), right=(3, 4))


def as_dict(model: GGUF, glob: str | None, arrays: bool) -> dict[str, Any]:
    """The model as gguf-dump's JSON has it (shapes in GGUF's order), with a summary."""
    metadata: dict[str, Any] = {}
    for i, field in enumerate(matching(model, glob)):
        entry: dict[str, Any] = {"index": i, "type": field.type.name, "offset": field.offset}
        if field.item_type is not None:
            entry |= {"array_types": [field.item_type.name], "count": len(field)}
        if field.item_type is None or arrays:
            entry["value"] = field.value
        metadata[field.key] = entry
    tensors = {
        name: {
            "index": i,
            "shape": list(reversed(info.shape)),
            "type": info.format.name,
            "weights": prod(info.shape),
            "bytes": info.nbytes,
            "offset": model.file_offset(name),
            "file": model.part_of(name).source.name,
        }
        for i, (name, info) in enumerate(model.info.items())
    }
    types = {
        s.format: {"tensors": s.tensors, "weights": s.weights, "bytes": s.nbytes}
        for s in type_shares(model.info.values())
    }
    return {
        "filename": model.path,
        "version": model.version,
        "endian": model.byteorder.upper(),
        "alignment": model.alignment,
        "summary": summary(model),
        **({"missing": lacking} if (lacking := missing(model)) else {}),
        "types": types,
        "metadata": metadata,
        "tensors": tensors,
    }
