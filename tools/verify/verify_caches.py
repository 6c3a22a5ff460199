#!/usr/bin/env python3
"""The same cache types on the CPU and on MLX: KL divergence of their logits on a text, a line a type.

    python tools/verify/verify_caches.py model-F32.gguf [TYPE …] -f wiki.test.raw [--windows 8] [--tokens 512]

Weights in F32, or the CPU's rounding of activations is all that shows. A number within float32's error of the border
between two codes goes to one side here and to the other there, and then all that follows differs: the mean is made by
those few, the median by all others.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import verify_runtime
from verify_runtime import plain_errors

import ggufkit
from ggufkit.runtime.kv.types import TYPES


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("types", nargs="*", metavar="TYPE", default=list(TYPES))
    parser.add_argument("-f", "--file", required=True, metavar="TEXT")
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=512)
    options = parser.parse_args()
    n = options.tokens
    text = Path(options.file).read_text("utf-8", "replace")[: 16 * n * options.windows]
    with ggufkit.load(options.model, backend="cpu") as cpu, ggufkit.load(options.model, backend="mlx") as mlx:
        tokens = np.array(cpu.tokenizer.encode(text)[: n * options.windows], np.int32)
        print(f"{'':8} {'mean':>8} {'median':>8} {'P99':>8} {'most':>8}")
        for name in options.types:
            found = np.concatenate(
                [
                    verify_runtime.divergence(
                        *(m.forward(tokens[i : i + n], m.new_cache(n, name, name), logits="all") for m in (cpu, mlx))
                    )
                    for i in range(0, len(tokens), n)
                ]
            )
            figures = found.mean(), np.median(found), np.quantile(found, 0.99), found.max()
            print(f"{name:8} " + " ".join(f"{figure:8.1e}" for figure in figures), flush=True)


if __name__ == "__main__":
    plain_errors.run(main)
