"""The curve of a comparison: KL divergence against bytes, as SVG or as a page.

KLD │ ○ smaller
    │    ╲               logarithmic upwards; the line joins the models that no other beats
    │     ○── small      in both bytes and divergence
    └──────────── bytes
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import PurePath

from ggufkit.errors import printable
from ggufkit.evaluate.compare import Comparison

__all__ = ["as_page", "as_svg", "best"]

_WIDTH, _HEIGHT = 760, 480
_LEFT, _RIGHT, _TOP, _BOTTOM = 76, 24, 40, 56  # margins
_LETTER, _LINE = 6.6, 15  # of a label, pixels
_STYLE = """
.c { font: 12px system-ui, sans-serif; --ink: #222; --faint: #ddd; --line: #2563eb; --back: #fff }
@media (prefers-color-scheme: dark) { .c { --ink: #ddd; --faint: #333; --line: #7aa7ff; --back: #111 } }
.c rect { fill: var(--back) }
.c text { fill: var(--ink) }
.c .g { stroke: var(--faint) }
.c .a { stroke: var(--ink); opacity: .5 }
.c .l { stroke: var(--line); fill: none; stroke-width: 1.5; opacity: .6 }
.c circle { fill: var(--line) }
.c .t { font-size: 14px }
"""


@dataclass(frozen=True)
class _Point:
    name: str
    nbytes: int
    kld: float
    error: float


def _points(found: Comparison) -> list[_Point]:
    """The models by size. What does not diverge has no place on a logarithmic axis: it lies at its standard error."""
    points = []
    for model in found.models:
        kld, error = model.divergence.facts()["kld"]
        name = printable(PurePath(model.path).name.removesuffix(".gguf"), 60)
        points.append(_Point(name, model.nbytes, max(kld, error, 1e-9), error))
    return sorted(points, key=lambda p: (p.nbytes, p.kld))


def best(sizes: Sequence[tuple[int, float]]) -> list[int]:
    """The places of those (bytes, KLD) that no other beats in both, by bytes."""
    found: list[int] = []
    for i in sorted(range(len(sizes)), key=lambda i: sizes[i]):
        if not found or sizes[i][1] < sizes[found[-1]][1]:
            found.append(i)
    return found


def as_svg(found: Comparison, title: str = "KL divergence by size") -> str:
    """The curve as an SVG image, readable by day and by night."""
    points = [p for p in _points(found) if math.isfinite(p.kld)]
    across, up = _Bytes([p.nbytes for p in points]), _Log([p.kld for p in points])
    parts = [
        f'<svg class="c" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" '
        f'height="{_HEIGHT}"><style>{_STYLE}</style><rect width="{_WIDTH}" height="{_HEIGHT}"/>',
        f'<text class="t" x="{_LEFT}" y="24">{escape(title)}</text>',
    ]
    for value, label in up.ticks():
        y = up.place(value)
        parts.append(f'<path class="g" d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{label}</text>')
    for value, label in across.ticks():
        x = across.place(value)
        parts.append(f'<path class="g" d="M{x:.1f} {_TOP}V{_HEIGHT - _BOTTOM}"/>')
        parts.append(f'<text x="{x:.1f}" y="{_HEIGHT - _BOTTOM + 18}" text-anchor="middle">{label}</text>')
    parts.append(f'<path class="a" fill="none" d="M{_LEFT} {_TOP}V{_HEIGHT - _BOTTOM}H{_WIDTH - _RIGHT}"/>')
    parts.append(f'<text x="{(_LEFT + _WIDTH - _RIGHT) / 2}" y="{_HEIGHT - 12}" text-anchor="middle">size</text>')
    middle = (_TOP + _HEIGHT - _BOTTOM) / 2
    parts.append(
        f'<text x="16" y="{middle}" text-anchor="middle" transform="rotate(-90 16 {middle})">'
        "KL divergence, nats per token</text>"
    )
    line = [points[i] for i in best([(p.nbytes, p.kld) for p in points])]
    path = "L".join(f"{across.place(p.nbytes):.1f} {up.place(p.kld):.1f}" for p in line)
    parts.append(f'<path class="l" d="M{path}"/>' if path else "")
    taken: list[tuple[float, float, float]] = []
    for p in points:
        x, y = across.place(p.nbytes), up.place(p.kld)
        if p.error and p.kld > p.error:
            low, high = up.place(p.kld - p.error), up.place(p.kld + p.error)
            parts.append(f'<path class="l" d="M{x:.1f} {low:.1f}V{high:.1f}"/>')
        what = f"{escape(p.name)}: {p.nbytes} bytes, KLD {p.kld:.4g} ± {p.error:.2g}"
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4"><title>{what}</title></circle>')
        lx, ly = _free(x, y, len(p.name) * _LETTER, taken)
        parts.append(f'<text x="{lx:.1f}" y="{ly:.1f}">{escape(p.name)}</text>')
    return "\n".join([*filter(None, parts), "</svg>"]) + "\n"


def _free(x: float, y: float, width: float, taken: list[tuple[float, float, float]]) -> tuple[float, float]:
    """Where a label beside a point begins, so that it lies on no other and within the image."""
    left = x + 8 if x + 8 + width < _WIDTH else x - 8 - width
    at = y + 4
    while any(abs(at - other) < _LINE and left < end and start < left + width for start, end, other in taken):
        at -= _LINE
    taken.append((left, left + width, at))
    return left, at


def as_page(found: Comparison, title: str = "KL divergence by size") -> str:
    """The curve and the table as an HTML page that needs nothing else."""
    head = ("model", "bytes", "bits per weight", "KLD", "99.0%", "same top", "perplexity")
    perplexity = f"{found.estimate.perplexity:.4f} ± {found.estimate.error:.4f}"
    cells = [[_name(found.path), f"{found.nbytes:,}", f"{found.bpw:.2f}", "", "", "", perplexity]]
    for model in found.models:
        facts = model.divergence.facts()
        cells.append(
            [
                _name(model.path),
                f"{model.nbytes:,}",
                f"{model.bpw:.2f}",
                f"{facts['kld'][0]:.6f} ± {facts['kld'][1]:.6f}",
                f"{facts['kld_quantiles']['99.0%']:.6f}",
                f"{100 * facts['same_top'][0]:.2f} %",
                f"{facts['perplexity'][0]:.4f} ± {facts['perplexity'][1]:.4f}",
            ]
        )
    rows = "\n".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in cells)
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title><style>'
        "body{font:14px system-ui,sans-serif;margin:2em;color-scheme:light dark}td,th{padding:.2em .8em;"
        "text-align:right}td:first-child,th:first-child{text-align:left}svg{max-width:100%;height:auto}</style>\n"
        f"{as_svg(found, title)}<table><tr>{''.join(f'<th>{escape(h)}</th>' for h in head)}</tr>\n{rows}\n</table>\n"
        f"<p>{found.estimate.tokens:,} predictions; KLD from the first model, in nats per token.</p></html>\n"
    )


def _name(path: str) -> str:
    return printable(PurePath(path).name, 80)


class _Bytes:
    """The axis of sizes: linear, with some room at both ends."""

    def __init__(self, sizes: Sequence[int]):
        low, high = (min(sizes), max(sizes)) if sizes else (0, 1)
        room = (high - low) * 0.08 or high * 0.08 or 1
        self.low, self.high = max(0.0, low - room), high + room

    def place(self, value: float) -> float:
        return _LEFT + (value - self.low) / (self.high - self.low) * (_WIDTH - _LEFT - _RIGHT)

    def ticks(self) -> Iterator[tuple[float, str]]:
        step = 10 ** math.floor(math.log10(self.high - self.low))
        step = next(step * f for f in (0.1, 0.2, 0.5, 1, 2) if (self.high - self.low) / (step * f) <= 8)
        unit, name = next((u, n) for u, n in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1, "B")) if self.high >= u)
        digits = max(0, -math.floor(math.log10(step / unit)))
        first = math.ceil(self.low / step)
        for i in range(first, math.floor(self.high / step) + 1):
            yield i * step, f"{i * step / unit:.{digits}f} {name}"


class _Log:
    """The axis of divergences: logarithmic, growing upwards."""

    def __init__(self, values: Sequence[float]):
        low, high = (min(values), max(values)) if values else (1e-3, 1.0)
        self.low, self.high = math.log10(low) - 0.15, math.log10(high) + 0.15

    def place(self, value: float) -> float:
        share = (math.log10(value) - self.low) / (self.high - self.low)
        return _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)

    def ticks(self) -> Iterator[tuple[float, str]]:
        factors = (1, 2, 5) if self.high - self.low < 3 else (1,)
        for power in range(math.floor(self.low), math.ceil(self.high) + 1):
            for factor in factors:
                value = factor * 10.0**power
                if self.low <= math.log10(value) <= self.high:
                    yield value, f"{value:.10f}".rstrip("0").rstrip(".") if power > -7 else f"{value:.0e}"
