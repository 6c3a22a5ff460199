#!/usr/bin/env python3
"""Quantized checkpoints of many settings and base models, from tests/models' own packers: the weights that they mean.

    python tools/verify/verify_packed_settings.py qwen3moe gemma3     # families of tests/models; some minutes each

Bits, group sizes from 16 to a whole row, with zero points and without. Each is converted with ``inexact="F32"``, so
that every weight must be the one meant, bit for bit. Printed are what differs, and the types of each setting. Exit code
1 where anything differs.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from itertools import product
from pathlib import Path

import numpy as np

from ggufkit.errors import GgufkitError
from ggufkit.gguf.reader import open as open_gguf
from ggufkit.jobs.convert import convert

sys.path.append(str(Path(__file__).parents[2] / "tests" / "models"))
from tiny_families import FAMILIES
from tiny_packed import AWQ, GPTQ, Fp8Blocks, Int8, Packer, PackQuantized, Sparse24, write_packed

GROUPS = (16, 32, 64, 256, -1)
SETTINGS: tuple[Packer, ...] = (
    *(GPTQ(bits=bits, group=group, sym=sym) for bits, group, sym in product((2, 3, 4, 8), GROUPS, (True, False))),
    *(AWQ(group=group) for group in GROUPS[:-1]),
    *(PackQuantized(bits, group) for bits, group in product((2, 3, 4, 5, 6, 8), GROUPS)),
    *(PackQuantized(bits, group, sym=False) for bits, group in product((4, 8), (16, 32, -1))),
    *(Int8(), Fp8Blocks(), Sparse24()),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="+")
    failed = 0
    for name in parser.parse_args().families:
        for packer in SETTINGS:
            try:
                with tempfile.TemporaryDirectory() as scratch:
                    other, types = compare(name, packer, Path(scratch))
            except GgufkitError as e:
                other, types = [str(e)[:120]], set()
            failed += bool(other)
            print(f"{name:<12} {packer!s:<75} {' '.join(sorted(types)):<8} {'; '.join(other[:3])}", flush=True)
    return bool(failed)


def compare(name: str, packer: Packer, scratch: Path) -> tuple[list[str], set[str]]:
    """Tensors that are not what was meant, and the types of matrices."""
    folder = write_packed(FAMILIES[name](), packer, scratch / "packed", scratch / "plain")
    plain = convert(scratch / "plain", scratch / "plain.gguf", "F32", pre="llama-bpe", threads=1)
    found = convert(folder, scratch / "packed.gguf", inexact="F32", pre="llama-bpe", threads=1)
    with open_gguf(plain) as expected, open_gguf(found) as model:
        other = [
            name
            for name, tensor in expected.tensors.items()
            if not np.array_equal(tensor.floats(), model.tensors[name].floats())
        ]
        matrices = [t for n, t in model.tensors.items() if len(t.shape) > 1 and "blk" in n and "inp" not in n]
        return other, {tensor.format.name for tensor in matrices}


if __name__ == "__main__":
    sys.exit(main())
