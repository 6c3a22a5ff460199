#!/usr/bin/env python3
"""Tokens a second late in a conversation, for each type of cache, against llama.cpp in the same run.

    python tests/models/random_llama.py random-f16.gguf
    ggufkit quantize random-f16.gguf random.gguf Q4_K_M
    python tools/bench/bench_caches.py random.gguf --depth 4096 --threads 2 F16 Q4_0 tq4

Each cache is filled with a prompt once; then tokens are added to all of them in turn. llama.cpp has the types of GGML
only. Medians of the time of a token.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from statistics import median

import numpy as np

from ggufkit.runtime.model import load

sys.path[:0] = [str(Path(__file__).parents[2] / place) for place in ("tests/oracles", "tests/models", "tools")]

import llama
import plain_errors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("types", nargs="+", metavar="TYPE", help="of keys and values alike")
    parser.add_argument("--depth", type=int, default=4096)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=16)
    parser.add_argument("--cpu-time", action="store_true", help="CPU seconds of the process: for a busy machine")
    options = parser.parse_args()
    clock = time.process_time if options.cpu_time else time.perf_counter
    length = options.depth + options.rounds + 1
    tokens = np.random.default_rng(0).integers(3, 32000, length).astype(np.int32)
    step: dict[str, Callable[[int], object]] = {}
    with ExitStack() as stack:
        own = stack.enter_context(load(options.model, threads=options.threads))
        for kind in options.types:
            cache = own.new_cache(length, kind, kind)
            own.forward(tokens[: options.depth], cache, None)
            step[f"ggufkit {kind}"] = lambda i, cache=cache: own.forward(tokens[i : i + 1], cache)
        for kind in options.types:
            if (number := llama.CACHE_TYPES.get(kind)) is None:
                continue
            types = (number, number)
            reference = stack.enter_context(llama.Model(options.model, length, options.threads, cache=types))
            reference.decode(tokens[: options.depth], outputs="last")
            step[f"llama.cpp {kind}"] = lambda i, it=reference: it.logits(tokens[i : i + 1], start=i, outputs="last")
        seconds: dict[str, list[float]] = {name: [] for name in step}
        for turn in range(options.rounds + 1):
            for name, run in step.items():
                start = clock()
                run(options.depth + turn)
                if turn:  # the first is for kernels and pages
                    seconds[name].append(clock() - start)
    for name, found in seconds.items():
        print(f"{name:16} {1 / median(found):7.2f} tokens/s after {options.depth} tokens")


if __name__ == "__main__":
    plain_errors.run(main)
