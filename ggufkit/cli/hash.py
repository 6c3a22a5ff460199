"""`ggufkit hash`: hashes of tensors, layers and the model, with the flags and lines of llama-gguf-hash."""

from __future__ import annotations

import sys
from typing import Any

import click

from ggufkit.cli.common import echo_json, model_options, open_model
from ggufkit.errors import UsageError, printable

__all__ = ["command"]


@click.command()
@click.argument("file")
@click.option("--xxh64", is_flag=True, help="Hash with XXH64, which is fast; the default.")
@click.option("--sha1", is_flag=True, help="Hash with SHA-1.")
@click.option("--sha256", is_flag=True, help="Hash with SHA-256.")
@click.option("--all", "all_kinds", is_flag=True, help="XXH64, SHA-1 and SHA-256.")
@click.option("--uuid", is_flag=True, help="Print a UUID (version 5) of the model.")
@click.option("--no-layer", is_flag=True, help="Hash the whole model alone, not each tensor.")
@click.option("--layers", is_flag=True, help="Hash each layer, too: its tensors one after the other.")
@click.option(
    "-c",
    "--check",
    "manifest",
    metavar="MANIFEST",
    help="Compare with the hashes that an earlier run printed to this file.",
)
@click.option(
    "--threads", type=click.IntRange(min=1), help="How many threads work. Default: GGUFKIT_THREADS or all CPUs."
)
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@model_options
def command(
    file: str,
    no_layer: bool,
    layers: bool,
    manifest: str | None,
    threads: int | None,
    as_json: bool,
    how: dict[str, Any],
    all_kinds: bool,
    **flags: bool,
) -> None:
    """Hash the tensors of FILE: each, and all of them together.

    Metadata and padding do not count, so split and merged files have the same hash. The lines are those of
    llama-gguf-hash. With --check the exit code is 1 unless everything that the manifest knows is the same.

    \b
    ggufkit hash --sha256 model.gguf > model.manifest
    ggufkit hash --check model.manifest model.gguf
    """
    from ggufkit.cli.progress import byte_bar
    from ggufkit.gguf.hashes import check_hash, has_layers, hash_model, manifest_kinds, missing_labels, read_manifest

    chosen = [kind for kind in flags if flags[kind] or (all_kinds and kind != "uuid")]
    known = None if manifest is None else read_manifest(manifest)
    if known is not None:
        in_manifest = manifest_kinds(known)
        chosen = chosen or in_manifest[:1]
        if not set(chosen) & set(in_manifest):
            raise UsageError(f"{printable(manifest)} has hashes of {', '.join(in_manifest)} only")
        if not as_json:
            click.echo(f"manifest  {printable(manifest, 4096)}  {'  '.join(in_manifest)}")
        layers = layers or has_layers(known)
    found = []
    with open_model(file, how) as model:
        total = sum(info.nbytes for info in model.info.values())
        with byte_bar(total, "hashing") as advance:
            for hash in hash_model(
                model, chosen or ["xxh64"], tensors=not no_layer, layers=layers, threads=threads, advance=advance
            ):
                verdict = None if known is None else check_hash(known, hash, file)
                found.append((hash, verdict))
                if not as_json:
                    line = f"{hash.kind:<8}  {hash.hex}  {hash.label(file)}"
                    click.echo(line if verdict is None else f"{line}  -  {verdict}")
    lacking = [] if known is None or no_layer else missing_labels(known, [hash for hash, _ in found], file)
    result = None if known is None else conclusion([*(verdict for _, verdict in found), *(["Missing"] * len(lacking))])
    if as_json:
        echo_json(
            {
                "file": file,
                "hashes": [
                    {"kind": h.kind, "hash": h.hex, "of": h.of, "name": h.name, **({"check": v} if v else {})}
                    for h, v in found
                ],
                **({"missing": [label for _, label in lacking], "result": result} if result else {}),
            }
        )
    elif result:
        for kind, label in lacking:
            click.echo(f"{kind:<8}  {printable(label, 4096)}  -  Missing in the model")
        click.echo(f"\nVerification results for {printable(manifest, 4096)} - {result}")
    if result and result != "Success":
        sys.exit(1)


def conclusion(verdicts: list[str | None]) -> str:
    """llama-gguf-hash's word for the result of a check."""
    if "Mismatch" in verdicts or "Missing" in verdicts:
        return "Failure"
    return "Success" if "Ok" in verdicts else "Manifest Missing Entry"
