"""Make fixtures/pylib-llama.json: what llama.cpp itself made of the bundled model.

    python tools/generate/make_goldens.py SHARED

SHARED is the folder of reference data that llama.cpp's converter, llama-quantize and llama-cli wrote (`golden/`).
Kept here are the parts that the tests need where that folder is absent: the converter's metadata, type and SHA-256 of
every tensor and file for a few types, and the greedy continuations.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

TYPES = ("F16", "BF16", "Q8_0", "Q4_0", "Q4_K_M")


def main(shared: Path) -> None:
    converted = json.loads((shared / "golden" / "convert.json").read_text())
    quantized = json.loads((shared / "golden" / "quantize.json").read_text())
    golden = {
        "metadata": {outtype.upper(): file["kv"] for outtype, file in converted.items()},
        "converter_sha256": {outtype.upper(): file["file_sha256"] for outtype, file in converted.items()},
        "quantize_sha256": {t: quantized[t]["file_sha256"] for t in TYPES},
        "tensors": {t: {name: [kind, sha] for name, _, kind, sha in quantized[t]["tensors"]} for t in TYPES},
        "greedy": json.loads((shared / "golden" / "greedy.json").read_text()),
    }
    # The four files' metadata differ in the file type only.
    first = golden["metadata"]["F32"]
    for outtype, pairs in golden["metadata"].items():
        differ = [(a[0], b[2]) for a, b in zip(first, pairs, strict=True) if a != b]
        golden["metadata"][outtype] = dict(differ)
    golden["metadata"]["F32"] = first
    target = Path(__file__).parents[2] / "fixtures" / "pylib-llama.json"
    target.write_text(json.dumps(golden, indent=1, sort_keys=False) + "\n")
    print(f"{target}: {target.stat().st_size} bytes")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
