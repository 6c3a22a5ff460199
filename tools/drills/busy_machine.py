#!/usr/bin/env python3
"""How much of its speed generation keeps on a machine that is busy, beside llama.cpp's.

    python tools/drills/busy_machine.py model.gguf --threads 2 --loops 4

Processes that only count take the CPUs; a thread that waits for its turn must not hold up the others. Tokens are
generated alone and beside them, in turns.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np

from ggufkit.runtime.model import load

sys.path[:0] = [str(Path(__file__).parents[2] / place) for place in ("tests/oracles", "tests/models", "tools")]

import llama
import plain_errors

PROMPT = np.arange(10, 20, dtype=np.int32)


def count() -> None:
    number = 0
    while True:
        number += 1


def rate(step: Callable[[], object], tokens: int) -> float:
    """Tokens per second."""
    start = time.perf_counter()
    for _ in range(tokens):
        step()
    return tokens / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--loops", type=int, default=4, help="processes that only count")
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    length = len(PROMPT) + options.tokens * (2 * options.rounds + 1)
    token = np.array([7], np.int32)
    with (
        load(options.model, threads=options.threads) as own,
        llama.Model(options.model, length, options.threads) as reference,
    ):
        cache, place = own.new_cache(length), itertools.count(len(PROMPT))
        own.forward(PROMPT, cache)
        reference.logits(PROMPT, outputs="last")
        both = {
            "ggufkit": lambda: own.forward(token, cache),
            "llama.cpp": lambda: reference.logits(token, start=next(place), outputs="last"),
        }
        for step in both.values():
            rate(step, options.tokens)
        found: dict[tuple[str, bool], list[float]] = {(name, busy): [] for name in both for busy in (False, True)}
        for _ in range(options.rounds):
            for busy in (False, True):
                loops = [multiprocessing.Process(target=count, daemon=True) for _ in range(options.loops * busy)]
                for loop in loops:
                    loop.start()
                for name, step in both.items():
                    found[name, busy].append(rate(step, options.tokens))
                for loop in loops:
                    loop.kill()
                    loop.join()
    for name in both:
        alone, beside = median(found[name, False]), median(found[name, True])
        print(
            f"{name:10} {alone:8.1f} tokens/s alone, {beside:7.1f} beside {options.loops}: keeps {beside / alone:.2f}"
        )


if __name__ == "__main__":
    plain_errors.run(main)
