"""Break `ggufkit quantize` at random moments, and see that nothing is lost.

    python tools/drills/break_quantize.py kill --times 300     # SIGKILL, then run again
    python tools/drills/break_quantize.py full --times 10      # the disk fills up, then has room again (Linux, root)

Every time: the target is absent, or the old file as it was, until it is the right one; the run after that continues
and writes the right bytes. Every second run replaces an old file.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np

from ggufkit.cli import main
from ggufkit.formats.table import FORMATS
from ggufkit.gguf.writer import Writer

TYPE = "Q4_K_M"
OLD = b"an old file"


def write_source(path: Path, layers: int, cols: int = 2048) -> None:
    """A Llama of random weights in BF16, `layers` × 4 matrices of cols × cols."""
    bf16 = FORMATS["BF16"]
    parts = ("attn_q", "attn_v", "ffn_up", "ffn_down")
    tensors = [(f"blk.{i}.{part}.weight", (cols, cols), bf16) for i in range(layers) for part in parts]
    metadata = {"general.architecture": "llama", "llama.block_count": layers, "llama.attention.head_count": 8}
    rng = np.random.default_rng(0)
    with Writer(path, metadata, tensors, force=True) as out:
        for name, shape, _ in tensors:
            values = (rng.standard_normal(shape) * 0.02).astype(np.float32)
            out.write(name, 0, (values.view(np.uint32) >> 16).astype("<u2").view(np.uint8))


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


class Bench:
    """A source, the right output of it, and the target of the runs to break."""

    def __init__(self, folder: Path, layers: int, target: Path | None = None):
        self.source = folder / "source.gguf"
        self.target = target or folder / "target.gguf"
        write_source(self.source, layers)
        right = folder / "right.gguf"
        for _ in range(2):  # the first run may compile kernels
            start = time.monotonic()
            self.run(right)
            self.seconds = time.monotonic() - start
        self.sha256, self.size = sha256(right), right.stat().st_size

    def run(self, target: Path) -> None:
        main(["quantize", str(self.source), str(target), TYPE, "--force"])

    def start(self) -> int:
        """A run in a process of its own that has Python and the kernels loaded already; returns its number."""
        pid = os.fork()
        if pid == 0:
            code = 9
            try:
                with open(os.devnull, "w") as sys.stdout, open(f"{self.target.parent}.err", "w") as sys.stderr:
                    self.run(self.target)
                    code = 0
            except SystemExit as e:
                code = int(e.code or 0)
            finally:
                os._exit(code)
        return pid

    def reset(self, old: bool) -> None:
        """Before a new output; `old` for a target that exists."""
        self.target.unlink(missing_ok=True)
        if old:
            self.target.write_bytes(OLD)

    def check_untouched(self, old: bool) -> bool:
        """Whether the target is the right file already; else it is what it was."""
        if not self.target.exists():
            assert not old, "the old file is gone"
            return False
        if old and self.target.read_bytes() == OLD:
            return False
        assert sha256(self.target) == self.sha256, "the target holds half a file"
        return True

    def finish(self) -> None:
        """Run to the end, and check the bytes and that nothing else is left."""
        assert os.waitstatus_to_exitcode(os.waitpid(self.start(), 0)[1]) == 0
        assert sha256(self.target) == self.sha256, "resumed to other bytes"
        left = [p.name for p in self.target.parent.iterdir() if self.target.name in p.name and p != self.target]
        assert left == [], left


def kill(bench: Bench, times: int, seed: int = 0) -> Counter[str]:
    """SIGKILL at least `times` runs, some of them again when they continue; returns where they were."""
    chance = random.Random(seed)
    places: Counter[str] = Counter()
    while places.total() < times:
        old = chance.random() < 0.5
        bench.reset(old)
        for _ in range(chance.randint(1, 3)):
            pid = bench.start()
            time.sleep(chance.uniform(0, bench.seconds))
            os.kill(pid, signal.SIGKILL)
            killed = os.WIFSIGNALED(os.waitpid(pid, 0)[1])
            done = bench.check_untouched(old)
            if not killed:
                break
            partial = Path(f"{bench.target}.partial")
            places["after the rename" if done else "while writing" if partial.exists() else "before writing"] += 1
        bench.finish()
    return places


def fill(folder: Path, times: int, layers: int) -> None:
    """Fill a small disk when a share of the output is written."""
    disk = folder / "disk"
    disk.mkdir()
    bench = Bench(folder, layers, disk / "target.gguf")
    size = bench.size + (2 << 20)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", disk], check=True)
    try:
        for i in range(times):
            old, threshold = i % 2 == 1, bench.size * i // times
            bench.reset(old)
            pid = bench.start()
            while shutil.disk_usage(disk).used <= threshold:
                time.sleep(0.0005)
            with open(disk / "filler", "wb", buffering=0) as filler:
                try:
                    while True:
                        filler.write(bytes(1 << 16))
                except OSError:
                    pass
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            err = Path(f"{disk}.err").read_text()
            assert code == 1, (code, err)
            assert err.count("\n") == 1, err
            assert ("no space left" in err and "do the same again" in err) or "the disk has" in err, err
            assert not bench.check_untouched(old)
            print(f"full at {threshold / bench.size:.0%}: {err.strip()[:150]}", flush=True)
            (disk / "filler").unlink()
            bench.finish()
    finally:
        subprocess.run(["umount", disk], check=True)


def command() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["kill", "full"])
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--layers", type=int, default=4, help="of 16.8 M weights each")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if options.what == "kill":
            places = kill(Bench(Path(folder), options.layers), options.times, options.seed)
            print(f"{places.total()} kills, all continued to the right bytes: {dict(places)}")
        else:
            fill(Path(folder), options.times, options.layers)


if __name__ == "__main__":
    command()
