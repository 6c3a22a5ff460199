"""Mutate GGUF files and open them: anything but a GGUFError, or a file that takes long, is a fault.

python tools/drills/fuzz_gguf.py [FOLDER …] [--cases 200000] [--seed 0]

The seeds are small files made here and all files below 64 KB of the FOLDERs. Every mutant that opens is also looked
into as `inspect` and `validate` do, and every accepted value and tensor is read. Mutants are reproducible from seed and
number. The process may use 64 MiB more than at its start; a case may take 2 seconds.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import io
import random
import resource
import signal
import struct
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

import numpy as np

from ggufkit.cli.inspect import as_dict, echo_metadata, echo_summary, echo_tensors, echo_types
from ggufkit.errors import GGUFError
from ggufkit.formats.table import FORMATS
from ggufkit.gguf.header import Limits, Value, ValueType, parse_header
from ggufkit.gguf.reader import GGUF, Part
from ggufkit.gguf.validate import check_model
from ggufkit.gguf.writer import Writer

SECONDS = 2
MEMORY = 64 << 20
ARENA_MAX = -8  # M_… of malloc.h

# Numbers on which parsers stumble.
EDGES = [0, 1, 2, 4, 7, 8, 9, 13, 31, 32, 33, 63, 64, 255, 256, 65535, 65536]
EDGES += [(1 << bits) + d for bits in (16, 24, 30, 31, 32, 40, 53, 61, 62, 63, 64) for d in (-1, 0, 1)]


class Memory:
    """A source that is bytes."""

    name = "mutant"

    def __init__(self, data: bytes):
        self.data, self.size = data, len(data)

    def read(self, offset: int, n: int) -> bytes:
        assert offset + n <= self.size, "read past the end"
        return self.data[offset : offset + n]

    def array(self, offset: int, n: int) -> np.ndarray:
        return np.frombuffer(self.read(offset, n), np.uint8)

    def close(self) -> None:
        pass


def small_files() -> list[bytes]:
    """One file of every kind of content."""
    numbers = {f"n.{t.name}": Value(t, 1) for t in ValueType if t not in (ValueType.STRING, ValueType.ARRAY)}
    arrays = {f"a.{t.name}": Value(ValueType.ARRAY, [1, 0, 1], t) for t in ValueType if f"n.{t.name}" in numbers}
    tokens = ["a", "b", "ab", "<0x0A>", ""]
    model = {
        "general.architecture": "llama",
        "general.alignment": 64,
        "llama.block_count": 1,
        "llama.attention.head_count": Value(ValueType.ARRAY, [2], ValueType.UINT32),
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": Value(ValueType.ARRAY, [1, 1, 1, 6, 1], ValueType.INT32),
        "tokenizer.ggml.scores": [0.5] * 5,
        "tokenizer.ggml.merges": ["a b"],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.chat_template": "{% for m in messages %}{{ m.content }}{% endfor %}",
        "split.no": Value(ValueType.UINT16, 0),
        "split.count": Value(ValueType.UINT16, 1),
    }
    tensors = [(name, (2, format.block_size), format) for name, format in FORMATS.items()]
    files = []
    with tempfile.TemporaryDirectory() as folder:
        for metadata, shapes in (({}, []), ({**numbers, **arrays}, []), (model, tensors), (model, tensors[:3])):
            for byteorder in ("little", "big"):
                path = Path(folder) / "seed.gguf"
                with Writer(path, metadata, shapes, byteorder=byteorder, force=True) as out:
                    for name, info in out.layout.infos.items():
                        out.wrote(name, info.nbytes)
                files.append(path.read_bytes())
    return files


def mutated(data: bytes, other: bytes, rng: random.Random) -> bytes:
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        # Headers are where it matters: half of the places are in the first 200 bytes.
        at = rng.randrange(min(len(out), 200) if rng.random() < 0.5 else len(out)) if out else 0
        kind = rng.randrange(8)
        if kind == 0:
            out[at : at + 1] = bytes([rng.randrange(256)])
        elif kind == 1 and out:
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 2:
            code = rng.choice("<>") + rng.choice("IQH")
            size = struct.calcsize(code)
            out[at : at + size] = struct.pack(code, rng.choice(EDGES) % (1 << 8 * size))
        elif kind == 3:
            del out[at:]
        elif kind == 4:
            del out[at : at + rng.randrange(1, 40)]
        elif kind == 5:
            out[at:at] = rng.randbytes(rng.randrange(1, 40))
        elif kind == 6:
            length = rng.randrange(1, 200)
            out[at:at] = out[rng.randrange(len(out) + 1) :][:length]
        elif kind == 7 and other:
            out[at:] = other[rng.randrange(len(other)) :]
    return bytes(out)


def look(data: bytes) -> str:
    """Open and look at everything → what came of it."""
    source = Memory(data)
    refusal = None
    try:
        header = parse_header(source, 0, Limits(versions=(1, 2, 3)))
        model = GGUF("mutant", [Part(source, 0, header)])
    except GGUFError as e:
        refusal = e
    if refusal is not None:
        assert refusal.offset is not None, "no offset"
        assert 0 <= refusal.offset <= len(data), "the offset is outside of the file"
        assert str(refusal).isprintable(), "a control character in the message"
        return "refused"
    as_dict(model, None, True)
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        echo_summary(model)
        echo_types(model)
        echo_metadata(model, "*", whole=False)
        echo_tensors(model)
    assert all(c.isprintable() or c == "\n" for c in shown.getvalue()), "a control character in the output"
    findings = check_model(model)
    assert all(str(finding).isprintable() for finding in findings)
    return "accepted, with warnings" if findings else "accepted"


def too_long(signum: int, frame: object) -> None:
    raise TimeoutError(f"more than {SECONDS} seconds")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--cases", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    found = [path for folder in args.folders for path in sorted(folder.rglob("*.gguf"))]
    seeds = small_files() + [path.read_bytes() for path in found if path.stat().st_size < 64 << 10]
    for data in seeds:
        look(data)  # imports, kernels
    # Or a thread's heap takes addresses by the 64 MB, which the limit counts.
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).mallopt(ARENA_MAX, 1)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, resource.RLIM_INFINITY))
    signal.signal(signal.SIGALRM, too_long)

    outcomes: Counter[str] = Counter()
    slowest = 0.0
    for case in range(args.cases):
        rng = random.Random(f"{args.seed}/{case}")
        data = mutated(rng.choice(seeds), rng.choice(seeds), rng)
        start = time.monotonic()
        signal.alarm(SECONDS)
        try:
            outcomes[look(data)] += 1
        except BaseException:
            signal.alarm(0)
            traceback.print_exc()
            path = Path(f"fault-{args.seed}-{case}.gguf")
            path.write_bytes(data)
            sys.exit(f"fault in case {case}: {path}")
        signal.alarm(0)
        slowest = max(slowest, time.monotonic() - start)
        if (case + 1) % 20_000 == 0 or case + 1 == args.cases:
            print(f"{case + 1} cases: {dict(outcomes)}, slowest {slowest * 1e3:.0f} ms", flush=True)


if __name__ == "__main__":
    main()
