#!/usr/bin/env python3
"""Logits of checkpoints, converted to F32, against those that llama.cpp computed: stored beside the checkpoints.

    python tools/verify/verify_logits.py FOLDER                  # FOLDER/<name>/hf with FOLDER/<name>/logits.npz
    python tools/verify/verify_logits.py --backend mlx FOLDER qwen35 gemma3n

Of each model the greatest KL divergence (an upper estimate from the stored logits of some tokens and the sum of all),
and that of the last tokens when they come one by one; of encoders 1 − the smallest cosine of a token. Exit code 1
above the limit.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import ggufkit
from ggufkit.errors import GgufkitError
from ggufkit.jobs.convert import convert

# Options that a reference was made with.
OPTIONS: dict[str, dict[str, Any]] = {"mimo2": {"mtp": False}}
STEPS = 3  # tokens that come one by one


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--backend", default="cpu")
    parser.add_argument("--limit", type=float, default=1e-6)
    arguments = parser.parse_args()
    worst = 0.0
    for folder in sorted(arguments.folder.iterdir()):
        if not (folder / "logits.npz").is_file() or (arguments.names and folder.name not in arguments.names):
            continue
        try:
            apart = compare(folder, arguments.backend)
            print(f"{folder.name:<20} {apart[0]:.1e}  {apart[1]:.1e}", flush=True)
            worst = max(worst, *apart)
        except GgufkitError as e:
            print(f"{folder.name:<20} {type(e).__name__}: {e}", flush=True)
            worst = np.inf
    return worst > arguments.limit


def compare(folder: Path, backend: str = "cpu") -> tuple[float, float]:
    """The greatest divergence of a text's positions, and of its last tokens as single steps."""
    stored = np.load(folder / "logits.npz")
    with tempfile.TemporaryDirectory() as scratch:
        path = convert(folder / "hf", Path(scratch) / "f32.gguf", "F32", threads=2, **OPTIONS.get(folder.name, {}))
        with ggufkit.load(path, backend=backend) as model:
            if model.weights.output is None or "llama0" in stored:
                return max(_cosines(model, stored, i) for i in (0, 1)), 0.0
            apart = [_divergence(model, stored, i) for i in (0, 1)]
    return max(prompt for prompt, _ in apart), max(single for _, single in apart)


def _divergence(model: Any, stored: Any, i: int) -> tuple[float, float]:
    ids, subset = stored[f"ids{i}"], stored["subset_ids"]
    logits = model.forward(ids, model.new_cache(len(ids), "F32", "F32"), "all").astype(np.float64)
    wanted, total = stored[f"subset{i}"].astype(np.float64), stored[f"logsumexp{i}"]
    found = logits.max(-1) + np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1))
    # Σ p (Δ − mean Δ)² / 2 to second order; of p only the subset's part is known, and its greatest Δ stands for all.
    difference = (wanted - total[:, None]) - (logits[:, subset] - found[:, None])
    prompt = float((difference**2).max(-1).max() / 2)
    cache = model.new_cache(len(ids), "F32", "F32")
    model.forward(ids[:-STEPS], cache, None)
    single = np.stack([model.forward([token], cache) for token in ids[-STEPS:]]).astype(np.float64)
    return prompt, float(((single - logits[-STEPS:]) ** 2).max() / 2)


def _cosines(model: Any, stored: Any, i: int) -> float:
    own, wanted = model.embed(stored[f"ids{i}"], "none"), stored[f"llama{i}"]
    cosines = (own * wanted).sum(1) / np.linalg.norm(own, axis=1) / np.linalg.norm(wanted, axis=1)
    return float(1 - cosines.min())


if __name__ == "__main__":
    sys.exit(main())
