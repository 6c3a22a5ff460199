#!/usr/bin/env python3
"""Made-up variants of many families: what we convert against llama.cpp's converter, and what we compute against it.

    python tools/generate/make_variants.py --llama-cpp DIR FOLDER OUT      # makes them, in an environment with torch
    python tools/verify/verify_variants.py OUT
    python tools/verify/verify_variants.py --backend mlx OUT qwen35 gemma4-e

Of each variant the files are compared byte for byte with `ref_*.gguf`, and the logits of the F32 file with those of
llama.cpp, which reads the same file: the greatest KL divergence of a text's positions and of its last tokens one by
one; of encoders 1 − the smallest cosine of a token. llama.cpp runs in a process of its own: it may abort. What it
does not load, and what its converter refuses, is counted apart. Exit code 1 where anything else is not equal.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import queue
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path[:0] = [str(Path(__file__).parents[2] / place) for place in ("tests/oracles", "tools/verify")]

import llama
import verify_models
from verify_runtime import divergence

import ggufkit
from ggufkit.errors import GgufkitError
from ggufkit.gguf import reader
from ggufkit.jobs.convert import convert

LENGTHS = 24, 70  # of the texts, random tokens
STEPS = 3  # tokens that come one by one
KINDS = {"f16": "F16", "f32": "F32", "mmproj": "F16"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("families", nargs="*")
    parser.add_argument("--backend", default="cpu")
    parser.add_argument("--bytes", action="store_true", help="compare the files alone")
    parser.add_argument("--limit", type=float, default=1e-6)
    arguments = parser.parse_args()
    os.environ["GGML_NO_BACKTRACE"] = "1"
    counts = dict.fromkeys(("files", "equal", "refused by llama.cpp", "models", "within the limit", "not loaded"), 0)
    for folder in sorted(arguments.folder.iterdir()):
        if arguments.families and folder.name.rpartition("-")[0] not in arguments.families:
            continue
        for kind in KINDS:
            compare_files(folder, kind, counts)
        if not arguments.bytes and (folder / "ref_f32.gguf").is_file():
            compare_logits(folder, arguments.backend, arguments.limit, counts)
    print(", ".join(f"{count} {what}" for what, count in counts.items()))
    return counts["files"] != counts["equal"] or counts["models"] != counts["within the limit"]


def compare_files(folder: Path, kind: str, counts: dict[str, int]) -> None:
    wanted = folder / f"ref_{kind}.gguf"
    counts["refused by llama.cpp"] += wanted.with_suffix(".error").is_file()
    if not wanted.is_file():
        return
    counts["files"] += 1
    options = json.loads((folder / "variant.json").read_text())["options"]
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "out.gguf"
        try:
            convert(folder / "hf", out, KINDS[kind], threads=2, **options, mmproj=kind == "mmproj")
        except GgufkitError as e:
            print(f"{folder.name} {kind}: {type(e).__name__}: {e}", flush=True)
            return
        if digest(out) == digest(wanted):
            counts["equal"] += 1
            return
        with reader.open(out) as found, reader.open(wanted) as file:
            for part in (verify_models.pairs, verify_models.tensors):
                if (difference := verify_models.first_difference(part(found), part(file))) is not None:
                    print(f"{folder.name} {kind}: {difference}", flush=True)
                    return


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def compare_logits(folder: Path, backend: str, limit: float, counts: dict[str, int]) -> None:
    path = folder / "ref_f32.gguf"
    try:
        with ggufkit.load(path, backend=backend) as model:
            expected = apart(reference, path, model.weights.output is None)
            if expected is None:
                counts["not loaded"] += 1
                return
            found = max(difference(model, *pair) for pair in expected)
    except GgufkitError as e:
        if apart(loads, path):
            counts["models"] += 1
            print(f"{folder.name}: {type(e).__name__}: {e}", flush=True)
        else:
            counts["not loaded"] += 1
        return
    counts["models"] += 1
    counts["within the limit"] += found <= limit
    print(f"{folder.name:<24} {found:.1e}", flush=True)


def apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function gives in a process of its own; None where that dies."""
    results = multiprocessing.get_context("spawn").Queue()
    process = multiprocessing.get_context("spawn").Process(target=_answer, args=(results, function, *arguments))
    process.start()
    while True:
        try:
            return results.get(timeout=0.2)
        except queue.Empty:
            if not process.is_alive():
                return None


def _answer(results: Any, function: Callable[..., Any], *arguments: Any) -> None:
    try:
        results.put(function(*arguments))
    except RuntimeError:
        results.put(None)


def loads(path: Path) -> bool:
    """Whether llama.cpp does; it raises otherwise, or dies."""
    with llama.Model(path):
        return True


def reference(path: Path, encoder: bool) -> list[tuple[np.ndarray, np.ndarray]]:
    """(tokens, what llama.cpp makes of them): logits, or an encoder's last states."""
    with reader.open(path) as file:
        vocabulary = file.tensors["token_embd.weight"].shape[0]
    with llama.Model(
        path, cache=(llama.F32, llama.F32), repack=False, flash_attn_type=0, embeddings=encoder,
        **({"pooling_type": 0} if encoder else {}),
    ) as model:  # fmt: skip
        texts = [np.random.default_rng(3).integers(5, vocabulary - 40, length) for length in LENGTHS]
        return [(tokens, model.embed(tokens) if encoder else model.logits(tokens)) for tokens in texts]


def difference(model: Any, tokens: np.ndarray, wanted: np.ndarray) -> float:
    if model.weights.output is None:
        own = model.embed(tokens, "none")
        cosines = (own * wanted).sum(1) / np.linalg.norm(own, axis=1) / np.linalg.norm(wanted, axis=1)
        return float(1 - cosines.min())
    whole = model.forward(tokens, model.new_cache(len(tokens), "F32", "F32"), "all")
    cache = model.new_cache(len(tokens), "F32", "F32")
    model.forward(tokens[:-STEPS], cache, None)
    single = np.stack([model.forward([token], cache) for token in tokens[-STEPS:]])
    return float(max(divergence(wanted, whole).max(), divergence(wanted[-STEPS:], single).max()))


if __name__ == "__main__":
    sys.exit(main())
