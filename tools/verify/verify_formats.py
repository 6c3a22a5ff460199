#!/usr/bin/env python3
"""Every encoder and decoder against libggml, byte for byte; then the same bytes on other CPUs and thread counts.

    python tools/verify/verify_formats.py                       # everything, 30 million weights per type and mode
    python tools/verify/verify_formats.py Q4_K IQ2_S --weights 1 --blocks 0.1

Other CPUs are cross-compiled: a process for each with NUMBA_CPU_NAME set. Exit code 1 if a byte differs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import numpy as np

from ggufkit.errors import CodecError
from ggufkit.formats import codec
from ggufkit.formats.table import Format, format_by_name, formats

sys.path[:0] = [str(Path(__file__).parents[2] / place) for place in ("tests/oracles", "tests/models", "tools")]

import ggml
import plain_errors
import weights as battery

SHAPES = ((200, 256), (18, 2816), (12, 4096), (50, 1024))


@dataclass
class Count:
    """Blocks compared. Refused: the reference's bytes, which its own check calls invalid (codec.validate agrees)."""

    blocks: int = 0
    differing: int = 0
    refused: int = 0

    def add(self, other: Count) -> None:
        self.blocks += other.blocks
        self.differing += other.differing
        self.refused += other.refused


def compare(x: np.ndarray, format: Format, importance: np.ndarray | None) -> Count:
    expected = ggml.quantize(x, format.id, importance).reshape(-1, format.type_size)
    try:
        actual = codec.encode(x, format, importance, threads=1).reshape(expected.shape)
    except CodecError:
        refused = 0 if codec.validate(expected, format) is None else len(expected)
        return Count(len(expected), len(expected) - refused, refused)
    suspects = expected[(expected != actual).any(1)]
    refused = sum(codec.validate(block, format) is not None for block in suspects)
    return Count(len(expected), len(suspects) - refused, refused)


def samples(seed: int, weighted: bool) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """The whole battery once, each kind of weights with the next kind of importance."""
    rows, cols = SHAPES[seed % len(SHAPES)]
    importances = cycle(list(battery.importances(cols, seed)))
    kinds = [x for _, x in battery.weights(rows, cols, seed)]
    kinds += [x for _, x in battery.real_weights(cols)] if seed == 0 else []
    for _ in range(seed):
        next(importances)
    for x in kinds:
        yield x, next(importances)[1] if weighted else None


def verify_encode(format: Format, weighted: bool, wanted: float) -> Count:
    """At least `wanted` weights."""
    count, seed = Count(), 0
    while count.blocks * format.block_size < wanted:
        for x, importance in samples(seed, weighted):
            count.add(compare(x, format, importance))
        seed += 1
    return count


def verify_decode(format: Format, wanted: float) -> Count:
    """At least `wanted` blocks of random bytes. Any NaN is right where the reference has one."""
    count, seed = Count(), 0
    n = max(1 << 22, format.block_size) // format.block_size
    while count.blocks < wanted:
        blocks = battery.random_blocks(n, format.type_size, seed)
        expected = ggml.to_float(blocks, format.id)
        actual = codec.decode(blocks, format, threads=1)
        differs = expected.view(np.uint32) != actual.view(np.uint32)
        if differs.any():
            differs &= ~(np.isnan(expected) & np.isnan(actual))
        count.add(Count(n, int(differs.any(1).sum())))
        seed += 1
    return count


def digests(chosen: list[Format], threads: int | None = None) -> dict[str, str]:
    """SHA-256 of what each encoder and decoder makes of the battery."""
    found = {}
    for format in chosen:
        decoded = codec.decode(battery.random_blocks(997, format.type_size), format, threads=threads)
        canonical = np.where(np.isnan(decoded), np.float32(0), decoded)
        found[f"{format.name} decode"] = hashlib.sha256(canonical.tobytes()).hexdigest()
        for weighted in (False, True):
            if not format.encodable or (format.needs_importance and not weighted):
                continue
            digest = hashlib.sha256()
            for x, importance in samples(3, weighted):
                try:
                    digest.update(codec.encode(x[:21], format, importance, threads=threads))
                except CodecError as e:
                    digest.update(str(e).encode())
            found[f"{format.name} encode{' with importance' * weighted}"] = digest.hexdigest()
    return found


def digests_on(cpu: str, chosen: list[Format]) -> dict[str, str]:
    command = [sys.executable, __file__, "--digests", *[format.name for format in chosen]]
    done = subprocess.run(
        command, env={**os.environ, "NUMBA_CPU_NAME": cpu}, stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout)


def compare_digests(where: str, expected: dict[str, str], actual: dict[str, str]) -> bool:
    differing = [what for what in expected if expected[what] != actual[what]]
    print(
        f"{where}: {len(expected) - len(differing)} of {len(expected)} the same", *differing, sep="\n    ", flush=True
    )
    return not differing


def in_ggml(format: Format) -> bool:
    """Whether llama.cpp encodes or decodes it; of F64 and the integers it does neither."""
    return format.is_quantized or format.name in ("F32", "F16", "BF16")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("formats", nargs="*", help="default all")
    parser.add_argument("--weights", type=float, default=30, help="million weights per type and mode (default 30)")
    parser.add_argument("--blocks", type=float, default=10, help="million random blocks a decoder (default 10)")
    parser.add_argument("--threads", default="1,2,3", help="thread counts that must agree (default 1,2,3)")
    parser.add_argument("--cpus", default="haswell,generic", help="NUMBA_CPU_NAMEs that must agree")
    parser.add_argument("--digests", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    chosen = [format_by_name(n) for n in options.formats] or [f for f in formats() if in_ggml(f)]
    if options.digests:
        print(json.dumps(digests(chosen)))
        return 0

    good = True
    print(f"{'type':<8} {'mode':<16} {'million':>8} {'blocks':>10} {'differing':>10} {'refused':>8} {'seconds':>8}")
    for format in chosen:
        modes = ["plain", "importance"] if format.encodable else []
        if format.needs_importance:
            modes = ["importance"]
        if ggml.traits(format.id).to_float:
            modes.append("decode")
        for mode in modes:
            start = time.perf_counter()
            if mode == "decode":
                count = verify_decode(format, options.blocks * 1e6)
            else:
                count = verify_encode(format, mode == "importance", options.weights * 1e6)
            good &= count.differing == 0
            print(
                f"{format.name:<8} {mode:<16} {count.blocks * format.block_size / 1e6:8.1f} {count.blocks:10} "
                f"{count.differing:10} {count.refused:8} {time.perf_counter() - start:8.1f}",
                flush=True,
            )
    first, *others = [int(n) for n in options.threads.split(",")]
    expected = digests(chosen, first)
    for threads in others:
        good &= compare_digests(f"{threads} threads", expected, digests(chosen, threads))
    for cpu in filter(None, options.cpus.split(",")):
        good &= compare_digests(cpu, expected, digests_on(cpu, chosen))
    print("all the same" if good else "DIFFERENCES")
    return 0 if good else 1


if __name__ == "__main__":
    plain_errors.run(main)
