#!/usr/bin/env python3
"""Is a file's KL divergence in llama.cpp what it is here? Both read the same windows of a text.

    python tools/verify/verify_divergence.py source-F32.gguf a.gguf b.gguf … -f judge.txt -c 256 --chunks 32
    python tools/verify/verify_divergence.py source-F32.gguf a.gguf -f judge.txt --weights

The source's predictions are each program's own, of the second half of each window. With --weights the files are
decoded to F32 first: then no activation is rounded, and what is compared is what the weights do. Wrong is a mean that
is more than 2 % off. A single window says little: activations that fall to the other side when they are rounded change
all that follows.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
from verify_runtime import divergence, llama, plain_errors

import ggufkit
from ggufkit.cli.text import file_windows
from ggufkit.jobs.quantize import quantization
from ggufkit.policy.recipe import recipe_of

FAR = 0.02
Predict = Callable[[np.ndarray], np.ndarray]


def decoded(path: Path, folder: Path) -> Path:
    with ggufkit.open(path) as gguf:
        recipe = replace(recipe_of("F32"), allow_requantize=True)
        return quantization(gguf, folder / f"{path.stem}-F32.gguf", recipe).write()[0]


def own(path: Path, length: int, stack: ExitStack) -> Predict:
    model = stack.enter_context(ggufkit.load(path, backend="cpu"))
    cache = model.new_cache(length)

    def logits(tokens: np.ndarray) -> np.ndarray:
        cache.truncate(0)
        return model.forward(tokens, cache, logits=length - length // 2)

    return logits


def theirs(path: Path, length: int, stack: ExitStack, flash: int) -> Predict:
    model = stack.enter_context(llama.Model(path, length, threads=2, flash_attn_type=flash))
    return lambda tokens: model.logits(tokens)[length // 2 :]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("-f", "--text", type=Path, required=True)
    parser.add_argument("-c", "--context", type=int, default=512)
    parser.add_argument("--chunks", type=int, default=16)
    parser.add_argument("--weights", action="store_true", help="decode the files first")
    parser.add_argument("--flash", action="store_true", help="let llama.cpp use its flash attention")
    options = parser.parse_args()
    n = options.context
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        paths = [decoded(path, folder) for path in options.models] if options.weights else options.models
        with ggufkit.load(options.source) as model:
            windows = file_windows(model, options.text, n, options.chunks)
        sides = [
            [own(path, n, stack) for path in (options.source, *paths)],
            [theirs(path, n, stack, int(options.flash)) for path in (options.source, *paths)],
        ]
        found = np.zeros((2, len(paths), len(windows), n - n // 2 - 1))
        for w, (seen, _) in enumerate(windows):
            for side, (source, *models) in enumerate(sides):
                base = source(seen)[:-1]
                for i, predict in enumerate(models):
                    found[side, i, w] = divergence(base, predict(seen)[:-1])
            print(f"window {w + 1} of {len(windows)}", end="\r", file=sys.stderr, flush=True)
    wrong = 0
    print("model                                      here   llama.cpp   ratio       ±   of single windows")
    for i, path in enumerate(options.models):
        ours, other = found[:, i].mean(-1)  # (windows,) each
        ratio, single = ours.mean() / other.mean(), ours / other
        error = (ours - ratio * other).std() / np.sqrt(len(ours)) / other.mean()
        far = abs(ratio - 1) > FAR
        wrong += far
        print(
            f"{path.name:36} {ours.mean():10.5f}  {other.mean():10.5f} {ratio:7.4f} {error:7.4f}   "
            f"{single.min():.3f} … {single.max():.3f}{'  more than 2 % off' if far else ''}"
        )
    return 1 if wrong else 0


if __name__ == "__main__":
    plain_errors.run(main)
