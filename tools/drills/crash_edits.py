"""Kill, break and unplug edits, and see that the file is the old or the new one after the next open.

    python tools/drills/crash_edits.py [--edits 1000] [--rewrites 300]

    kills      SIGKILL at random moments
    steps      SIGKILL before each system call that changes the disk, and in the middle of each write
    faults     each such call fails once, or from then on: ENOSPC, EIO, short writes
    unplugged  power loss after each call: what was not flushed is there in part, or not at all

Prints a line for each; exits with 1 at the first file that is neither old nor new.
"""

from __future__ import annotations

import argparse
import errno
import itertools
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import ggufkit
from ggufkit.errors import GgufkitError
from ggufkit.formats.table import FORMATS
from ggufkit.gguf.writer import Writer

CALLS = ("pwrite", "copy_file_range", "ftruncate", "fsync", "replace", "link", "unlink", "fchmod")


class Broken(Exception):
    """A file that is neither old nor new."""


# -- the edits --------------------------------------------------------------------------------------------


class Case:
    """An action on a file, with the bytes before and after it."""

    def __init__(self, name: str, folder: Path, action: Callable[[Path], object], prepare: Callable[[Path], object]):
        self.name, self.path, self.action = name, folder / "model.gguf", action
        prepare(self.path)
        self.before = {p.name: p.read_bytes() for p in folder.iterdir()}
        action(self.path)
        self.old, self.new = self.before[self.path.name], self.path.read_bytes()
        assert self.old != self.new, name
        self.reset()

    def reset(self) -> None:
        for path in self.path.parent.iterdir():
            path.unlink()
        for name, data in self.before.items():
            (self.path.parent / name).write_bytes(data)

    def check(self, what: str) -> str:
        """Open the file, see which one it is, and put the old one back → "old" or "new"."""
        interrupted = self.path.with_name("model.gguf.journal").exists()
        try:
            with ggufkit.open(self.path) as model:
                # What a reader sees, and what is on the disk.
                part = model.parts[0]
                seen = {part.source.read(0, part.source.size), self.path.read_bytes()}
        except GgufkitError as e:
            raise Broken(f"{self.name}, {what}: {e}") from None
        if len(seen) != 1 or not seen <= {self.old, self.new}:
            raise Broken(f"{self.name}, {what}: the file is neither the old nor the new one")
        left = sorted(p.name for p in self.path.parent.iterdir() if p.name.endswith(".tmp"))
        found = "old" if seen == {self.old} else "new"
        self.reset()
        return found + (", rolled back" if interrupted else "") + (", temporary file left" if left else "")


def model(path: Path, kilobytes: int, tokens: int, spare: int = 0) -> None:
    q8_0 = FORMATS["Q8_0"]
    metadata = {
        "general.architecture": "llama",
        "general.name": "A model",
        "tokenizer.ggml.tokens": [f"token{i}" for i in range(tokens)],
        "tokenizer.chat_template": "{{ messages }}",
    }
    rows = kilobytes * 1024 // 4 // q8_0.row_bytes(256) + 1
    tensors = [(f"blk.{i}.weight", (rows, 256), q8_0) for i in range(4)]
    with Writer(path, metadata, tensors) as out:
        for name, info in out.layout.infos.items():
            out.write_at(out.layout.file_offset(name), random.Random(name).randbytes(info.nbytes))
            out.wrote(name, info.nbytes)
    if spare:
        with ggufkit.edit(path, spare=spare):
            pass
        path.with_name(path.name + ".undo").unlink()


def shorter(path: Path) -> None:
    """Moves the whole vocabulary: an edit in place that writes much."""
    with ggufkit.edit(path) as e:
        e.set("general.name", "A")


def template(path: Path) -> None:
    with ggufkit.edit(path) as e:
        e.set("tokenizer.chat_template", "x" * 3000)
        e.set("general.name", "B model")


def cases(folder: Path, kilobytes: int, tokens: int) -> list[Case]:
    def edited(change: Callable[[Path], None], spare: int) -> Callable[[Path], None]:
        def prepare(path: Path) -> None:
            model(path, kilobytes, tokens, spare)
            change(path)

        return prepare

    def plain(spare: int) -> Callable[[Path], None]:
        return lambda path: model(path, kilobytes, tokens, spare)

    actions = {
        "edit, much moves": (shorter, plain(0)),
        "edit, spare room": (template, plain(4096)),
        "second edit": (template, edited(shorter, 4096)),
        "undo": (ggufkit.undo, edited(template, 4096)),
        "rewrite": (template, plain(0)),
        "rewrite, undone": (ggufkit.undo, edited(template, 0)),
    }
    found = []
    for i, (name, (action, prepare)) in enumerate(actions.items()):
        place = folder / str(i)
        place.mkdir()
        found.append(Case(name, place, action, prepare))
    return found


def child(action: Callable[[], object]) -> int:
    """Run an action in a forked process → its number."""
    if pid := os.fork():
        return pid
    code = 1
    try:
        action()
        code = 0
    finally:
        os._exit(code)


# -- killed -----------------------------------------------------------------------------------------------


def kills(case: Case, times: int, rng: random.Random) -> Counter[str]:
    """SIGKILL an action at random moments."""
    started = time.monotonic()
    os.waitpid(child(lambda: case.action(case.path)), 0)
    duration = time.monotonic() - started
    case.reset()
    found: Counter[str] = Counter()
    for i in range(times):
        pid = child(lambda: case.action(case.path))
        time.sleep(rng.uniform(0, 1.1 * duration))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        found[case.check(f"kill {i}")] += 1
    return found


@contextmanager
def calls(before: Callable[[str, int, tuple], object]) -> Iterator[list[str]]:
    """Call `before(name, number, arguments)` before each call that changes the disk.

    What it returns replaces the call's result, unless it is None. Gives the list of the calls so far.
    """
    log: list[str] = []
    real = {name: getattr(os, name) for name in CALLS}

    def wrap(name: str) -> Callable[..., object]:
        def wrapped(*arguments: object, **options: object) -> object:
            log.append(name)
            result = before(name, len(log), arguments)
            return real[name](*arguments, **options) if result is None else result

        return wrapped

    for name in CALLS:
        setattr(os, name, wrap(name))
    try:
        yield log
    finally:
        for name in CALLS:
            setattr(os, name, real[name])


def half(
    name: str, arguments: tuple, real_pwrite: Callable = os.pwrite, real_copy: Callable = os.copy_file_range
) -> int:
    """Do the first half of a write → bytes."""
    if name == "pwrite":
        handle, data, offset = arguments
        return real_pwrite(handle, data[: max(1, len(data) // 2)], offset)
    source, target, n, at, to = arguments
    return real_copy(source, target, max(1, n // 2), at, to)


def steps(case: Case) -> Counter[str]:
    """SIGKILL an action before each of its calls, and in the middle of each write."""
    found: Counter[str] = Counter()
    for middle in (False, True):
        for n in itertools.count(1):

            def die(name: str, number: int, arguments: tuple, n: int = n, middle: bool = middle) -> None:
                if number == n:
                    if middle and name in ("pwrite", "copy_file_range"):
                        half(name, arguments)
                    os.kill(os.getpid(), signal.SIGKILL)

            def run(die: Callable = die) -> None:
                with calls(die):
                    case.action(case.path)

            _, status = os.waitpid(child(run), 0)
            found[case.check(f"killed at call {n}")] += 1
            if not os.WIFSIGNALED(status):
                break
    return found


# -- broken -----------------------------------------------------------------------------------------------


def faults(case: Case) -> Counter[str]:
    """Let each call fail: once, from then on, in the middle, or with a short write that is none."""
    found: Counter[str] = Counter()
    for kind in ("once", "from then on", "middle", "short"):
        for code in (errno.ENOSPC, errno.EIO) if kind != "short" else (0,):
            for n in itertools.count(1):

                def fail(name: str, number: int, arguments: tuple, kind=kind, code=code, n=n) -> int | None:
                    writes = name in ("pwrite", "copy_file_range")
                    if kind == "short":
                        return half(name, arguments) if writes and number >= n else None
                    if number == n or (number > n and kind == "from then on"):
                        if kind == "middle" and writes:
                            half(name, arguments)
                        raise OSError(code, os.strerror(code))
                    return None

                result = "done"
                with calls(fail) as log:
                    try:
                        case.action(case.path)
                    except GgufkitError:
                        result = "refused"
                what = f"{kind} {errno.errorcode.get(code, '')} at call {n} ({(log[n - 1 : n] or ['none'])[0]})"
                state = case.check(what)
                if result == "done" and not state.startswith("new"):
                    raise Broken(f"{case.name}, {what}: no error, but the file is old")
                found[f"{result}: {state}"] += 1
                if len(log) < n:
                    break
    return found


# -- unplugged --------------------------------------------------------------------------------------------


class Disk:
    """What a disk holds after a power loss, as far as a file system promises.

    Data is there when the file was flushed; what came later is there in any part. Names are there when the folder was
    flushed; of what came later the first few changes, in order.
    """

    def __init__(self, folder: Path):
        self.names = {p.name: p.stat().st_ino for p in folder.iterdir()}
        self.data = {p.stat().st_ino: p.read_bytes() for p in folder.iterdir()}
        self.writes: list[tuple[int, int, bytes | None]] = []  # inode, offset, bytes; None: cut to `offset` bytes
        self.renames: list[tuple[str | None, str | None, int]] = []  # from, to, inode

    def note(self, name: str, arguments: tuple, folder: int) -> None:
        """Take note of a call, before it is done."""
        if name == "pwrite":
            handle, data, offset = arguments
            self.writes.append((os.fstat(handle).st_ino, offset, bytes(data)))
        elif name == "copy_file_range":
            source, target, n, at, to = arguments
            self.writes.append((os.fstat(target).st_ino, to, os.pread(source, n, at)))
        elif name == "ftruncate":
            self.writes.append((os.fstat(arguments[0]).st_ino, arguments[1], None))
        elif name == "fsync":
            inode = os.fstat(arguments[0]).st_ino
            if inode == folder:
                self.names = self.named(len(self.renames))
                self.renames.clear()
            else:
                # A new file's name may be missing still; its data is there.
                self.data[inode] = self.written(inode, lambda i: True)
                self.writes = [w for w in self.writes if w[0] != inode]
        elif name == "replace":
            source, target = map(os.path.basename, arguments)
            self.renames.append((source, target, os.stat(arguments[0]).st_ino))
        elif name == "link":
            self.renames.append((None, os.path.basename(arguments[1]), os.stat(arguments[0]).st_ino))
        elif name == "unlink":
            self.renames.append((os.path.basename(arguments[0]), None, 0))

    def named(self, n: int) -> dict[str, int]:
        names = dict(self.names)
        for source, target, inode in self.renames[:n]:
            names.pop(source, None)
            if target is not None:
                names[target] = inode
        return names

    def written(self, inode: int, there: Callable[[int], bool], cut: int = 0) -> bytes:
        data = bytearray(self.data.get(inode, b""))
        for i, (where, offset, new) in enumerate(self.writes):
            if where != inode or not there(i):
                continue
            if new is None:
                data = data[:offset].ljust(offset, b"\0")
            else:
                piece = new[: len(new) // 2] if cut == i + 1 else new
                data = data.ljust(offset + len(piece), b"\0")
                data[offset : offset + len(piece)] = piece
        return bytes(data)

    def states(self) -> Iterator[dict[str, bytes]]:
        """File name → bytes: the contents of the folder, in all the ways it may be."""
        n = len(self.writes)
        chosen: list[tuple[Callable[[int], bool], int]] = [(lambda i: True, 0), (lambda i: False, 0)]
        for k in range(n):
            chosen += [(lambda i, k=k: i == k, 0), (lambda i, k=k: i != k, 0), (lambda i, k=k: i <= k, k + 1)]
        for names in map(self.named, range(len(self.renames) + 1)):
            for there, cut in chosen:
                yield {name: self.written(inode, there, cut) for name, inode in names.items()}


def unplugged(case: Case) -> Counter[str]:
    """Lose the power before each call, and look at each state in which the disk may be."""
    states: list[dict[str, bytes]] = []
    disk = Disk(case.path.parent)
    folder = case.path.parent.stat().st_ino

    def note(name: str, number: int, arguments: tuple) -> None:
        states.extend(state for state in disk.states() if state not in states)
        disk.note(name, arguments, folder)

    with calls(note):
        case.action(case.path)
    states.extend(disk.states())
    found: Counter[str] = Counter()
    before = case.before
    for i, state in enumerate(states):
        case.before = state
        case.reset()
        case.before = before
        found[case.check(f"power loss {i}")] += 1
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--edits", type=int, default=1000, help="kills of edits in place, in all")
    parser.add_argument("--rewrites", type=int, default=300, help="kills of edits that write the file anew, in all")
    parser.add_argument(
        "--megabytes", type=int, default=16, help="bytes of data in the files that are killed at random"
    )
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as folder:
        small, large = (Path(folder, name) for name in ("small", "large"))
        small.mkdir()
        large.mkdir()
        try:
            for case in cases(small, 64, 50):
                report("steps", case, steps(case))
                report("faults", case, faults(case))
                report("unplugged", case, unplugged(case))
            many = cases(large, args.megabytes << 10, args.megabytes * 3000)
            shares = {case.name: args.rewrites // 2 if "rewrite" in case.name else args.edits // 4 for case in many}
            for case in many:
                report("kills", case, kills(case, shares[case.name], rng))
        except Broken as e:
            sys.exit(f"BROKEN: {e}")


def report(test: str, case: Case, found: Counter[str]) -> None:
    counts = ", ".join(f"{n} {what}" for what, n in sorted(found.items()))
    print(f"{test:<10}{case.name:<18}{sum(found.values()):>5}: {counts}", flush=True)


if __name__ == "__main__":
    main()
