"""Reading past the system's cache, room on the disk, and writing through the cache."""

import errno
import os
import random
import threading
from mmap import PAGESIZE

import pytest

from ggufkit.errors import GGUFError
from ggufkit.storage import once as streaming
from ggufkit.storage.memory import Pool, sparse_zeros
from ggufkit.storage.once import OnceReader, reserve, write_streamed
from ggufkit.storage.source import FileSource

SIZE = 10_000_000


@pytest.fixture
def pair(tmp_path):
    """A source of 10 MB of changing bytes and an empty target, as descriptors."""
    (tmp_path / "source").write_bytes(os.urandom(SIZE))
    handles = os.open(tmp_path / "source", os.O_RDWR), os.open(tmp_path / "target", os.O_RDWR | os.O_CREAT)
    os.fsync(handles[0])
    yield handles
    for handle in handles:
        os.close(handle)


@pytest.fixture
def reader(pair):
    """Of the source, where the system and the file system can read past the cache."""
    reader = OnceReader(pair[0])
    if reader._opened() < 0:
        pytest.skip("not here")
    yield reader
    reader.close()


def test_once_reader_reads_any_part(pair, reader, monkeypatch):
    monkeypatch.setattr(streaming, "_cached_pages", lambda *_: 0)
    numbers = random.Random(0)
    for _ in range(50):
        offset = numbers.randrange(SIZE)
        n = numbers.randrange(SIZE - offset)
        found = reader.read(offset, n)
        if n < 1 << 17:
            assert found is None
            continue
        assert found.tobytes() == os.pread(pair[0], n, offset)
        assert not found.flags.writeable
    assert reader.read(SIZE - 200_000, 200_001) is None  # past the end


def test_once_reader_leaves_to_the_cache_what_lies_there(pair, reader):
    os.pread(pair[0], SIZE, 0)
    assert reader.read(0, 1 << 20) is None
    reader.was_read(0, 1 << 20)
    assert streaming._cached_pages(pair[0], 0, 1 << 20) == (1 << 20) // PAGESIZE


def test_once_reader_does_not_go_on_from_what_ends_in_the_cache(pair, reader):
    os.posix_fadvise(pair[0], 0, 0, os.POSIX_FADV_RANDOM)
    os.posix_fadvise(pair[0], 0, 0, os.POSIX_FADV_DONTNEED)
    os.pread(pair[0], 1 << 20, 0)
    if streaming._cached_pages(pair[0], 0, SIZE) > SIZE // 2 // PAGESIZE:
        pytest.skip("it keeps what it has been told to drop")
    assert reader.read(0, 1 << 20) is not None


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="Linux only")
def test_what_was_read_through_the_cache_is_given_back_and_nothing_else(pair, monkeypatch):
    calls = []
    monkeypatch.setattr(streaming, "_open_direct", lambda handle: -1)
    monkeypatch.setattr(os, "posix_fadvise", lambda handle, start, n, advice: calls.append((start, n)))
    OnceReader(pair[0]).close()
    assert calls == []
    reader = OnceReader(pair[0])
    for at in range(0, 40 << 20, 1 << 20):
        assert reader.read(at, 1 << 20) is None
        reader.was_read(at, 1 << 20)
    reader.close()
    assert calls == [(0, 8 << 20), (0, 16 << 20), (8 << 20, 16 << 20), (0, 40 << 20)]


@pytest.mark.parametrize("how", ["cannot open", "does not tell", "cannot read", "cannot advise", "reads"])
def test_source_reads_once_whatever_the_system_can(pair, tmp_path, monkeypatch, how):
    def refuses(*_):
        raise OSError(errno.EINVAL, "not this one")

    monkeypatch.setattr(streaming, "_cached_pages", lambda *_: -1 if how == "does not tell" else 0)
    if how == "cannot open":
        monkeypatch.setattr(streaming, "_LINUX", False)
    elif how == "cannot read":
        monkeypatch.setattr(os, "preadv", refuses, raising=False)
    elif how == "cannot advise":
        monkeypatch.setattr(streaming, "_LINUX", False)
        monkeypatch.setattr(os, "posix_fadvise", refuses, raising=False)
    source = FileSource(tmp_path / "source")
    source.read_once()
    found: list[bytes] = []

    def read() -> None:
        found.extend(source.array(at, 3_000_000).tobytes() for at in (0, 1, 4096, 6_999_999))

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(found) == {os.pread(pair[0], 3_000_000, at) for at in (0, 1, 4096, 6_999_999)}
    assert len(found) == 12
    source.close()


def test_source_past_its_end_is_an_error_read_once_or_not(pair, tmp_path):
    source = FileSource(tmp_path / "source")
    for _ in range(2):
        with pytest.raises(GGUFError, match="the file ends 1 bytes early"):
            source.array(SIZE - 999_999, 1_000_000)
        source.read_once()
    source.close()


def test_reserved_room_reads_as_zeros(pair):
    reserve(pair[1], 1_000_000)
    assert os.pread(pair[1], 2_000_000, 0) == bytes(1_000_000)
    os.pwrite(pair[1], b"x", 0)
    reserve(pair[1], 2_000_000)  # what was written stays
    assert os.pread(pair[1], 3_000_000, 0) == b"x" + bytes(1_999_999)


def test_room_that_the_disk_does_not_have_is_an_error_and_given_back(small_disk):
    with open(small_disk / "x", "w+b", buffering=0) as file:
        reserve(file.fileno(), 1_000_000)
        os.pwrite(file.fileno(), b"x", 999_999)
        with pytest.raises(OSError, match=r"[Nn]o space"):
            reserve(file.fileno(), 4_000_000)
        assert os.fstat(file.fileno()).st_size == 1_000_000
        assert os.fstat(file.fileno()).st_blocks * 512 <= 1 << 20
        assert os.pread(file.fileno(), 2, 999_999) == b"x"


@pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.EINVAL])
def test_write_streamed_works_on_systems_that_cannot_keep_it_out_of_their_cache(pair, monkeypatch, code):
    def refuses(*_):
        raise OSError(code, "flags are not supported")

    def write(view, offset):
        while view:
            n = write_streamed(pair[1], view, offset)
            view, offset = view[n:], offset + n

    data = os.pread(pair[0], 1_000_000, 0)
    write(memoryview(data), 123)
    monkeypatch.setattr(os, "pwritev", refuses, raising=False)
    write(memoryview(data), 123 + len(data))
    assert os.pread(pair[1], 3_000_000, 0) == bytes(123) + data + data


def test_write_streamed_passes_on_a_full_disk(pair, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(os, "pwrite", full)
    monkeypatch.setattr(os, "pwritev", full, raising=False)
    with pytest.raises(OSError, match="no space left"):
        write_streamed(pair[1], memoryview(bytes(1_000_000)), 0)


def test_memory_comes_back_when_nobody_looks_at_it_any_more():
    pool = Pool(1 << 22)
    first = pool.take(3 << 20)
    at, view = first.ctypes.data, first[5:].view("i1").reshape(1, -1)
    assert at % PAGESIZE == 0
    first[:] = 7
    del first
    second = pool.take(3 << 20)
    assert second.ctypes.data != at
    assert (view == 7).all()
    del view
    assert pool.unused >= 3 << 20
    assert pool.take((3 << 20) - 9).ctypes.data == at
    assert pool.take(2 << 20).ctypes.data == at  # a little too large
    assert pool.take(0).shape == (0,)


def test_no_more_memory_lies_unused_than_allowed():
    pool = Pool(1 << 22)
    many = [pool.take(n << 16) for n in range(1, 40)]
    del many
    assert pool.unused <= 1 << 22
    old = pool.take(1 << 21)
    del old
    new = pool.take(3 << 20)
    del new  # which takes the place of the old
    assert 3 << 20 <= pool.unused <= 1 << 22
    large = pool.take(1 << 23)
    del large
    assert pool.unused <= 1 << 22


def test_sparse_zeros_are_zeros_and_refuse_what_no_system_has():
    for n in (0, 1, 1 << 16, (1 << 20) + 7):
        array = sparse_zeros(n)
        assert array.shape == (n,)
        assert array.flags.writeable
        assert not array.any()
    for n in (1 << 60, 1 << 70):
        with pytest.raises((MemoryError, ValueError)):
            sparse_zeros(n)
