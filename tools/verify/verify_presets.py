"""Compare whole files with llama-quantize's: every preset, without and with an importance matrix.

    python tools/verify/verify_presets.py SHARED
    python tools/verify/verify_presets.py SHARED --presets Q4_K_M,IQ4_XS --threads 1,2,3
    NUMBA_CPU_NAME=haswell python tools/verify/verify_presets.py SHARED     # as on another CPU

SHARED is the folder of reference data (`golden/quantize.json`, `models/pylib-llama`). Each file is made twice, from
the converted BF16 file and straight from the checkpoint. Where llama-quantize refuses for want of an importance matrix,
so must we.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from ggufkit.errors import PolicyError
from ggufkit.importance.imatrix_file import read_imatrix
from ggufkit.jobs.convert import convert
from ggufkit.jobs.quantize import quantize
from ggufkit.policy.recipe import Recipe, recipe_of


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shared", type=Path)
    parser.add_argument("--presets", help="only these")
    parser.add_argument("--threads", default="2")
    options = parser.parse_args()
    shared = options.shared.resolve()
    golden = json.loads((shared / "golden" / "quantize.json").read_text())
    chosen = options.presets.split(",") if options.presets else None
    model = shared / "models" / "pylib-llama"
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        # Its name goes into the metadata as it was given.
        shutil.copyfile(shared / "golden" / "imatrix.gguf", "imatrix.gguf")
        imatrix = read_imatrix("imatrix.gguf")
        convert(model, "bf16.gguf", "BF16")
        wrong = checked = 0
        for name, expected in golden.items():
            preset = expected["preset"]
            if preset == "NVFP4" or (chosen and preset not in chosen):  # llama-quantize does not offer that one
                continue
            recipe = replace(recipe_of(preset), imatrix=imatrix if expected["imatrix"] else None)
            for threads in map(int, options.threads.split(",")):
                checked += 1
                found = made(model, recipe, threads)
                right = [None, None] if expected.get("refused") else [expected["file_sha256"]] * 2
                wrong += found != right
                print(f"{name:20} {threads} threads: {'right' if found == right else 'WRONG'}", flush=True)
    print(f"{checked - wrong} of {checked} as llama-quantize")
    return int(wrong > 0)


def made(model: Path, recipe: Recipe, threads: int) -> list[str | None]:
    """SHA-256 of the file from GGUF and of the one from the checkpoint; None where it was refused."""
    found: list[str | None] = []
    for make, source in ((quantize, "bf16.gguf"), (convert, model)):
        try:
            make(source, "out.gguf", recipe, force=True, threads=threads)
            found.append(hashlib.sha256(Path("out.gguf").read_bytes()).hexdigest())
        except PolicyError:
            found.append(None)
    return found


if __name__ == "__main__":
    sys.exit(main())
