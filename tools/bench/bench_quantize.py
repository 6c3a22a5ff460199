"""How fast a whole model is quantized, against llama.cpp's encoder on the same rows in the same run.

    python tools/bench/bench_quantize.py /big/disk                           # Llama 3 8B's shape: 16 GB, then 4.9 GB
    python tools/bench/bench_quantize.py /tmp --layers 2 --vocabulary 8192   # a small one

The source holds random weights and is removed afterwards. `ggufkit quantize` runs as a process of its own; its time
counts from the start of Python to the renamed file on the disk. The reference is `ggml_quantize_chunk` in as many
threads at once, on the tensor types that the preset chose, before and after. On a busy machine compare the CPU seconds.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

import ggufkit
from ggufkit.formats import codec
from ggufkit.formats.table import FORMATS, Format
from ggufkit.gguf.writer import Writer
from ggufkit.jobs.quantize import quantization
from ggufkit.kernels.threads import for_each
from ggufkit.storage.once import reserve, write_streamed
from ggufkit.storage.source import FileSource

sys.path[:0] = [str(Path(__file__).parents[2] / place) for place in ("tests/oracles", "tests/models", "tools")]

import ggml
import plain_errors

EMBD, FF, KV = 4096, 14336, 1024
LAYER = {
    "attn_k": (KV, EMBD),
    "attn_output": (EMBD, EMBD),
    "attn_q": (EMBD, EMBD),
    "attn_v": (KV, EMBD),
    "ffn_down": (EMBD, FF),
    "ffn_gate": (FF, EMBD),
    "ffn_up": (FF, EMBD),
}
TILE = 1 << 23  # random weights, used again and again from other places


def tile() -> np.ndarray:
    """(TILE,) float32, values of BF16."""
    values = (np.random.default_rng(0).standard_normal(TILE) * 0.02).astype(np.float32)
    return (values.view(np.uint32) & 0xFFFF0000).view(np.float32)


def write_source(path: Path, layers: int, vocabulary: int) -> None:
    shapes = {"output.weight": (vocabulary, EMBD), "token_embd.weight": (vocabulary, EMBD)}
    shapes |= {f"blk.{i}.{part}.weight": shape for i in range(layers) for part, shape in LAYER.items()}
    metadata = {
        "general.architecture": "llama",
        "llama.block_count": layers,
        "llama.attention.head_count": 32,
        "llama.attention.head_count_kv": 8,
    }
    blocks = (np.tile(tile(), 2).view(np.uint32) >> 16).astype("<u2").view(np.uint8)
    start = 0
    with Writer(path, metadata, [(n, s, FORMATS["BF16"]) for n, s in shapes.items()], force=True) as out:
        for name, (rows, cols) in shapes.items():
            for lo in range(0, rows, step := TILE // cols):
                n = min(step, rows - lo)
                out.write(name, lo, blocks[2 * start : 2 * (start + n * cols)].reshape(n, 2 * cols))
                start = (start + 104729) % TILE


def seconds_a_weight(encode: Callable[[np.ndarray], object], threads: int) -> tuple[float, float]:
    """(wall, CPU) seconds a weight of `threads` threads that each encode rows of the tile."""
    rows = tile()[: 1 << 21].reshape(-1, EMBD)
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(2):  # the first round may compile
            wall, cpu = time.perf_counter(), time.process_time()
            list(pool.map(encode, [rows] * threads))
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return wall / (threads * rows.size), cpu / (threads * rows.size)


def rates(format: Format, threads: int) -> tuple[tuple[float, float], tuple[float, float]]:
    """(wall, CPU) seconds a weight of the reference and of ggufkit's encoder."""
    reference = seconds_a_weight(lambda x: ggml.quantize(x, format.id), threads)
    return reference, seconds_a_weight(lambda x: codec.encode(x, format, threads=1), threads)


def disk_seconds(folder: Path, read: Path, written: int, workers: int) -> tuple[float, float]:
    """Seconds to read a file and to write `written` bytes as ggufkit does, measured on up to a gigabyte of each."""
    size, step = read.stat().st_size, 1 << 21
    share = min(1 << 30, size)
    source = FileSource(read)
    source.read_once()
    start = time.perf_counter()
    for_each(lambda at: source.array(at, min(step, share - at)), range(0, share, step), workers)
    reading = (time.perf_counter() - start) * size / share
    source.close()
    share = min(1 << 30, written)
    data = memoryview(np.random.default_rng(1).bytes(step))
    start = time.perf_counter()
    with open(folder / "probe", "wb", buffering=0) as file:
        reserve(file.fileno(), share)
        at = 0
        while at < share:
            at += write_streamed(file.fileno(), data[: share - at], at)
        os.fsync(file.fileno())
    writing = (time.perf_counter() - start) * written / share
    (folder / "probe").unlink()
    return reading, writing


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--type", default="Q4_K_M")
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--vocabulary", type=int, default=128256)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        run(Path(folder), options)


def run(folder: Path, options: argparse.Namespace) -> None:
    source, target, threads = folder / "source.gguf", folder / "target.gguf", options.threads
    write_source(source, options.layers, options.vocabulary)
    with ggufkit.open(source) as model:
        plan = quantization(model, target, options.type).plan
    counts: Counter[str] = Counter()
    for p in plan.tensors:
        counts[p.format.name] += p.tensor.size
    weights = plan.weights
    sizes = f"{source.stat().st_size / 1e9:.1f} GB to {plan.size / 1e9:.1f} GB"
    print(f"{weights / 1e9:.2f} G weights to {options.type}, {sizes}, {threads} threads", flush=True)

    before = {name: rates(FORMATS[name], threads) for name in counts}
    start = time.perf_counter()
    command = [sys.executable, "-m", "ggufkit", "quantize", str(source), str(target), options.type, str(threads)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - start
    assert status == 0
    assert target.stat().st_size == plan.size
    after = {name: rates(FORMATS[name], threads) for name in counts}
    reading, writing = disk_seconds(folder, source, plan.size, threads + 1)

    def total(which: int, clock: int) -> float:
        """Seconds for the whole model of the reference (0) or ggufkit's encoders (1), mean of before and after."""
        return sum(n * (before[f][which][clock] + after[f][which][clock]) / 2 for f, n in counts.items())

    cpu = usage.ru_utime + usage.ru_stime
    for name, n in counts.items():
        ggml_rate, own_rate = (2e-6 / (before[name][i][1] + after[name][i][1]) for i in (0, 1))
        print(
            f"  {name}, {n / weights:.1%} of the weights: ggml {ggml_rate:.1f}, ggufkit {own_rate:.0f} M a CPU second"
        )
    limit = max(total(1, 0), reading, writing)
    print(f"  wall {wall:.1f} s, {weights / wall / 1e6:.0f} M weights/s; peak memory {usage.ru_maxrss / 1000:.0f} MB")
    print(f"  CPU {cpu:.1f} s, {usage.ru_stime:.1f} s of it in the kernel")
    print(f"  the reference's encoder alone, {threads} threads: wall {total(0, 0):.1f} s, CPU {total(0, 1):.1f} s")
    print(f"  the whole process against it: {total(0, 0) / wall:.1f}× by wall, {total(0, 1) / cpu:.1f}× by CPU")
    print(
        f"  alone: encode {total(1, 0):.1f} s, read {reading:.1f} s, write {writing:.1f} s: "
        f"{limit / wall:.0%} of the speed of the slowest"
    )


if __name__ == "__main__":
    plain_errors.run(main)
