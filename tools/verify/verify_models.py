#!/usr/bin/env python3
"""Convert checkpoints that have references of llama.cpp's converter, and name the first difference of each.

    python tools/verify/verify_models.py FOLDER                  # FOLDER/<name>/hf with FOLDER/<name>/ref*.json
    python tools/verify/verify_models.py FOLDER qwen35 gemma3n

`ref.json` is `--outtype f16`, `ref_<type>.json` that type, `ref_mmproj.json` `--mmproj --outtype f16`. Exit code 1 if a
file differs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

from ggufkit.errors import GgufkitError
from ggufkit.gguf import reader
from ggufkit.gguf.header import Field, ValueType
from ggufkit.jobs.convert import convert

# Options that a reference was made with.
OPTIONS: dict[str, dict[str, Any]] = {"mimo2": {"mtp": False}}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*")
    arguments = parser.parse_args()
    equal = total = 0
    for model in sorted(arguments.folder.iterdir()):
        if arguments.names and model.name not in arguments.names:
            continue
        for reference in sorted(model.glob("ref*.json")):
            expected = json.loads(reference.read_text())
            if not expected.get("converted", True):
                continue
            total += 1
            try:
                difference = compare(model, reference.stem.removeprefix("ref").removeprefix("_"), expected)
            except GgufkitError as e:
                difference = f"{type(e).__name__}: {e}"
            except Exception:
                difference = traceback.format_exc(limit=-3)
            equal += difference is None
            if difference is not None:
                print(f"{model.name} {reference.stem}: {difference}", flush=True)
    print(f"{equal} of {total} files are equal")
    return equal != total


def compare(model: Path, kind: str, expected: dict[str, Any]) -> str | None:
    """The first difference of a conversion from its reference, None if they are equal."""
    options = dict(OPTIONS.get(model.name, {}))
    if kind == "mmproj":
        options["mmproj"] = True
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "out.gguf"
        convert(model / "hf", path, "F16" if kind in ("", "mmproj") else kind.upper(), threads=2, **options)
        with reader.open(path) as file:
            if (difference := first_difference(pairs(file), wanted_pairs(expected))) is not None:
                return f"key {difference}"
            if (difference := first_difference(tensors(file), wanted_tensors(expected))) is not None:
                return f"tensor {difference}"
        if hashlib.sha256(path.read_bytes()).hexdigest() != expected["file_sha256"]:
            return "the same keys and tensors, but not the same file"
    return None


def first_difference(found: list[tuple[str, Any]], wanted: list[tuple[str, Any]]) -> str | None:
    for (name, value), (wanted_name, wanted_value) in zip(found, wanted, strict=False):
        if name != wanted_name:
            return f"{name}, not {wanted_name} = {str(wanted_value)[:120]}"
        if value != wanted_value:
            return f"{name} = {str(value)[:160]}, not {str(wanted_value)[:160]}"
    if len(found) != len(wanted):
        longer = max(found, wanted, key=len)
        what = "is one too many" if longer is found else "is missing"
        return f"{longer[min(len(found), len(wanted))]} {what}"
    return None


def pairs(file: reader.GGUF) -> list[tuple[str, Any]]:
    return [(field.key, (_type(field), _contents(field))) for field in file.fields.values()]


def wanted_pairs(expected: dict[str, Any]) -> list[tuple[str, Any]]:
    return [(key, (e["type"], e.get("sha256", e.get("value")))) for key, e in expected["kv"].items()]


def tensors(file: reader.GGUF) -> list[tuple[str, Any]]:
    return [
        (t.name, (list(reversed(t.shape)), t.format.name.lower(), hashlib.sha256(t.read(0, t.rows)).hexdigest()[:12]))
        for t in file.tensors.values()
    ]


def wanted_tensors(expected: dict[str, Any]) -> list[tuple[str, Any]]:
    return [(t["name"], (t["shape"], t["type"], t["sha256"][:12])) for t in expected["tensors"]]


def _type(field: Field) -> str:
    return f"arr[{field.item_type.short}]" if field.item_type is not None else field.type.short


def _contents(field: Field) -> Any:
    if field.type is ValueType.ARRAY and field.count > 16:
        return hashlib.sha256(field.raw).hexdigest()
    return field.value


if __name__ == "__main__":
    sys.exit(main())
