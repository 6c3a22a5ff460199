#!/usr/bin/env python3
"""Logits of GGUF models against llama.cpp's: KL divergence at every position of random tokens.

    python tools/verify/verify_runtime.py model.gguf …            # F32 cache on both sides
    python tools/verify/verify_runtime.py --cache Q8_0 model.gguf

Both see the same tokens, once as one prompt and once one token at a time.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

import ggufkit
from ggufkit.runtime.model import Model

sys.path[:0] = [str(Path(__file__).parents[2] / place) for place in ("tests/oracles", "tests/models", "tools")]

import llama
import plain_errors


def log_softmax(x: np.ndarray) -> np.ndarray:
    x = x.astype(np.float64)
    x = x - x.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


def divergence(reference: np.ndarray, own: np.ndarray) -> np.ndarray:
    """KL(reference ‖ own) of each row of logits, in nats."""
    p, q = log_softmax(reference), log_softmax(own)
    return (np.exp(p) * (p - q)).sum(axis=-1)


def tokens_for(model: Model, n: int) -> np.ndarray:
    return np.random.default_rng(1).integers(10, model.vocabulary, n).astype(np.int32)


def compare(path: str, n: int, cache: str) -> tuple[float, float]:
    """Greatest KL divergence of a prompt's positions and of single steps."""
    with ggufkit.load(path) as model:
        tokens = tokens_for(model, n)
        own = model.forward(tokens, model.new_cache(n, cache, cache), logits="all")
        steps = model.new_cache(n, cache, cache)
        single = np.stack([model.forward(tokens[i : i + 1], steps) for i in range(n)])
    kind = llama.CACHE_TYPES[cache]
    # With flash attention the reference rounds sums to F16; without it only unquantized values are possible.
    flash = int(kind not in (0, 1, 30))
    with llama.Model(path, max(n, 32), cache=(kind, kind), flash_attn_type=flash) as reference:
        expected = reference.logits(tokens)
    return float(divergence(expected, own).max()), float(divergence(expected, single).max())


def compare_embeddings(path: str, n: int) -> float:
    """1 − cosine between the vectors of a text."""
    with ggufkit.load(path) as model:
        tokens = tokens_for(model, n)
        own = model.embed(tokens)
    with llama.Model(path, max(n, 32), embeddings=True, flash_attn_type=0) as reference:
        expected = reference.embed(tokens)
    return float(1 - own @ expected / np.linalg.norm(own) / np.linalg.norm(expected))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--tokens", type=int, default=100)
    parser.add_argument("--cache", choices=list(llama.CACHE_TYPES), default="F32")
    parser.add_argument("--limit", type=float, help="fail above this KL divergence")
    options = parser.parse_args()
    worst = 0.0
    for path in options.models:
        with ggufkit.load(path) as model:
            encoder = model.weights.output is None
        if encoder:
            apart = compare_embeddings(path, options.tokens)
            print(f"{path}: 1 - cosine {apart:.2e}", flush=True)
            worst = max(worst, apart)
        else:
            prompt, single = compare(path, options.tokens, options.cache)
            print(f"{path}: max KL {prompt:.2e} as a prompt, {single:.2e} token by token", flush=True)
            worst = max(worst, prompt, single)
    sys.exit(options.limit is not None and worst > options.limit)


if __name__ == "__main__":
    plain_errors.run(main)
