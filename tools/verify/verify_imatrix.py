#!/usr/bin/env python3
"""Importance matrices against llama.cpp's in the same run: the same model, text and windows.

    python tools/verify/verify_imatrix.py model-F32.gguf … -f calib.txt [--golden imatrix.gguf]

For each matrix the greatest difference of a value, as a part of the matrix's greatest value. llama.cpp's own sums are
those of its forward pass here; the importance file `--golden` was made by llama-imatrix elsewhere. With 16-bit weights
the activations are rounded, too, and one that falls to the other side changes all that follow: builds of llama.cpp for
different CPUs differ by more than 1e-4. ggufkit adds as a build for AVX-512 with BF16 does, and comes nearest to that.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np

import ggufkit
from ggufkit.calibrate.imatrix import collect
from ggufkit.cli.text import file_windows
from ggufkit.evaluate.windows import Windows
from ggufkit.importance.imatrix_file import read_imatrix

sys.path[:0] = [str(Path(__file__).parents[2] / place) for place in ("tests/oracles", "tests/models", "tools")]

import llama
import plain_errors


def reference_means(path: str, windows: Windows) -> dict[str, np.ndarray]:
    """Matrix → mean squares (cols,), by llama.cpp."""
    sums: dict[str, np.ndarray] = {}

    def see(name: str, x: np.ndarray) -> None:
        sums[name] = sums.get(name, 0) + np.einsum("ij,ij->j", x, x, dtype=np.float64)

    with llama.Model(path, windows.length, threads=2, evaluated=llama.matrix_inputs(see)) as model:
        for seen, _ in windows:
            model.logits(seen)
    return {name: found / windows.tokens.size for name, found in sums.items()}


def own_means(path: str, windows: Windows) -> dict[str, np.ndarray]:
    """The same by ggufkit."""
    with ggufkit.load(path, backend="cpu", as_ggml=True) as model:
        sums = collect(model, windows, output=True)
    return {name: found.squares[0] / found.counts[0] for name, found in sums.items()}


def apart(expected: Mapping[str, np.ndarray], found: Mapping[str, np.ndarray]) -> tuple[float, str]:
    """(the greatest difference, its matrix)."""
    assert set(expected) <= set(found), sorted(set(expected) - set(found))
    return max((float(abs(found[name] - v).max() / v.max()), name) for name, v in expected.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("-f", "--text", type=Path, required=True)
    parser.add_argument("--golden", type=Path, help="made by llama-imatrix from the first model")
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--chunks", type=int, default=64)
    options = parser.parse_args()
    for path in options.models:
        with ggufkit.load(path) as model:
            windows = file_windows(model, options.text, options.length, options.chunks)
        own, reference = own_means(path, windows), reference_means(path, windows)
        print("{}: {:.2e} from llama.cpp ({})".format(path, *apart(reference, own)), flush=True)
        if options.golden and path == options.models[0]:
            golden = read_imatrix(options.golden).values
            print("  from the golden: ggufkit {:.2e} ({})".format(*apart(golden, own)))
            print("  from the golden: llama.cpp here {:.2e} ({})".format(*apart(golden, reference)))


if __name__ == "__main__":
    plain_errors.run(main)
