#!/usr/bin/env python3
"""Exported AWQ arrays, decoded by GPTQModel, by which transformers reads them: the weights that ggufkit decodes.

    python tools/verify/verify_export_awq.py                     # families and packers of tests/models
    python tools/verify/verify_export_awq.py llama-yarn qwen3moe

GPTQModel multiplies in float16, so the exact weights are rounded to that. Needs torch and gptqmodel. Exit code 1 where
a matrix differs.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import torch
from gptqmodel.quantization.awq.utils.packing_utils import dequantize_gemm
from safetensors.torch import load_file

from ggufkit.jobs.convert import convert
from ggufkit.jobs.to_huggingface import export_hf

sys.path.append(str(Path(__file__).parents[2] / "tests" / "models"))
from tiny_families import FAMILIES
from tiny_packed import AWQ, GPTQ, Packer, write_packed

PACKERS = (GPTQ(), GPTQ(group=-1), GPTQ(sym=False, group=64), AWQ(group=32), AWQ(group=128))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=["llama-yarn", "qwen3moe", "gemma3", "olmo3", "deepseek-v2"])
    failed = 0
    for name in parser.parse_args().names:
        for packer in PACKERS:
            with tempfile.TemporaryDirectory() as scratch:
                matrices, other = compare(name, packer, Path(scratch))
            print(f"{name:<15} {packer!s:<70} {matrices} matrices, {other} differ", flush=True)
            failed += other
    return bool(failed)


def compare(name: str, packer: Packer, scratch: Path) -> tuple[int, int]:
    """How many matrices are AWQ's, and how many of them GPTQModel decodes to other weights."""
    folder = write_packed(FAMILIES[name](), packer, scratch / "packed")
    path = convert(folder, scratch / "m.gguf", pre="llama-bpe")
    export_hf(path, scratch / "awq", layout="awq")
    export_hf(path, scratch / "plain", decode=True, dtype="float32")
    stored, plain = (load_file(scratch / kind / "model.safetensors") for kind in ("awq", "plain"))
    size = json.loads((scratch / "awq" / "config.json").read_text())["quantization_config"]["group_size"]
    modules = [key.removesuffix(".qweight") for key in stored if key.endswith(".qweight")]
    other = 0
    for module in modules:
        words, zeros, scales = (stored[f"{module}.{part}"] for part in ("qweight", "qzeros", "scales"))
        decoded = dequantize_gemm(words, zeros, scales, 4, len(words) if size == -1 else size).T
        other += not torch.equal(decoded, plain[f"{module}.weight"].half())
    return len(modules), other


if __name__ == "__main__":
    sys.exit(main())
