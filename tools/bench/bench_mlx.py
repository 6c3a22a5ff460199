#!/usr/bin/env python3
"""Tokens a second on Apple Silicon: ggufkit on MLX and on the CPU, llama.cpp on Metal, mlx-lm; a table to send.

    pip install 'ggufkit[test]' mlx-lm
    python tools/bench/bench_mlx.py model-Q4_K_M.gguf model-Q8_0.gguf > table.md

Rounds of all engines take turns; medians. mlx-lm gets the folder that `export-mlx` makes of the file, where it makes
one. Operations are those of MLX's graph for one token, with and without views; bytes are the weights that it reads.
With --count that is all there is to it, and no Mac is needed: but recurrences are kernels of their own with Metal only.
"""

from __future__ import annotations

import argparse
import io
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median

import numpy as np

import ggufkit
from ggufkit.errors import GgufkitError
from ggufkit.runtime.mlx.ops import MlxOps
from ggufkit.runtime.ops import Ops

sys.path[:0] = [str(Path(__file__).parents[2] / place) for place in ("tests/oracles", "tests/models", "tools")]

import llama
import plain_errors

# Start anew for so many tokens, then take tokens: the logits of the last one are on the CPU when it returns.
Engine = tuple[Callable[[int], None], Callable[[np.ndarray], object]]


# Operations that look at an array in another way and compute nothing.
_VIEWS = {
    *("Broadcast", "Reshape", "Transpose", "Squeeze", "ExpandDims", "Slice", "Flatten", "Unflatten", "Split"),
    *("AsStrided", "StopGradient"),
}


def operations(x: object) -> tuple[int, int]:
    """Of the graph that gives an array: all, and those that compute."""
    import mlx.core as mx

    drawn = io.StringIO()
    mx.export_to_dot(drawn, x)
    names = re.findall(r'label ="(\w+)"', drawn.getvalue())
    return len(names), sum(name not in _VIEWS for name in names)


class Counted(MlxOps):
    """MLX's operations; how many of them the last logits took."""

    taken = 0, 0

    def numpy(self, x: object) -> np.ndarray:
        self.taken = operations(x)
        return super().numpy(x)


@contextmanager
def ours(path: str, backend: str | Ops) -> Iterator[Engine]:
    with ggufkit.load(path, backend=backend) as model:
        caches = []

        def start(tokens: int) -> None:
            caches[:] = [model.new_cache(tokens)]

        yield start, lambda tokens: model.forward(tokens, caches[0])


@contextmanager
def llama_cpp(path: str, context: int) -> Iterator[Engine]:
    with llama.Model(path, context, gpu_layers=-1) as model:
        done = 0

        def start(tokens: int) -> None:
            nonlocal done
            done = 0
            model.clear()

        def take(tokens: np.ndarray) -> None:
            nonlocal done
            model.logits(tokens, done, outputs="last")
            done += len(tokens)

        yield start, take


@contextmanager
def mlx_lm(path: str, taken: list[tuple[int, int]] | None = None) -> Iterator[Engine]:
    import mlx.core as mx
    from mlx_lm.models.cache import make_prompt_cache
    from mlx_lm.utils import load_model

    with tempfile.TemporaryDirectory() as folder:
        ggufkit.export_mlx(path, Path(folder) / "model")
        model, _ = load_model(Path(folder) / "model")
        caches = []

        def start(tokens: int) -> None:
            caches[:] = [make_prompt_cache(model)]

        def take(tokens: np.ndarray) -> np.ndarray:
            logits = model(mx.array(tokens)[None], cache=caches[0])[0, -1].astype(mx.float32)
            if taken is not None:
                taken.append(operations(logits))
            return np.array(logits)

        yield start, take


def engines(path: str, context: int, stack: ExitStack) -> Iterator[tuple[str, Engine]]:
    """Those that take this file."""
    makers = {
        "ggufkit, MLX": lambda: ours(path, "mlx"),
        "ggufkit, CPU": lambda: ours(path, "cpu"),
        "llama.cpp": lambda: llama_cpp(path, context),
        "mlx-lm": lambda: mlx_lm(path),
    }
    for name, make in makers.items():
        try:
            yield name, stack.enter_context(make())
        except (GgufkitError, ImportError, RuntimeError, ValueError) as e:
            print(f"{name} is left out: {e}", file=sys.stderr)


def compare(path: str, options: argparse.Namespace) -> None:
    tokens = np.random.default_rng(0).integers(3, 1000, options.prompt + options.generate).astype(np.int32)
    prompt, rest = tokens[: options.prompt], tokens[options.prompt :]
    seconds: dict[str, tuple[list[float], list[float]]] = {}
    with ExitStack() as stack:
        found = dict(engines(path, len(tokens), stack))
        for turn in range(options.rounds + 1):
            for name, (start, take) in found.items():
                start(len(tokens))
                times = [time.perf_counter()]
                take(prompt)
                times.append(time.perf_counter())
                for i in range(len(rest)):
                    take(rest[i : i + 1])
                times.append(time.perf_counter())
                if turn:
                    read, made = seconds.setdefault(name, ([], []))
                    read.append(times[1] - times[0])
                    made.append(times[2] - times[1])
    print(f"\n{Path(path).name}, {cost(path)}\n")
    print(f"| | prompt of {len(prompt)} | {len(rest)} generated |\n|---|---:|---:|")
    for name, (read, made) in seconds.items():
        print(f"| {name} | {len(prompt) / median(read):.1f} | {len(rest) / median(made):.1f} |", flush=True)


def cost(path: str) -> str:
    """Of one token on MLX: operations of ours and of mlx-lm's, and bytes of weights."""
    ops, theirs = Counted(), []
    with ggufkit.load(path, backend=ops) as model:
        cache = model.new_cache(8)
        for token in (3, 4):
            model.forward([token], cache)
        nbytes = sum(info.nbytes for name, info in model.gguf.info.items() if not name.startswith("token_embd"))
    try:
        with mlx_lm(path, theirs) as (start, take):
            start(8)
            for token in (3, 4):
                take(np.array([token], np.int32))
    except (GgufkitError, ImportError, RuntimeError, ValueError) as e:
        print(f"mlx-lm is left out: {e}", file=sys.stderr)
    counts = [("", ops.taken), *((", in mlx-lm", taken) for taken in theirs[-1:])]
    said = "".join(f"{where} {whole} operations, {some} of which compute" for where, (whole, some) in counts)
    return f"{nbytes / 1e6:.0f} MB a token on MLX:{said}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--generate", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--count", action="store_true", help="operations only")
    options = parser.parse_args()
    if options.count:
        for path in options.models:
            print(f"{Path(path).name}, {cost(path)}", flush=True)
        return
    print(
        subprocess.run([sys.executable, "-m", "ggufkit", "doctor"], capture_output=True, text=True, check=True).stdout
    )
    for path in options.models:
        compare(path, options)


if __name__ == "__main__":
    plain_errors.run(main)
