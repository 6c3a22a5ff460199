"""Convert a large checkpoint of holes, and see that memory, restart and speed are what they should be.

    python tools/check_large_convert.py [--gigabytes 20] [--types Q8_0,Q4_K_M] [--folder /tmp/large]

For each type, a sharded Llama that takes no room on the disk:

- is converted by `ggufkit convert` in a process of its own: peak memory, and bytes read a second;
- against the limit measured in the same run: the slowest of reading, encoding and writing by itself, on a part of the
  model, half of the time before the conversion and half after it; and its CPU time against that of the three together,
  which other work on the machine disturbs less;
- is converted again, killed in the middle and continued: the same bytes.
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

import numpy as np
from tiny_checkpoints import SPM_TOKENS, sentencepiece_model

from ggufkit.convert import conversion
from ggufkit.kernels.threads import for_each, thread_count
from ggufkit.output import Job
from ggufkit.pipeline import Planned, _Piece, _pieces

WIDTH, FFN, VOCAB = 4096, 11008, 32000
PART = 1 << 30  # bytes of the source that a stage is measured with


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


def sample(job: Job) -> list[Planned]:
    """Tensors of the first layers, PART bytes or a little more, in the mix that the model has."""
    chosen, nbytes = [], 0
    for p in job.plan.tensors:
        if p.tensor.name.startswith("blk.") and nbytes < PART:
            chosen.append(p)
            nbytes += p.tensor.nbytes
    return chosen


def stages(job: Job, scratch: Path) -> dict[str, tuple[float, float]]:
    """Stage → (seconds, CPU seconds) for a byte of the source, each alone, with all threads."""
    chosen = sample(job)
    nbytes = sum(p.tensor.nbytes for p in chosen)
    threads = thread_count(None)

    def timed(work: Callable[[], object]) -> tuple[float, float]:
        start, cpu = time.perf_counter(), time.process_time()
        work()
        return (time.perf_counter() - start) / nbytes, (time.process_time() - cpu) / nbytes

    pieces = list(_pieces(chosen))
    # Sixteen buffers in turn, so that what is encoded comes from memory as it does in a conversion.
    longest = max((p.hi - p.lo) * p.planned.tensor.row_bytes for p in pieces)
    buffers = np.full((16, longest), 0, np.uint8)
    turn = itertools.cycle(range(16))

    def encode(piece: _Piece) -> None:
        row_bytes = piece.planned.tensor.row_bytes
        source = buffers[next(turn)][: (piece.hi - piece.lo) * row_bytes].reshape(-1, row_bytes)
        source.flags.writeable = False
        piece.planned.encode_blocks(source, 0)

    def write() -> None:
        with open(scratch, "wb", buffering=0) as file:
            for p in pieces:
                data = memoryview(bytes((p.hi - p.lo) * p.planned.row_bytes))
                while data:
                    data = data[file.write(data) :]
            os.fsync(file.fileno())
        scratch.unlink()

    return {
        "reading": timed(lambda: for_each(lambda p: p.planned.tensor.read(p.lo, p.hi), iter(pieces), threads)),
        "encoding": timed(lambda: for_each(encode, iter(pieces), threads)),
        "writing": timed(write),
    }


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
    parser.add_argument("--folder", type=Path, default=Path("/tmp/large-convert"))
    options = parser.parse_args()
    folder, out = options.folder / "hf", options.folder / "out.gguf"
    write_checkpoint(folder, options.gigabytes * 1e9)
    try:
        for type_ in options.types.split(","):
            job = conversion(folder, out, type_)
            nbytes = sum(p.tensor.nbytes for p in job.plan.tensors)
            stages(job, options.folder / "scratch")  # compiles
            before = stages(job, options.folder / "scratch")
            seconds, cpu, peak = run(command(folder, out, type_))
            after = stages(job, options.folder / "scratch")
            speeds = {stage: 2 / (before[stage][0] + after[stage][0]) for stage in before}
            work = nbytes * sum(before[stage][1] + after[stage][1] for stage in before) / 2
            limit = min(speeds.values())
            shown = ", ".join(f"{stage} {speed / 1e6:.0f}" for stage, speed in speeds.items())
            print(f"{type_}: {nbytes / 1e9:.1f} GB in {seconds:.0f} s, peak memory {peak / 1e6:.0f} MB")
            print(
                f"  {nbytes / seconds / 1e6:.0f} MB/s of {limit / 1e6:.0f} ({shown}): "
                f"{nbytes / seconds / limit:.0%} of the limit; "
                f"{cpu:.0f} CPU s for work of {work:.0f}: {work / cpu:.0%}",
                flush=True,
            )
            expected = digest(out)
            out.unlink()
            interrupted(folder, out, type_, seconds * 0.4)
            assert digest(out) == expected, "the continued file differs"
            print("  killed and continued: the same bytes")
            out.unlink()
    finally:
        shutil.rmtree(options.folder)


if __name__ == "__main__":
    main()
