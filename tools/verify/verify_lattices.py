#!/usr/bin/env python3
"""A plain model is never taken for one that was trained for a block format, and one that was always is.

    python tools/verify/verify_lattices.py                       # random matrices
    python tools/verify/verify_lattices.py FOLDER …              # and those of checkpoints below these folders
    python tools/verify/verify_lattices.py --model m.gguf        # and those of a GGUF file, in 16 and 32 bits

The random ones: a hundred of ten kinds in three precisions. Then blocks are decoded and rounded, and every weight must
be found again, for scales from 2⁻¹⁷ to 10. Exit code 1 where a matrix is taken wrongly.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

from ggufkit.checkpoint.folder import open_checkpoint
from ggufkit.errors import GgufkitError
from ggufkit.formats.codec import decode, encode
from ggufkit.formats.lattice import encode_lattice
from ggufkit.formats.table import FORMATS
from ggufkit.gguf.reader import open as open_gguf
from ggufkit.jobs.lattice import on_lattices
from ggufkit.tensors.tensor import Tensor

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "models"))
from weights import KINDS, plain_weights

SHAPE = (64, 512)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--model", action="append", default=[], type=Path)
    parser.add_argument("--cases", type=int, default=100)
    arguments = parser.parse_args()
    wrong = 0
    for case in range(arguments.cases):
        random, kind = np.random.default_rng(case), KINDS[case % len(KINDS)]
        values = plain_weights(kind, SHAPE, random)
        for source in ("BF16", "F16", "F32"):
            wrong += said(f"random {case}, {kind}", {"w": tensor_of(encode(values, source), source)})
    for folder in arguments.folders:
        for path in sorted(folder.rglob("config.json")):
            try:
                wrong += said(str(path.parent), open_checkpoint(path.parent).tensors)
            except GgufkitError as e:
                print(f"{path.parent}: {e}")
    for path in arguments.model:
        with open_gguf(path) as model:
            plain = {n: t for n, t in model.tensors.items() if t.format.name in ("BF16", "F16", "F32")}
            wrong += said(str(path), plain)
    print(f"{wrong} taken wrongly")
    lost = sum(missed(exponent, source) for exponent in (-17, -12, -8, -4, 0, 3) for source in ("BF16", "F16"))
    print(f"{lost} weights of trained ones lost")
    return bool(wrong or lost)


def tensor_of(blocks: np.ndarray, format: str) -> Tensor:
    return Tensor("w", SHAPE, FORMATS[format], lambda lo, hi: blocks[lo:hi])


def said(what: str, tensors: dict[str, Tensor]) -> int:
    """How many are taken for a lattice's."""
    found = on_lattices(tensors)
    for name, tensor in found.items():
        print(f"{what}: {name} is taken for {tensor.format.name}")
    return len(found)


def missed(exponent: int, source: str) -> int:
    """Weights that do not come back of matrices with scales of 2^exponent to 10 at most."""
    random, lost = np.random.default_rng(exponent & 0xFF), 0
    for name in ("Q4_0", "Q8_0", "Q4_1"):
        scales = np.minimum(np.exp2(random.uniform(exponent, exponent + 1, (SHAPE[0], SHAPE[1] // 32, 1))), 10)
        levels = {"Q4_0": (-8, 8), "Q8_0": (-127, 128), "Q4_1": (0, 16)}[name]
        codes = random.integers(*levels, (SHAPE[0], SHAPE[1] // 32, 32))
        halves = scales.astype(np.float16).astype(np.float32)
        biases = (halves * -7).astype(np.float16).astype(np.float32) if name == "Q4_1" else np.float32(0)
        values = (halves * codes + biases).reshape(SHAPE).astype(np.float32)
        values = decode(encode(values, source), source)
        blocks, _ = encode_lattice(values, FORMATS[name], source)
        again = decode(encode(decode(blocks, FORMATS[name]), source), source)
        gone = int((again != values).sum())
        if gone:
            print(f"{name} from {source}, scales of 2^{exponent}: {gone} weights are not found again")
        lost += gone
    return lost


if __name__ == "__main__":
    sys.exit(main())
