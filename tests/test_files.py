"""Copies of byte ranges: through the kernel, through memory, over holes, and past the end; outputs that are killed."""

import ctypes
import errno
import fcntl
import os
import struct
import sys
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import ggufkit
from ggufkit.errors import FileError
from ggufkit.formats.table import FORMATS
from ggufkit.gguf.header import Value, ValueType
from ggufkit.gguf.writer import Writer
from ggufkit.storage import once
from ggufkit.storage.files import AtomicFile, copy_range, sync_file


@pytest.fixture
def pair(tmp_path):
    """A source of 10 MB of changing bytes and an empty target, as descriptors."""
    (tmp_path / "source").write_bytes(os.urandom(10_000_000))
    handles = os.open(tmp_path / "source", os.O_RDWR), os.open(tmp_path / "target", os.O_RDWR | os.O_CREAT)
    yield handles
    for handle in handles:
        os.close(handle)


@pytest.fixture(params=["kernel", "memory", "answers 0", "cross device"])
def way(request, monkeypatch):
    def fails(*_):
        raise OSError(errno.EXDEV, "other device")

    if request.param == "memory":
        monkeypatch.delattr(os, "copy_file_range", raising=False)
    elif request.param == "answers 0":
        monkeypatch.setattr(os, "copy_file_range", lambda *_: 0, raising=False)
    elif request.param == "cross device":
        monkeypatch.setattr(os, "copy_file_range", fails, raising=False)


@pytest.mark.usefixtures("way")
def test_copy_range_copies_between_odd_offsets(pair):
    source, target = pair
    steps = []
    copy_range(source, 12_345, target, 77, 9_000_001, advance=steps.append)
    assert os.pread(target, 1 << 24, 0) == bytes(77) + os.pread(source, 9_000_001, 12_345)
    assert sum(steps) == 9_000_001
    copy_range(source, 5, target, 0, 0)
    assert os.pread(target, 1, 0) == b"\0"


@pytest.mark.usefixtures("way")
def test_copy_range_tells_of_a_source_that_ends_early(pair):
    source, target = pair
    with pytest.raises(FileError, match="ends 5 bytes early"):
        copy_range(source, 9_000_000, target, 0, 1_000_005)


@pytest.mark.usefixtures("way")
def test_copy_range_keeps_holes(tmp_path):
    path, size = tmp_path / "sparse", 1 << 30
    source = os.open(path, os.O_RDWR | os.O_CREAT)
    target = os.open(tmp_path / "target", os.O_RDWR | os.O_CREAT)
    os.ftruncate(source, size)
    os.ftruncate(target, size + 100)
    os.pwrite(source, b"begin", 1000)
    os.pwrite(source, b"middle", size // 2 + 7)
    steps = []
    copy_range(source, 10, target, 110, size - 10, sparse=True, advance=steps.append)
    assert os.pread(target, 5, 1100) == b"begin"
    assert os.pread(target, 6, size // 2 + 107) == b"middle"
    assert sum(steps) == size - 10
    assert os.fstat(target).st_blocks * 512 < 1 << 20
    os.close(source)
    os.close(target)


def test_copy_range_passes_on_a_full_disk(pair, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(os, "copy_file_range", full, raising=False)
    with pytest.raises(OSError, match="no space left"):
        copy_range(pair[0], 0, pair[1], 0, 10)


@pytest.mark.skipif(not hasattr(os, "copy_file_range"), reason="Linux only")
def test_copy_range_copies_whole_blocks_where_both_files_have_them(pair, monkeypatch):
    calls = []

    def copy(source, target, n, at, to):
        calls.append((n, at, to))
        return n

    monkeypatch.setattr(os, "copy_file_range", copy)
    copy_range(pair[0], 100, pair[1], 8292, 20000)
    copy_range(pair[0], 100, pair[1], 101, 20000)
    assert calls == [(3996, 100, 8292), (16004, 4096, 12288), (20000, 100, 101)]


@pytest.mark.parametrize("named", [False, True])
def test_output_appears_whole_or_not_at_all(tmp_path, monkeypatch, named):
    if named:
        monkeypatch.delattr(os, "O_TMPFILE", raising=False)
    for force in (False, True):
        with AtomicFile(tmp_path / "x", force=force, mode=0o640) as output:
            output.file.write(b"new")
            assert force or not (tmp_path / "x").exists()
        assert [p.name for p in tmp_path.iterdir()] == ["x"]
        assert ((tmp_path / "x").read_bytes(), (tmp_path / "x").stat().st_mode & 0o777) == (b"new", 0o640)
    with pytest.raises(FileError, match="no space left"), AtomicFile(tmp_path / "x", force=True):
        raise OSError(errno.ENOSPC, "no space left")
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_killed_output_leaves_nothing_behind(tmp_path):
    # The temporary file has no name, or goes with the next output where one was killed just before its renaming.
    with AtomicFile(tmp_path / "x", force=True) as output:
        output.file.write(b"new")
        unnamed = list(tmp_path.iterdir()) == []
        if unnamed:
            leftover = tmp_path / f".x.{zlib.crc32(os.fsencode(output.path)):08x}.tmp"
            leftover.write_bytes(b"left by a killed process")
    assert [p.name for p in tmp_path.iterdir()] == ["x"]
    assert (tmp_path / "x").read_bytes() == b"new"


def write_model(path: Path) -> Path:
    metadata = {
        key: Value(ValueType.STRING, text)
        for key, text in {"general.architecture": "llama", "general.name": "one"}.items()
    }
    with Writer(path, metadata, [("token_embd.weight", (4, 64), FORMATS["F32"])]) as writer:
        writer.write("token_embd.weight", 0, np.arange(256, dtype=np.float32).view(np.uint8).reshape(4, 256))
    return path


# ---- macOS, by stubs of its calls -------------------------------------------------------------------------------


@pytest.fixture
def macos(monkeypatch):
    """A system like macOS; gives what it was asked with fcntl: (command, argument)."""
    asked: list[tuple[int, object]] = []
    monkeypatch.setattr(once, "_LINUX", False)
    monkeypatch.setattr(once, "_MACOS", True)
    monkeypatch.setattr(fcntl, "F_FULLFSYNC", 51, raising=False)
    monkeypatch.setattr(fcntl, "fcntl", lambda handle, command, argument=0: asked.append((command, argument)) or 0)
    return asked


def test_macos_takes_room_behind_the_end_before_a_file_grows(macos, tmp_path):
    with open(tmp_path / "file", "wb") as file:
        file.write(b"12345")
        file.flush()
        once.reserve(file.fileno(), 1005)
        assert os.fstat(file.fileno()).st_size == 1005
    # F_PREALLOCATE with F_ALLOCATEALL, from F_PEOFPOSMODE on, 0 bytes behind it, 1000 bytes
    assert macos == [(42, struct.pack("=Iiqqq", 4, 3, 0, 1000, 0))]


def test_macos_says_that_the_disk_is_full_before_a_file_grows(macos, monkeypatch, tmp_path):
    def full(handle, command, argument=0):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(fcntl, "fcntl", full)
    with open(tmp_path / "file", "wb") as file:
        with pytest.raises(OSError, match="No space"):
            once.reserve(file.fileno(), 1000)
        assert os.fstat(file.fileno()).st_size == 0


def test_macos_reads_past_its_cache(macos, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(1 << 18))
    with open(path, "rb") as file:
        reader = once.OnceReader(file.fileno())
        assert reader.read(0, 1 << 18) is None  # as usual, with F_NOCACHE set
        assert reader.read(0, 1 << 18) is None
        reader.close()
    assert macos == [(48, 1)]


def test_macos_shares_the_blocks_of_a_copy_that_is_edited(monkeypatch, tmp_path):
    asked = []

    def fclonefileat(source, folder, target, flags):
        asked.append((folder, flags))
        Path(os.fsdecode(target)).write_bytes(os.pread(source, 1 << 30, 0))
        return 0

    model = write_model(tmp_path / "model.gguf")
    expected = tmp_path / "expected.gguf"
    with ggufkit.edit(model, expected) as edit:
        edit.set("general.name", "three")
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace(fclonefileat=fclonefileat))
    with ggufkit.edit(model, tmp_path / "new.gguf") as edit:
        edit.set("general.name", "three")
    assert asked == [(-2, 0)]
    assert (tmp_path / "new.gguf").read_bytes() == expected.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["expected.gguf", "model.gguf", "new.gguf"]


def test_macos_copies_where_the_disk_shares_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace(fclonefileat=lambda *arguments: -1))
    model = write_model(tmp_path / "model.gguf")
    with ggufkit.edit(model, tmp_path / "new.gguf") as edit:
        edit.set("general.name", "three")
    with ggufkit.open(tmp_path / "new.gguf") as new:
        assert new.get("general.name", str) == "three"


def test_macos_flushes_the_drive(macos, monkeypatch, tmp_path):
    monkeypatch.setattr(os, "fsync", lambda handle: pytest.fail("fsync stops at the drive's cache"))
    with open(tmp_path / "file", "wb") as file:
        sync_file(file.fileno())
    assert macos == [(51, 0)]
