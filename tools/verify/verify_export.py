#!/usr/bin/env python3
"""Exported folders in transformers: the same logits as the checkpoints that their GGUF files were made of.

    python tools/verify/verify_export.py FOLDER                  # FOLDER/<name>/hf each
    python tools/verify/verify_export.py --type Q4_0 FOLDER llama qwen2

Each checkpoint is converted and exported again. With a type, those matrices that stay quantized, which
compressed-tensors decodes, are compared with the same ones decoded by ggufkit. Needs
transformers, torch and compressed-tensors. Exit code 1 where something differs.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar

from ggufkit.errors import GgufkitError
from ggufkit.jobs.convert import convert
from ggufkit.jobs.to_huggingface import export_hf

LIMIT = 1e-4


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--type", default="F32")
    arguments = parser.parse_args()
    disable_progress_bar()
    failed = 0
    for folder in sorted(arguments.folder.iterdir()):
        if not (folder / "hf").is_dir() or (arguments.names and folder.name not in arguments.names):
            continue
        try:
            with tempfile.TemporaryDirectory() as scratch:
                apart = compare(folder / "hf", Path(scratch), arguments.type)
        except GgufkitError as e:
            print(f"{folder.name:<20} {type(e).__name__}: {str(e)[:150]}", flush=True)
            continue
        except Exception as e:
            print(f"{folder.name:<20} FAILED {type(e).__name__}: {str(e)[:300]}", flush=True)
            failed += 1
            continue
        print(f"{folder.name:<20} {apart:.1e}", flush=True)
        failed += not apart <= LIMIT
    return bool(failed)


def compare(folder: Path, scratch: Path, type_: str) -> float:
    """The largest difference of a logit."""
    path = convert(folder, scratch / "a.gguf", type_, threads=2)
    export_hf(path, scratch / "out", dtype="float32")
    if type_ == "F32":
        reference = logits(folder)
    else:
        plain = scratch / "plain"
        export_hf(path, plain, dtype="float32", decode=True)
        reference = logits(plain)
    return float(np.abs(logits(scratch / "out") - reference).max())


def logits(folder: Path) -> np.ndarray:
    config = AutoConfig.from_pretrained(folder)
    model, report = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    lost: Any = {kind: names for kind, names in report.items() if names and kind != "unexpected_keys"}
    if lost:
        raise ValueError(f"not all weights were loaded: {lost}")
    vocab = getattr(config, "text_config", config).vocab_size
    ids = torch.arange(24, dtype=torch.int64)[None] * 7 % vocab
    with torch.no_grad():
        return model(input_ids=ids).logits.float().numpy()


if __name__ == "__main__":
    sys.exit(main())
