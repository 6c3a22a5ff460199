"""Convert a large checkpoint of holes, and see that memory, restart and speed are what they should be.

    python tools/bench/bench_large_convert.py [--gigabytes 20] [--types Q8_0,Q4_K_M] [--folder /tmp/large]

For each type, a sharded Llama that takes no room on the disk:

- is converted by `ggufkit convert` in a process of its own: peak memory, and bytes read a second, from the start of
  Python to the renamed file on the disk;
- against the limit measured in the same run: the slowest of reading, encoding and writing by itself, each as the
  conversion does it and with all CPUs, on a part of the model; the medians of rounds that have one conversion each;
- against what the CPUs allow: in a conversion the three share them, so it takes at least the sum of their CPU seconds;
- against the three together: each piece read, encoded and written by the same workers, and nothing else;
- is converted again, killed in the middle and continued: the same bytes.

The source is a hole: its pages are zeros that the kernel makes, so reading costs CPU time and no device limits it.
What is written takes its room on the device. CPU seconds are those of the process; the kernel's own threads, which
bring it there, come on top.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import numpy as np

from ggufkit.gguf.writer import Writer
from ggufkit.jobs.convert import conversion
from ggufkit.jobs.job import Job
from ggufkit.jobs.plan import PlannedTensor
from ggufkit.jobs.stream import MEMORY, Piece, pieces_of, worker_count
from ggufkit.kernels.threads import for_each, thread_count

sys.path[:0] = [str(Path(__file__).parents[2] / place) for place in ("tests/oracles", "tests/models", "tools")]

import plain_errors
import sparse_gptq
from tiny_checkpoints import SPM_TOKENS, sentencepiece_model

WIDTH, FFN, VOCAB = 4096, 11008, 32000
PART = 4e9  # bytes of the source that a stage is measured with
ROUNDS = 5  # of stages and a conversion
TOGETHER = "together"


def shapes(layers: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield "model.embed_tokens.weight", (VOCAB, WIDTH)
    for i in range(layers):
        at = f"model.layers.{i}"
        for part in "qkvo":
            yield f"{at}.self_attn.{part}_proj.weight", (WIDTH, WIDTH)
        for part, shape in (("gate", (FFN, WIDTH)), ("up", (FFN, WIDTH)), ("down", (WIDTH, FFN))):
            yield f"{at}.mlp.{part}_proj.weight", shape
        for part in ("input", "post_attention"):
            yield f"{at}.{part}_layernorm.weight", (WIDTH,)
    yield "model.norm.weight", (WIDTH,)
    yield "lm_head.weight", (VOCAB, WIDTH)


def write_checkpoint(folder: Path, nbytes: float) -> None:
    """A Llama in bfloat16 of about `nbytes`, in shards of 5 GB that are holes."""
    folder.mkdir(parents=True)
    layer = 2 * sum(np.prod(shape, dtype=int) for name, shape in shapes(1) if ".layers." in name)
    layers = max(1, round((nbytes - 4 * VOCAB * WIDTH) / layer))
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": WIDTH, "vocab_size": VOCAB}
    config |= {"intermediate_size": FFN, "num_hidden_layers": layers, "num_attention_heads": 32}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.model").write_bytes(sentencepiece_model(unigram=False))
    assert SPM_TOKENS < VOCAB
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    for name, shape in shapes(layers):
        if sum(2 * np.prod(s, dtype=int) for s in shards[-1].values()) > 5e9:
            shards.append({})
        shards[-1][name] = shape
    weight_map = {}
    for i, tensors in enumerate(shards, 1):
        file = f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        header, at = {}, 0
        for name, shape in sorted(tensors.items()):  # as safetensors writes them
            end = at + 2 * int(np.prod(shape))
            header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, end]}
            weight_map[name], at = file, end
        text = json.dumps(header).encode()
        with open(folder / file, "wb") as out:
            out.write(struct.pack("<Q", len(text)) + text)
            out.truncate(8 + len(text) + at)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def command(folder: Path, out: Path, type_: str) -> list[str]:
    return [sys.executable, "-m", "ggufkit", "convert", str(folder), "-o", str(out), "--type", type_]


def run(arguments: list[str]) -> tuple[float, float, int]:
    """(seconds, CPU seconds, peak memory in bytes) of a process."""
    start = time.perf_counter()
    process = subprocess.Popen(arguments, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0, f"{arguments} failed with {status}"
    return time.perf_counter() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024


def sample(job: Job) -> list[PlannedTensor]:
    """Tensors of the first layers, PART bytes or a little more, in the mix that the model has."""
    chosen, nbytes = [], 0
    for p in job.plan.tensors:
        if p.tensor.name.startswith("blk.") and nbytes < PART:
            chosen.append(p)
            nbytes += p.tensor.nbytes
    return chosen


def stages(job: Job, scratch: Path) -> dict[str, tuple[float, float]]:
    """Stage → (seconds, CPU seconds) for a byte of the source, each alone as a conversion does it, and together."""
    chosen = sample(job)
    nbytes = sum(p.tensor.nbytes for p in chosen)
    threads = thread_count(None)
    workers = worker_count(chosen, threads, MEMORY)
    pieces = list(pieces_of(chosen))
    # Sixteen buffers in turn, so that what is encoded comes from memory as it does in a conversion.
    longest = max((p.hi - p.lo) * max(p.planned.tensor.row_bytes, p.planned.row_bytes) for p in pieces)
    buffers = np.full((16, longest), 0, np.uint8)
    turn = itertools.cycle(range(16))

    def rows(piece: Piece, row_bytes: int) -> np.ndarray:
        found = buffers[next(turn)][: (piece.hi - piece.lo) * row_bytes].reshape(-1, row_bytes)
        found.flags.writeable = False
        return found

    def read() -> None:
        for_each(lambda p: p.planned.tensor.read(p.lo, p.hi), iter(pieces), workers)

    def encode() -> None:
        for_each(lambda p: p.planned.encode_blocks(rows(p, p.planned.tensor.row_bytes), 0), iter(pieces), threads)

    def output() -> Writer:
        tensors = [(p.tensor.name, p.tensor.shape, p.format) for p in chosen]
        return Writer(scratch, {}, tensors, force=True, reserved=True)

    def write() -> None:
        with output() as out:
            for_each(
                lambda p: out.write(p.planned.tensor.name, p.lo, rows(p, p.planned.row_bytes)), iter(pieces), workers
            )

    def timed(work: Callable[[], None]) -> tuple[float, float]:
        start, cpu = time.perf_counter(), time.process_time()
        work()
        return (time.perf_counter() - start) / nbytes, (time.process_time() - cpu) / nbytes

    def all_three() -> None:
        with output() as out:

            def work(piece: Piece) -> None:
                p = piece.planned
                out.write(p.tensor.name, piece.lo, p.encode_blocks(p.tensor.read(piece.lo, piece.hi), piece.lo))

            for_each(work, iter(pieces), workers)

    found = {"reading": timed(read), "encoding": timed(encode), "writing": timed(write), TOGETHER: timed(all_three)}
    remove(scratch)
    return found


def remove(path: Path) -> None:
    """Remove a file, and let the device hear at once which blocks are free: to work on that may take it seconds."""
    path.unlink()
    if hasattr(os, "sync"):
        os.sync()


def digest(path: Path) -> str:
    found = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 24):
            found.update(block)
    return found.hexdigest()


def interrupted(folder: Path, out: Path, type_: str, after: float) -> None:
    """Convert, kill after some seconds, convert again."""
    process = subprocess.Popen(command(folder, out, type_), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    time.sleep(after)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it was done before it was killed"
    assert not out.exists()
    run(command(folder, out, type_))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=20)
    parser.add_argument("--types", default="Q8_0,Q4_K_M")
    parser.add_argument("--gptq", action="store_true", help="a checkpoint of GPTQ, taken over as it is")
    parser.add_argument("--folder", type=Path, default=Path("/tmp/large-convert"))
    options = parser.parse_args()
    folder, out = options.folder / "hf", options.folder / "out.gguf"
    if options.gptq:
        sparse_gptq.write(folder, options.gigabytes)
        options.types = "auto"
    else:
        write_checkpoint(folder, options.gigabytes * 1e9)
    try:
        for type_ in options.types.split(","):
            job = conversion(folder, out, type_)
            nbytes = sum(p.tensor.nbytes for p in job.plan.tensors)
            scratch = options.folder / "scratch"
            stages(job, scratch)  # compiles
            rounds, conversions = [], []
            for _ in range(ROUNDS):
                if conversions:
                    remove(out)
                rounds.append(stages(job, scratch))
                conversions.append(run(command(folder, out, type_)))
            seconds, cpu, peak = map(median, zip(*conversions, strict=True))
            quickest, slowest_run = min(conversions)[0], max(conversions)[0]
            together = 1 / median(r.pop(TOGETHER)[0] for r in rounds)
            alone = {stage: median(r[stage][0] for r in rounds) for stage in rounds[0]}
            work = nbytes * sum(median(r[stage][1] for r in rounds) for stage in alone)
            slowest = max(alone, key=lambda stage: alone[stage])
            shown = ", ".join(f"{stage} {1e-6 / each:.0f}" for stage, each in alone.items())
            speed, limit, share = nbytes / seconds, 1 / alone[slowest], nbytes * thread_count(None) / work
            print(
                f"{type_}: {nbytes / 1e9:.1f} GB in {seconds:.1f} s ({quickest:.1f} … {slowest_run:.1f}), "
                f"peak memory {peak / 1e6:.0f} MB"
            )
            print(
                f"  {speed / 1e6:.0f} MB/s of {limit / 1e6:.0f} ({shown}): {speed / limit:.0%} of the limit, {slowest}"
            )
            bound, binds = min((limit, f"{slowest} alone"), (share, f"the {thread_count(None)} CPUs that they share"))
            print(
                f"  {cpu:.1f} CPU s for work of {work:.1f}, so at most {bound / 1e6:.0f} MB/s by {binds}: "
                f"{speed / bound:.0%} of that; {work / cpu:.0%} of the CPU time is such work"
            )
            print(f"  {together / 1e6:.0f} MB/s with the three together: {speed / together:.0%} of that", flush=True)
            expected = digest(out)
            remove(out)
            interrupted(folder, out, type_, seconds * 0.4)
            assert digest(out) == expected, "the continued file differs"
            print("  killed and continued: the same bytes")
            out.unlink()
    finally:
        shutil.rmtree(options.folder)


if __name__ == "__main__":
    plain_errors.run(main)
