#!/usr/bin/env python3
"""Quantized checkpoints in llama.cpp, against transformers with the weights that their tools mean.

    python tools/verify/verify_packed.py FOLDER                  # FOLDER/<family>/<variant> each, checkpoints
    python tools/verify/verify_packed.py FOLDER gptq/w4-g128-sym

Each is converted as it is, and run by llama.cpp. Its weights, decoded to float32 under the names of the checkpoint, are
loaded by transformers. Printed are the mean KL divergence of the two, and whether all matrices are exact. Needs
xllamacpp, transformers and torch. Exit code 1 where an exact one is off by more than 1e-3.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar

from ggufkit.checkpoint.folder import open_checkpoint
from ggufkit.checkpoint.packed.registry import unpack
from ggufkit.checkpoint.packed.stored import Source
from ggufkit.checkpoint.safetensors_writer import SafetensorsWriter
from ggufkit.errors import GgufkitError
from ggufkit.jobs.convert import as_gguf, convert

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "oracles"))
import llama

LIMIT = 1e-3
TOKENS = np.random.default_rng(0).integers(3, 1000, 48).astype(np.int32)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*")
    arguments = parser.parse_args()
    disable_progress_bar()
    failed = 0
    for path in sorted(arguments.folder.glob("*/*/config.json")):
        name = path.parent.relative_to(arguments.folder).as_posix()
        if arguments.names and name not in arguments.names:
            continue
        try:
            with tempfile.TemporaryDirectory() as scratch:
                apart, exact = compare(path.parent, Path(scratch))
        except (GgufkitError, ValueError, KeyError, RuntimeError, OSError) as e:
            print(f"{name:<45} {type(e).__name__}: {' '.join(str(e).split())[:160]}", flush=True)
            failed += 1
            continue
        print(f"{name:<45} {apart:.1e}  {'exact' if exact else 'rounded'}", flush=True)
        failed += exact and apart > LIMIT
    return bool(failed)


def compare(folder: Path, scratch: Path) -> tuple[float, bool]:
    """The mean divergence of llama.cpp's logits, and whether the file has every weight exactly."""
    path = convert(folder, scratch / "kept.gguf", threads=2)
    exact = all(tensor.origin is None or tensor.origin.exact for tensor in as_gguf(folder).tensors.values())
    with llama.Model(str(path)) as loaded:
        found = loaded.logits(TOKENS)
    plain = decoded(folder, scratch / "plain")
    model, report = AutoModelForCausalLM.from_pretrained(
        plain, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    if report["missing_keys"] or report["mismatched_keys"]:
        raise ValueError(f"not all weights were loaded: {sorted(report['missing_keys'])[:3]}")
    with torch.no_grad():
        expected = model(input_ids=torch.from_numpy(TOKENS[None].astype(np.int64))).logits[0].numpy()
    p, q = log_shares(expected), log_shares(found)
    return float((np.exp(p) * (p - q)).sum(axis=1).mean()), exact


def decoded(folder: Path, target: Path) -> Path:
    """The checkpoint in float32, as if nobody had quantized it."""
    checkpoint = open_checkpoint(folder)
    unpacked = unpack(Source(checkpoint.tensors, checkpoint.config, checkpoint.json), keep=False)
    tensors = checkpoint.tensors if unpacked is None else unpacked.tensors
    target.mkdir()
    config = {k: v for k, v in checkpoint.config.items() if k not in ("quantization_config", "quantization")}
    (target / "config.json").write_text(json.dumps(config))
    shapes = {name: ("F32", tensor.shape) for name, tensor in tensors.items()}
    with SafetensorsWriter(target / "model.safetensors", shapes, {"format": "pt"}) as file:
        for name, tensor in tensors.items():
            file.write(name, 0, tensor.floats())
    return target


def log_shares(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


if __name__ == "__main__":
    sys.exit(main())
