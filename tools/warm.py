#!/usr/bin/env python3
"""Compile every kernel into the cache, and say how long each takes to compile and then to load.

    python tools/warm.py            # encoders, decoders, products and all that running models needs
    python tools/warm.py --cold     # in an empty cache, each kernel on its own; check 5 of the formats

NUMBA_CPU_NAME compiles for another CPU.
"""

from __future__ import annotations

import argparse
import importlib
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import ggufkit
from ggufkit.errors import GgufkitError
from ggufkit.evaluate.perplexity import BaseFile, BaseWriter, divergence, perplexity
from ggufkit.evaluate.windows import Windows
from ggufkit.formats.codec import _past_caches, decode, decoder, encode, frozen
from ggufkit.formats.table import Format, formats
from ggufkit.kernels.xxh64 import XXH64
from ggufkit.runtime.cpu.bandwidth import read_all
from ggufkit.runtime.cpu.cache import rotate
from ggufkit.runtime.cpu.products import product_of, rounded
from ggufkit.runtime.cpu.weight import Weight
from ggufkit.tensors.tensor import Tensor

sys.path[:0] = [str(Path(__file__).parents[1] / place) for place in ("tests/oracles", "tests/models", "tools")]

from tiny_models import RECIPES, VOCAB, write_tiny

VERBS = ("encode", "encode_weighted", "decode")


def kernel_names() -> list[tuple[Format, str]]:
    """(format, verb) of all kernels."""
    found = []
    for format in formats():
        family = importlib.import_module(f"ggufkit.formats.{format.family}")
        found += [(format, verb) for verb in VERBS if hasattr(family, f"{format.name.lower()}_{verb}")]
    return found


def run(format: Format, verb: str) -> float:
    """Seconds of processor time of the first call, on one block."""
    family = importlib.import_module(f"ggufkit.formats.{format.family}")
    kernel = getattr(family, f"{format.name.lower()}_{verb}")
    x = frozen(np.linspace(-1, 1, format.block_size, dtype=np.float32)[None])
    blocks = np.zeros((1, format.type_size), np.uint8)
    start = time.thread_time()
    if verb == "encode":
        kernel(x, blocks)
    elif verb == "encode_weighted":
        kernel(x, frozen(np.ones(format.block_size, np.float32)), blocks)
    else:
        kernel(frozen(blocks), np.empty((1, format.block_size), np.float32))
    return time.thread_time() - start


def run_all(label: str, *, verbose: bool) -> float:
    """Total seconds; with `verbose` a line a kernel."""
    total = 0.0
    for format, verb in kernel_names():
        seconds = run(format, verb)
        total += seconds
        if verbose:
            print(f"{format.name:<8} {verb:<16} {seconds:7.2f} s", flush=True)
    print(f"{len(kernel_names())} kernels {label}: {total:.2f} s", flush=True)
    return total


def products() -> None:
    """The products of every format with one row of activations and with many, and those that round."""
    for format in formats():
        for product in {product_of(format), rounded.PRODUCTS.get(format.name)} - {None}:
            blocks = frozen(np.zeros((8, format.row_bytes(1024)), np.uint8))
            weight = Weight(Tensor("w", (8, 1024), format, lambda lo, hi, blocks=blocks: blocks[lo:hi]), 1, product)
            for rows in (1, 40):
                weight.multiply(np.ones((rows, 1024), np.float32))


def large_files() -> None:
    """What large files take: the loops over chunks, decoders that write past the caches, hashes."""
    blocks = encode(np.zeros((1, 32), np.float32), "Q8_0")
    for given in (blocks, frozen(blocks)):
        decode(given, "Q8_0")
    for format in formats():
        blocks = frozen(np.zeros((1, format.type_size), np.uint8))
        _past_caches(decoder(format))(blocks, np.empty((1, format.block_size), np.float32))
    XXH64().update(bytes(64))


def models() -> None:
    """Prompts and single tokens through a model of each architecture, with each type of cache."""
    windows = Windows(np.arange(64) % (VOCAB - 1), 32)
    with tempfile.TemporaryDirectory() as folder:
        path, base = Path(folder) / "tiny.gguf", Path(folder) / "base.kld"
        for name in RECIPES:
            write_tiny(path, name, "F16")
            with ggufkit.load(path) as model:
                if model.weights.output is None:
                    model.embed(windows.tokens[0])
                    continue
                for kind in ("F32", "F16", "Q8_0", "Q4_0"):
                    try:
                        cache = model.new_cache(40, kind, kind)
                    except GgufkitError:  # its heads do not divide into blocks
                        continue
                    model.forward(windows.tokens[0], cache, "all")
                    model.forward(windows.tokens[0][:1], cache)
                if name == "llama":
                    with open(base, "wb") as file:
                        perplexity(model, windows, base=BaseWriter(file, windows, model.vocabulary))
                    perplexity(model, windows)
                    divergence(model, BaseFile(base), windows)
    rotate(np.ones((1, 64), np.float32), 64)
    read_all([frozen(np.zeros(1 << 16, np.uint8))], 1)


def cold() -> None:
    """Each kernel compiled in a process of its own with an empty cache, then all loaded by a new process."""
    worst = 0.0
    for format, verb in kernel_names():
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, __file__, "--one", format.name, verb]
            environment = {**os.environ, "NUMBA_CACHE_DIR": folder}
            done = subprocess.run(
                command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True
            )
            seconds = float(done.stdout)
        worst = max(worst, seconds)
        print(f"{format.name:<8} {verb:<16} {seconds:7.2f} s", flush=True)
    print(f"slowest: {worst:.2f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--cold", action="store_true", help="each kernel alone, in an empty cache")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--load", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        (wanted,) = [(f, verb) for f, verb in kernel_names() if [f.name, verb] == options.one]
        print(run(*wanted))
    elif options.load:
        run_all("loaded from the cache", verbose=False)
    elif options.cold:
        cold()
    else:
        run_all("compiled or loaded", verbose=True)
        for what in (products, large_files, models):
            start = time.thread_time()
            what()
            print(f"{what.__name__} compiled or loaded: {time.thread_time() - start:.2f} s", flush=True)
        subprocess.run([sys.executable, __file__, "--load"], check=True)


if __name__ == "__main__":
    main()
