"""A plan for people, or as JSON: what `plan` shows, and --dry-run of convert and quantize."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ggufkit.cli.common import echo_json, echo_table, human_bytes, human_count, show_shape
from ggufkit.errors import printable

if TYPE_CHECKING:
    from ggufkit.calibrate.allocation import Allocation
    from ggufkit.jobs.job import Job
    from ggufkit.jobs.plan import Plan, PlannedTensor

__all__ = ["echo_plan"]


def echo_plan(job: Job, as_json: bool, summary: bool = False, found: Allocation | None = None) -> None:
    """Show each tensor's type, the reason for it and its bytes; then totals, and the files to come.

    Parameters
    ----------
    summary : leave the tensors out.
    found : where types were chosen by their cost: what they cost, and what other sizes would.
    """
    plan = job.plan
    files = list(zip(map(str, job.paths), plan.sizes, strict=True))
    bits = 8 * plan.nbytes / plan.weights if plan.weights else 0.0
    if as_json:
        echo_json(
            {
                "files": [{"path": path, "size": size} for path, size in files],
                "size": plan.size,
                "weights": plan.weights,
                "bytes": plan.nbytes,
                "bits_per_weight": bits,
                "types": {
                    name: {"tensors": len(p), "weights": _weights(p), "bytes": _bytes(p)}
                    for name, p in _by_type(plan).items()
                },
                "notes": plan.notes,
                **({} if summary else {"tensors": [_as_dict(p, found) for p in plan.tensors]}),
                **({} if found is None else _prediction(found)),
            }
        )
        return
    if not summary:
        _echo_tensors(plan)
    shares = [
        (
            name,
            len(p),
            human_count(_weights(p)),
            human_bytes(_bytes(p)),
            f"{100 * _bytes(p) / max(plan.nbytes, 1):.1f} %",
        )
        for name, p in _by_type(plan).items()
    ]
    echo_table(shares, ("type", "tensors", "weights", "bytes", "share"), right=range(1, 5))
    click.echo()
    for note in plan.notes:
        click.echo(f"  note: {note}")
    for path, size in files:
        click.echo(f"  {printable(path, 4096)}: {size} bytes ({human_bytes(size)})")
    click.echo(f"  {len(plan.tensors)} tensors, {human_count(plan.weights)} weights, {bits:.3f} bits per weight")
    if found is not None:
        _echo_frontier(found)


def _echo_tensors(plan: Plan) -> None:
    rows = [
        (
            printable(p.tensor.name),
            show_shape(p.tensor.shape),
            p.tensor.format.name,
            p.format.name,
            human_bytes(p.nbytes),
            printable(p.reason) + (", with importance" if p.importance is not None else ""),
        )
        for p in plan.tensors
    ]
    echo_table(rows, ("tensor", "shape", "from", "to", "bytes", "reason"), right=(4,))
    click.echo()


def _by_type(plan: Plan) -> dict[str, list[PlannedTensor]]:
    """The tensors of each type, the type with the most bytes first."""
    found: dict[str, list[PlannedTensor]] = {}
    for p in plan.tensors:
        found.setdefault(p.format.name, []).append(p)
    return dict(sorted(found.items(), key=lambda item: -_bytes(item[1])))


def _bytes(planned: list[PlannedTensor]) -> int:
    return sum(p.nbytes for p in planned)


def _weights(planned: list[PlannedTensor]) -> int:
    return sum(p.tensor.size for p in planned)


def _echo_frontier(found: Allocation) -> None:
    """What other sizes would cost, and what a megabyte more would buy."""
    rows = [
        (point.nbytes, human_bytes(point.nbytes), f"{point.cost:.5f}", f"{point.saving * 1e6:.2g}")
        for point in found.points()
    ]
    click.echo(f"  predicted KLD {found.predicted:.5f} encoded plainly, {found.after_gptq():.5f} by GPTQ")
    click.echo()
    echo_table(rows, ("bytes", "size", "predicted KLD", "less with 1 MB more"), right=range(4))


def _prediction(found: Allocation) -> dict[str, Any]:
    points = [
        {"size": point.nbytes, "predicted_kld": point.cost, "saving_per_byte": point.saving} for point in found.points()
    ]
    return {"predicted_kld": found.predicted, "predicted_kld_gptq": found.after_gptq(), "frontier": points}


def _as_dict(p: PlannedTensor, found: Allocation | None) -> dict[str, Any]:
    cost = None if found is None else found.cost(p.tensor.name)
    return {
        **({} if cost is None else {"predicted_kld": cost}),
        "name": p.tensor.name,
        "shape": list(reversed(p.tensor.shape)),
        "from": p.tensor.format.name,
        "to": p.format.name,
        "bytes": p.nbytes,
        "importance": p.importance is not None,
        "reason": p.reason,
    }
