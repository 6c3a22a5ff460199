"""Kernels are compiled before a job begins, once, in several processes; the cache is pruned."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

from ggufkit.cli.ahead import _write
from ggufkit.cli.progress import _Pace, clock
from ggufkit.formats.codec import decode, encode
from ggufkit.formats.table import FORMATS
from ggufkit.kernels import ahead

ROOT = Path(__file__).parent.parent


def ggufkit(cache: Path, *arguments: object) -> str:
    """What a command says on stderr with its kernels in `cache`."""
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache), "HOME": str(cache)}
    environment.pop("NUMBA_CACHE_DIR", None)
    command = [sys.executable, "-m", "ggufkit", *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, cwd=ROOT)
    return done.stderr


@pytest.mark.slow
def test_first_conversion_compiles_ahead_and_the_second_does_not(fixtures: Path, tmp_path: Path):
    arguments = ("convert", fixtures / "pylib-llama", "-o", tmp_path / "m.gguf", "--type", "Q8_0", "--force")
    first = ggufkit(tmp_path, *arguments)
    assert "compiling" in first
    assert "for this CPU, once" in first
    assert "compiling kernels for" not in first  # nothing is left for this process
    assert ggufkit(tmp_path, *arguments) == ""
    assert "ready" in subprocess.run(["ls", "-R", tmp_path], capture_output=True, text=True, check=True).stdout


def test_dry_run_finds_kernels_and_calls_none():
    before = FORMATS["Q8_0"], FORMATS["Q6_K"]
    encode(np.zeros((1, 256), np.float32), "Q6_K")  # one that this process has compiled is noted, too
    read, write = os.pipe()
    if (child := os.fork()) == 0:  # as `compile_ahead` does: a dry run spoils the process that it runs in
        found = ahead.recorded(lambda: _write({(*before, False)}))
        os.write(write, " ".join(sorted({kernel.py_func.__name__ for kernel, _ in found})).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as names:
        found = names.read().split()
    os.waitpid(child, 0)
    assert {"encode_chunks", "wait_for_end"} <= set(found)
    rows = np.linspace(-1, 1, 256, dtype=np.float32)[None]
    assert np.abs(decode(encode(rows, "Q6_K"), "Q6_K") - rows).max() < 0.1  # here kernels still work


def test_a_job_that_fails_leaves_its_kernels_to_be_compiled_when_called():
    def broken() -> None:
        raise ValueError("not this way")

    bar = nullcontext(lambda name: None)
    assert ahead.compile_ahead(f"broken {time.time()}", broken, report=lambda total: bar) <= 2


def test_prune_removes_old_folders_and_those_beyond_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = tmp_path / "kernels"
    monkeypatch.setattr(ahead, "_folder", lambda: folder)
    monkeypatch.setattr(ahead, "_ours", lambda: {"ours", "ready"})
    for age, name in enumerate(["new", "older", "ours", "oldest", "ready"]):
        (folder / name).mkdir(parents=True)
        (folder / name / "kernel.nbc").write_bytes(bytes(1000))
        changed = time.time() - age * 10 * 86400
        os.utime(folder / name, (changed, changed))
    assert ahead.prune(days=25) == 1
    assert {path.name for path in folder.iterdir()} == {"new", "older", "ours", "ready"}
    assert ahead.prune(days=25, limit=3500) == 1
    assert {path.name for path in folder.iterdir()} == {"new", "ours", "ready"}
    assert ahead.prune(days=25, limit=0) == 1
    assert {path.name for path in folder.iterdir()} == {"ours", "ready"}


def test_prune_leaves_a_folder_alone_that_the_user_chose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "something").mkdir()
    monkeypatch.setattr(ahead, "_folder", lambda: tmp_path)
    assert ahead.prune(days=0, limit=0) == 0
    assert (tmp_path / "something").is_dir()


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.4, "0:00"), (7, "0:07"), (59.6, "1:00"), (750, "12:30"), (3729, "1:02:09"), (273600, "3 d 04:00 h")],
)
def test_remaining_time_has_hours_and_days(seconds: float, shown: str):
    assert clock(seconds) == shown


def test_rates_leave_out_compilation(monkeypatch: pytest.MonkeyPatch):
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    spent = [0.0]
    monkeypatch.setattr(ahead, "compile_seconds", lambda: spent[0])
    pace = _Pace(100, "tokens/s")
    now[0], spent[0], pace.done = 112.0, 10.0, 50
    assert pace.rate() == "25 tokens/s"
    assert pace.left() == "0:02"
