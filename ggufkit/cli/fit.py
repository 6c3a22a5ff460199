"""`ggufkit fit`: how much memory a model takes, and what would fit."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from ggufkit.cli.common import echo_json, echo_table, human_bytes
from ggufkit.cli.text import cache_options
from ggufkit.errors import UsageError, printable
from ggufkit.memory.setup import ENGINES

if TYPE_CHECKING:
    from ggufkit.memory.family import Size
    from ggufkit.memory.report import Fit

__all__ = ["command"]

_NAMES = {"cpu": "ggufkit on the CPU", "mlx": "ggufkit on MLX", "llama.cpp": "llama.cpp"}


@click.command()
@click.argument("model", required=False)
@click.option(
    "--type", "type_", metavar="TYPE", help="As what it would be quantized, such as Q4_K_M; nothing is written."
)
@click.option(
    "--device",
    "devices",
    multiple=True,
    metavar="NAME",
    help="A Mac (m4-pro-48), a card (rtx-4090), a card with so many bytes (24G), or a CPU (cpu-64G); several cards "
    "share the layers. Default: this machine.",
)
@click.option("--engine", type=click.Choice(ENGINES), help="What runs it. Default: what does on the device.")
@click.option(
    "-c",
    "--ctx-size",
    "context",
    type=int,
    default=0,
    help="Tokens of a conversation. Default: the model's, up to 4096.",
)
@click.option("-np", "--slots", type=int, default=1, help="Conversations at a time.")
@cache_options
@click.option(
    "-b", "--batch-size", "batch", type=int, default=2048, show_default=True, help="llama.cpp: tokens of a batch."
)
@click.option(
    "-ub",
    "--ubatch-size",
    "ubatch",
    type=int,
    default=512,
    show_default=True,
    help="llama.cpp: tokens of a pass.",
)
@click.option("--outputs", type=int, default=0, help="llama.cpp: rows of logits of a batch. Default: all tokens.")
@click.option("-fa", "--flash-attn", type=click.Choice(("on", "off")), default="on", help="llama.cpp: flash attention.")
@click.option("-kvu", "--kv-unified", "unified", is_flag=True, help="llama.cpp: slots share one pool of tokens.")
@click.option("--swa-full", is_flag=True, help="llama.cpp: layers with a window keep all tokens.")
@click.option("-ngl", "--gpu-layers", type=int, help="llama.cpp: layers on cards. Default: as many as fit.")
@click.option(
    "-ncmoe", "--n-cpu-moe", "cpu_experts", type=int, default=0, help="llama.cpp: layers whose experts stay on the CPU."
)
@click.option("--mmproj", metavar="FILE", help="llama.cpp: the projector of a model that sees or hears.")
@click.option("--lora", multiple=True, metavar="FILE", help="llama.cpp: an adapter.")
@click.option("--bandwidth", type=float, metavar="GB/S", help="How fast memory is, where the table does not know it.")
@click.option("--family", "show_family", is_flag=True, help="Show which types of the model would fit.")
@click.option(
    "--table", "show_table", is_flag=True, help="Show models of typical sizes in a few types; needs no MODEL."
)
@click.option("--explain", is_flag=True, help="Show where each number comes from.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def command(
    model: str | None,
    type_: str | None,
    devices: tuple[str, ...],
    engine: str | None,
    context: int,
    types: tuple[str, str],
    flash_attn: str,
    bandwidth: float | None,
    show_family: bool,
    show_table: bool,
    explain: bool,
    as_json: bool,
    **setup: Any,
) -> None:
    """Show how much memory MODEL takes, whether it fits, and the largest context that does.

    MODEL is a GGUF, any shard of a split one, an address (https://…, hf://owner/repo/file), of which only the header is
    read, or a checkpoint's folder. With --type it is seen as that type, without being made.

    \b
    ggufkit fit model.gguf
    ggufkit fit model.gguf --device rtx-4090 -c 32768 -ctk q8_0 -ctv q8_0
    ggufkit fit model-BF16.gguf --type Q4_K_M --device m4-pro-48 --explain
    ggufkit fit model-BF16.gguf --family --device 12G
    ggufkit fit --table
    """
    if show_table:
        _echo_sizes(as_json)
        return
    if model is None:
        raise UsageError("MODEL is missing")
    from ggufkit.memory.fit import devices_of, fit

    places = [
        replace(place, bandwidth=bandwidth * 1e9) if bandwidth and not place.bandwidth else place
        for place in devices_of(devices)
    ]
    found = fit(
        model,
        places,
        type=type_,
        engine=engine,
        context=context or None,
        keys=types[0],
        values=types[1],
        flash=flash_attn == "on",
        **setup,
    )
    if as_json:
        echo_json(found.as_dict() | _answers(found) | ({"family": _family_rows(found)} if show_family else {}))
        return
    _echo_fit(found, explain)
    if show_family:
        _echo_family(found)


def _answers(fit: Fit) -> dict[str, Any]:
    """What is searched for rather than counted."""
    return {
        "largest_context": fit.largest_context(),
        "tokens_per_second": fit.speed(),
        "tokens_per_second_full": fit.speed(fit.setup.context),
        "arguments": fit.arguments() if fit.setup.engine == "llama.cpp" else None,
    }


def _echo_fit(fit: Fit, explain: bool) -> None:
    s, model = fit.setup, fit.model
    click.echo(printable(model.path, 4096))
    slots = "" if s.slots == 1 else f" for {s.slots} slots together" if s.unified else f" in each of {s.slots} slots"
    what = f"{printable(model.architecture)}, {len(model.layers)} layers"
    click.echo(f"  {what}; {_NAMES[s.engine]}; {s.context} tokens{slots}; cache {s.keys} and {s.values}")
    if model.origin:
        click.echo(f"  from {printable(model.origin)}")
    if not model.known:
        click.echo("  note: this architecture is not known here; windows and computing are guesses")
    click.echo()
    rows = []
    for line in fit.lines:
        about = "" if line.exact else f"± {100 * line.error:.0f} %"
        rows.append((line.part, fit.devices[line.place].name, human_bytes(line.nbytes), about))
        if explain:
            rows.append(("", line.formula, "", ""))
    if explain:
        _echo_explained(rows)
    else:
        echo_table(rows, ("part", "on", "bytes", ""), right=(2, 3))
    click.echo()
    for number, device in enumerate(fit.devices):
        used = fit.used(number)
        verdict = "fits" if used <= device.usable else f"{human_bytes(used - device.usable)} too much"
        click.echo(f"  {device.name}: {human_bytes(used)} of {human_bytes(device.usable)}: {verdict}")
    _echo_answers(fit)


def _echo_explained(rows: list[tuple[str, str, str, str]]) -> None:
    """Each line, and under it its formula in full length."""
    for part, text, size, about in rows:
        click.echo(f"  {part:<16}{text:<20}{size:>12}  {about}".rstrip() if part else f"      {printable(text, 4096)}")


def _echo_answers(fit: Fit) -> None:
    largest = fit.largest_context()
    if largest:
        whole = ", all that it was trained on" if largest == fit.model.context_length else ""
        click.echo(f"  largest context: {largest} tokens{whole}")
    else:
        click.echo("  no context fits; see --family for smaller types")
    if fast := fit.speed():
        full = fit.speed(fit.setup.context)
        click.echo(f"  at most {fast:.1f} tokens per second, {full:.1f} with a full context: what memory can deliver")
    if fit.setup.engine == "llama.cpp":
        import shlex

        click.echo(f"  llama-server {printable(shlex.join(fit.arguments()), 4096)}")


def _family_rows(fit: Fit) -> list[dict[str, Any]]:
    from ggufkit.memory.family import family

    return [
        {
            "type": member.type,
            "bytes": member.nbytes,
            "bits_per_weight": member.bits,
            "total": member.fit.nbytes,
            "fits": member.fit.fits,
            "largest_context": member.fit.largest_context(),
            "needs_importance": member.needs_importance,
        }
        for member in family(fit)
    ]


def _echo_family(fit: Fit) -> None:
    click.echo()
    rows = [
        (
            row["type"] + (" *" if row["needs_importance"] else ""),
            f"{row['bits_per_weight']:.2f}",
            human_bytes(row["bytes"]),
            human_bytes(row["total"]),
            "fits" if row["fits"] else "",
            row["largest_context"] or "",
        )
        for row in _family_rows(fit)
    ]
    echo_table(rows, ("type", "bits", "weights", "in all", "", "largest context"), right=(1, 2, 3, 5))
    click.echo("  * needs an importance matrix")


def _echo_sizes(as_json: bool) -> None:
    from ggufkit.memory.family import sizes

    found = list(sizes())
    if as_json:
        echo_json(
            [
                {
                    "size": row.size,
                    "like": row.like,
                    "type": row.type,
                    "bytes": row.nbytes,
                    "mac": row.mac and row.mac.name,
                    "card": row.card and row.card.name,
                }
                for row in found
            ]
        )
        return
    by_size: dict[str, list[Size]] = {}
    for row in found:
        by_size.setdefault(row.size, []).append(row)
    table = []
    for size, row_of in by_size.items():
        table.append((size, row_of[0].like, *(human_bytes(row.nbytes) for row in row_of)))
        table.append(("", "", *(row.mac.name if row.mac else "-" for row in row_of)))
        table.append(("", "", *(row.card.name if row.card else "-" for row in row_of)))
    echo_table(table, ("size", "like", *(row.type for row in by_size[found[0].size])))
