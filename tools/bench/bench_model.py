#!/usr/bin/env python3
"""Tokens a second of a model, against llama.cpp in the same run: interleaved rounds, medians.

    python tests/models/random_llama.py random-f16.gguf
    python tools/bench/bench_model.py random-f16.gguf random-q4_k_m.gguf --threads 2 --prompt 512 --generate 16

`pp` is a prompt in one batch, `tg` tokens one after the other with a full round trip of the logits.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from statistics import median

import numpy as np

from ggufkit.runtime.model import load

sys.path[:0] = [str(Path(__file__).parents[2] / place) for place in ("tests/oracles", "tests/models", "tools")]

import llama
import plain_errors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--generate", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cpu-time", action="store_true", help="CPU seconds of the process: for a busy machine")
    options = parser.parse_args()
    clock = time.process_time if options.cpu_time else time.perf_counter
    for path in options.models:
        compare(path, options, clock)


def compare(path: str, options: argparse.Namespace, clock) -> None:
    rng = np.random.default_rng(0)
    tokens = rng.integers(3, 32000, options.prompt + options.generate).astype(np.int32)
    prompt, rest = tokens[: options.prompt], tokens[options.prompt :]
    seconds: dict[str, list[float]] = {f"{who} {what}": [] for what in ("pp", "tg") for who in ("llama.cpp", "ggufkit")}
    with load(path, threads=options.threads) as own, llama.Model(path, len(tokens), options.threads) as reference:
        for turn in range(options.rounds + 1):
            theirs, ours = [], []
            if options.prompt:
                start = clock()
                theirs.append(reference.logits(prompt, outputs="last"))
                seconds["llama.cpp pp"].append(clock() - start)
                cache = own.new_cache(len(tokens))
                start = clock()
                ours.append(own.forward(prompt, cache))
                seconds["ggufkit pp"].append(clock() - start)
            else:
                reference.clear()
                cache = own.new_cache(len(tokens))
            start = clock()
            for i, token in enumerate(rest):
                theirs.append(reference.logits(np.array([token]), options.prompt + i, outputs="last"))
            seconds["llama.cpp tg"].append(clock() - start)
            start = clock()
            for token in rest:
                ours.append(own.forward([token], cache))
            seconds["ggufkit tg"].append(clock() - start)
            if turn == 0:
                print(
                    f"{path}, {options.threads} threads; largest KL divergence {divergence(theirs, ours):.1e}",
                    flush=True,
                )
    for what, n in (("pp", options.prompt), ("tg", options.generate)):
        theirs, ours = seconds[f"llama.cpp {what}"][1:], seconds[f"ggufkit {what}"][1:]
        if n and theirs:
            ratio = median(t / o for t, o in zip(theirs, ours, strict=True))
            speeds = f"llama.cpp {n / median(theirs):8.2f}   ggufkit {n / median(ours):8.2f} tokens/s"
            print(f"  {what}{n:<5} {speeds}   {ratio:.2f}x", flush=True)


def divergence(theirs: list[np.ndarray], ours: list[np.ndarray]) -> float:
    def log_softmax(x: np.ndarray) -> np.ndarray:
        x = x.astype(np.float64)
        return x - x.max() - np.log(np.exp(x - x.max()).sum())

    pairs = [(log_softmax(t), log_softmax(o)) for t, o in zip(theirs, ours, strict=True)]
    return max((np.exp(t) * (t - o)).sum() for t, o in pairs)


if __name__ == "__main__":
    plain_errors.run(main)
