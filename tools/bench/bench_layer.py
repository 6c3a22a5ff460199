#!/usr/bin/env python3
"""What GPTQ takes for one matrix of a large model: seconds of CPU for each step, and the most memory.

    python tools/bench/bench_layer.py 4096 14336                     # rows and columns: the widest of a 7B model
    python tools/bench/bench_layer.py 14336 4096 --types Q4_K IQ3_XXS

Weights are random, activations of both streams, too, with neighbours that resemble each other.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from ggufkit.calibrate.gptq import rounded
from ggufkit.calibrate.products import Factor, second_moment
from ggufkit.calibrate.streams import Inputs, Pair

sys.path[:0] = [str(Path(__file__).parents[1])]

import plain_errors


def used() -> float:
    found = resource.getrusage(resource.RUSAGE_SELF)
    return found.ru_utime + found.ru_stime


class Clock:
    """Prints the CPU seconds since the last step."""

    def __init__(self, weights: int) -> None:
        self.weights, self.total = weights, 0.0
        self.start()

    def start(self) -> None:
        self.before, self.wall = used(), time.monotonic()

    def step(self, name: str) -> None:
        seconds = used() - self.before
        self.total += seconds
        wall = time.monotonic() - self.wall
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
        each = 1e9 * seconds / self.weights
        print(
            f"{name:16} {seconds:8.1f} s of CPU {wall:8.1f} s {each:8.1f} ns per weight   peak {peak:.2f} GiB",
            flush=True,
        )
        self.start()


def activations(tokens: int, cols: int) -> Pair:
    rng = np.random.default_rng(0)
    original = np.empty((tokens, cols), np.float32)
    quantized = np.empty((tokens, cols), np.float32)
    for i in range(tokens):  # a row at a time: large temporaries would count as memory of the job
        row = rng.standard_normal(cols, dtype=np.float32)
        row[1:] += 0.5 * row[:-1].copy()
        original[i], quantized[i] = row, row + 0.01 * rng.standard_normal(cols, dtype=np.float32)
    return Pair(quantized, original)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=int)
    parser.add_argument("cols", type=int)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--types", nargs="+", default=["Q4_K"])
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    small = Factor(np.eye(256, dtype=np.float32), 0.01)
    for name in options.types:  # kernels are compiled before the clock starts
        rounded(np.ones((16, 256), np.float32), small, name)
    second_moment(np.ones((64, 64), np.float32))
    rng = np.random.default_rng(1)
    W = np.stack([0.02 * rng.standard_normal(options.cols, dtype=np.float32) for _ in range(options.rows)])
    x = activations(options.tokens, options.cols)
    clock = Clock(options.rows * options.cols)
    streams = SimpleNamespace(threads=options.threads, two=True)
    inputs = Inputs(x, streams, None)  # type: ignore[arg-type]  # of `Streams` it reads these two
    factor = inputs.factor
    clock.step("moment, factor")
    target = inputs.target(W)
    clock.step("targets")
    for name in options.types:
        rounded(target, factor, name, threads=options.threads)
        clock.step(f"{name}, 2 sweeps")
    print(f"{options.rows} × {options.cols}, {options.tokens} tokens: {clock.total:.0f} s of CPU in all")


if __name__ == "__main__":
    plain_errors.run(main)
