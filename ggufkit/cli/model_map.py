"""A model drawn in the terminal: what each layer has in each role, in bits; and how a tensor's weights are spread."""

from __future__ import annotations

import re
import shutil
import sys
from typing import TYPE_CHECKING

import click

from ggufkit.errors import printable
from ggufkit.gguf.summary import layer_of
from ggufkit.policy.roles import trimmed

if TYPE_CHECKING:
    from ggufkit.evaluate.histogram import Histogram
    from ggufkit.gguf.reader import GGUF

__all__ = ["echo_histogram", "echo_map"]

_INDENT = 2
_NAME = 22  # columns for the name of a role
_ROLE = re.compile(r"^blk\.\d+\.(.*?)(\.weight)?$")

# Colours of a terminal by bits per weight, up to so many.
_COLOURS = {2.5: "red", 3.5: "yellow", 4.8: "green", 6.0: "cyan", 7.0: "blue", 9.0: "magenta", 99: "white"}


def _sign(bits: float) -> str:
    """One character for so many bits per weight: a digit, h for half and f for full precision."""
    return "f" if bits >= 32 else "h" if bits >= 16 else str(min(9, round(bits)))


def _colour(bits: float) -> str:
    return next(name for most, name in _COLOURS.items() if bits <= most)


def echo_map(model: GGUF, title: str) -> bool:
    """Draw the matrices, a row for each role and a column for each layer; False where there are no layers."""
    cells: dict[str, dict[int, float]] = {}
    signs: dict[str, set[str]] = {}
    for info in model.info.values():
        layer = layer_of(info.name)
        if layer is None or len(trimmed(info.shape)) < 2 or layer >= 1024:
            continue
        match = _ROLE.match(info.name)
        bits = info.format.bits_per_weight
        cells.setdefault(match[1] if match else info.name, {})[layer] = bits
        signs.setdefault(_sign(bits), set()).add(info.format.name)
    if not cells:
        return False
    layers = 1 + max(layer for row in cells.values() for layer in row)
    width = max(20, shutil.get_terminal_size((100, 24)).columns - _INDENT - _NAME - 1)
    click.echo(title)
    for first in range(0, layers, width):
        last = min(layers, first + width)
        _echo_rule(first, last)
        for role, row in cells.items():
            _echo_row(role, [row.get(layer) for layer in range(first, last)])
    legend = "  ".join(f"{sign} {' '.join(sorted(names))}" for sign, names in sorted(signs.items()))
    click.echo(f"{' ' * _INDENT}{'bits per weight':<{_NAME}} {legend}")
    return True


def _echo_rule(first: int, last: int) -> None:
    """Numbers of layers, every tenth."""
    line = [" "] * (last - first + 4)
    for layer in range(-(-first // 10) * 10, last, 10):
        line[layer - first : layer - first + len(str(layer))] = str(layer)
    click.echo(f"{' ' * _INDENT}{'layer':<{_NAME}} {''.join(line)}".rstrip())


def _echo_row(role: str, row: list[float | None]) -> None:
    name = printable(role, _NAME)
    text = "".join(" " if bits is None else _sign(bits) for bits in row)
    if not _coloured():
        click.echo(f"{' ' * _INDENT}{name:<{_NAME}} {text}".rstrip())
        return
    from rich.console import Console
    from rich.text import Text

    line = Text(f"{' ' * _INDENT}{name:<{_NAME}} ")
    for bits, sign in zip(row, text, strict=True):
        line.append(sign, style="" if bits is None else f"black on {_colour(bits)}")
    Console(file=sys.stdout, highlight=False, soft_wrap=True).print(line)


def _coloured() -> bool:
    return sys.stdout is not None and sys.stdout.isatty()


_EIGHTHS = " ▏▎▍▌▋▊▉█"


def echo_histogram(name: str, kind: str, found: Histogram) -> None:
    """Draw how many weights lie where: a bar for each run of values, and what does not show in bars."""
    click.echo(f"{printable(name)}: {found.count} weights, {kind}")
    rows = [
        ("mean", f"{found.mean:.4g}"),
        ("rms", f"{found.rms:.4g}"),
        ("least, largest", f"{found.least:.4g}, {found.largest:.4g}"),
        ("largest / rms", f"{found.outlier:.1f}"),
        ("zeros", f"{found.zeros / max(found.count, 1):.2%}"),
    ]
    if found.broken:
        rows.append(("not finite", str(found.broken)))
    for title, value in rows:
        click.echo(f"  {title:<16}{value}")
    most = max(found.counts, default=0)
    for (low, high), count in zip(found.bins, found.counts, strict=True):
        filled = 60 * count / most if most else 0
        bar = "█" * int(filled) + _EIGHTHS[int(8 * (filled % 1))].strip()
        # A few weights far out are what one looks for, so they show as a dot.
        click.echo(f"  {low:>11.4g} … {high:<11.4g} {bar or ('·' if count else '')} {count or ''}".rstrip())
