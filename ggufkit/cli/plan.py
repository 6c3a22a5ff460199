"""`ggufkit plan`: which type each tensor would get, and why; also what --dry-run of convert and quantize shows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ggufkit.cli.common import echo_json, echo_table, human_bytes, human_count, open_model, show_shape
from ggufkit.cli.precision import checkpoint_type, precision_options, request_of, target_beside
from ggufkit.errors import printable

if TYPE_CHECKING:
    from ggufkit.jobs.plan import Job, OutputPlan
    from ggufkit.jobs.stream import Planned

__all__ = ["command", "echo_plan"]


@click.command()
@click.argument("source")
@click.argument("type_", metavar="[TYPE]", required=False)
@precision_options
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def command(source: str, type_: str | None, precision: dict[str, Any], as_json: bool) -> None:
    """Show which type each tensor of SOURCE gets as TYPE, why, and the exact size of the file, without writing it.

    SOURCE is a GGUF file, as for quantize, or a checkpoint's folder or hf://owner/repo, as for convert.

    \b
    ggufkit plan model-BF16.gguf Q4_K_M
    ggufkit plan Llama-3.2-1B IQ3_XXS --imatrix imatrix.gguf --policy mine.toml --json
    """
    from ggufkit.checkpoint.folder import is_checkpoint
    from ggufkit.jobs.convert import conversion
    from ggufkit.jobs.quantize import quantization

    if is_checkpoint(source):
        echo_plan(conversion(source, type=checkpoint_type(type_, precision)), as_json)
        return
    request = request_of(type_, precision)
    with open_model(source) as model:
        echo_plan(quantization(model, target_beside(source, request), request), as_json)


def echo_plan(job: Job, as_json: bool) -> None:
    """Show each tensor's type, the reason for it and its bytes; then totals, and the files to come."""
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
                "tensors": [_as_dict(p) for p in plan.tensors],
            }
        )
        return
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
    shares = [
        (name, len(p), human_count(_weights(p)), human_bytes(_bytes(p)), f"{_bytes(p) / max(plan.nbytes, 1):.1%}")
        for name, p in _by_type(plan).items()
    ]
    echo_table(shares, ("type", "tensors", "weights", "bytes", "share"), right=range(1, 5))
    click.echo()
    for note in plan.notes:
        click.echo(f"  note: {note}")
    for path, size in files:
        click.echo(f"  {printable(path, 4096)}: {size} bytes ({human_bytes(size)})")
    click.echo(f"  {len(plan.tensors)} tensors, {human_count(plan.weights)} weights, {bits:.3f} bits per weight")


def _by_type(plan: OutputPlan) -> dict[str, list[Planned]]:
    """The tensors of each type, the type with the most bytes first."""
    found: dict[str, list[Planned]] = {}
    for p in plan.tensors:
        found.setdefault(p.format.name, []).append(p)
    return dict(sorted(found.items(), key=lambda item: -_bytes(item[1])))


def _bytes(planned: list[Planned]) -> int:
    return sum(p.nbytes for p in planned)


def _weights(planned: list[Planned]) -> int:
    return sum(p.tensor.size for p in planned)


def _as_dict(p: Planned) -> dict[str, Any]:
    return {
        "name": p.tensor.name,
        "shape": list(reversed(p.tensor.shape)),
        "from": p.tensor.format.name,
        "to": p.format.name,
        "bytes": p.nbytes,
        "importance": p.importance is not None,
        "reason": p.reason,
    }
