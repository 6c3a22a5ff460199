"""The pipeline: rows to blocks to a file, for any number of threads, and what is left when it stops."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ggufkit.errors import CodecError, FileError
from ggufkit.formats import codec
from ggufkit.formats.codec import decode, encode
from ggufkit.formats.table import FORMATS
from ggufkit.gguf.reader import open as open_gguf
from ggufkit.jobs import stream as pipeline
from ggufkit.jobs.plan import PlannedFile, PlannedTensor
from ggufkit.jobs.resume import ResumeLog
from ggufkit.jobs.stream import Interrupted, write_model
from ggufkit.tensors.tensor import Tensor

METADATA = {"general.architecture": "llama"}


def tensor(name: str, values: np.ndarray, format: str = "F32") -> Tensor:
    blocks = encode(values.reshape(-1, values.shape[-1]), format)
    blocks.flags.writeable = False
    return Tensor(name, values.shape, FORMATS[format], lambda lo, hi: blocks[lo:hi])


def weights(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.fixture
def small_pieces(monkeypatch):
    """Many pieces a tensor, several chunks a piece, without large tensors."""
    monkeypatch.setattr(pipeline, "_PIECE", 4096)
    monkeypatch.setattr(codec, "CHUNK", 1024)


def model() -> list[PlannedTensor]:
    return [
        PlannedTensor(tensor("a.weight", weights(300, 64)), FORMATS["Q8_0"]),
        PlannedTensor(tensor("b.weight", weights(65, 96, seed=1), "BF16"), FORMATS["BF16"]),
        PlannedTensor(tensor("c.bias", weights(33, seed=2)), FORMATS["F32"]),
        PlannedTensor(tensor("d.weight", weights(3, 50, 32, seed=3), "F16"), FORMATS["Q4_0"]),
    ]


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_write_model_holds_what_the_codec_gives(tmp_path, small_pieces, threads):
    write_model(tmp_path / "m.gguf", METADATA, model(), threads=threads)
    with open_gguf(tmp_path / "m.gguf") as written:
        for p in model():
            expected = encode(decode(p.tensor.read(0, p.tensor.rows), p.tensor.format), p.format)
            assert p.format == written.tensors[p.tensor.name].format
            assert p.tensor.shape == written.tensors[p.tensor.name].shape
            np.testing.assert_array_equal(expected, written.tensors[p.tensor.name].read(0, p.tensor.rows))


def test_stack_of_experts_uses_the_importance_of_each(small_pieces):
    values, importance = weights(3, 50, 64), np.abs(weights(3, 64, seed=9))
    planned = PlannedTensor(tensor("e", values), FORMATS["Q4_0"], importance=importance)
    expected = np.concatenate([encode(values[i], "Q4_0", importance[i]) for i in range(3)])
    np.testing.assert_array_equal(expected, planned.encode(0, 150))
    np.testing.assert_array_equal(expected[37:120], planned.encode(37, 120))


def test_progress_counts_every_row(tmp_path, small_pieces):
    rows: dict[str, int] = {}
    write_model(
        tmp_path / "m.gguf",
        METADATA,
        model(),
        progress=lambda p, n: rows.__setitem__(p.tensor.name, rows.get(p.tensor.name, 0) + n),
    )
    assert rows == {p.tensor.name: p.tensor.rows for p in model()}


@pytest.mark.parametrize("format", ["Q8_0", "F32"])
def test_weight_that_is_not_finite_is_named(tmp_path, small_pieces, format):
    values = weights(300, 64)
    bad = Tensor("a.weight", (300, 64), FORMATS["F32"], lambda lo, hi: values[lo:hi].view(np.uint8))
    values[211, 5] = np.inf
    with pytest.raises(CodecError, match=r"a\.weight: row 211, column 5"):
        write_model(tmp_path / "m.gguf", METADATA, [PlannedTensor(bad, FORMATS[format])], resume_key=b"k")
    assert list(tmp_path.iterdir()) == []


class StopAfter:
    """A progress callback that raises after `pieces` pieces."""

    def __init__(self, pieces: int, error: BaseException):
        self.pieces, self.error = pieces, error

    def __call__(self, planned: PlannedTensor, rows: int) -> None:
        self.pieces -= 1
        if self.pieces == 0:
            raise self.error


def file_hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("pieces", [1, 4, 9])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_interrupted_run_continues_to_the_same_bytes(tmp_path, small_pieces, pieces, error):
    write_model(tmp_path / "whole.gguf", METADATA, model())
    target = tmp_path / "m.gguf"
    with pytest.raises((Interrupted, FileError), match="do the same again"):
        write_model(target, METADATA, model(), resume_key=b"k", progress=StopAfter(pieces, error), threads=1)
    assert not target.exists()

    read: list[str] = []
    planned = [
        PlannedTensor(replace(t, read=lambda lo, hi, t=t: read.append(t.name) or t.read(lo, hi)), p.format)
        for p in model()
        for t in [p.tensor]
    ]
    write_model(target, METADATA, planned, resume_key=b"k")
    assert file_hash(tmp_path / "whole.gguf") == file_hash(target)
    assert len(read) <= 5 + 2 + 1 + 2 - pieces
    assert {"whole.gguf", "m.gguf"} == {p.name for p in tmp_path.iterdir()}


def test_resume_with_another_key_starts_again(tmp_path, small_pieces):
    target = tmp_path / "m.gguf"
    with pytest.raises(Interrupted):
        write_model(target, METADATA, model(), resume_key=b"one", progress=StopAfter(5, KeyboardInterrupt()), threads=1)
    tensors = [(p.tensor, p.format) for p in model()]
    other = [PlannedTensor(tensor(t.name, -t.floats().reshape(t.shape)), format) for t, format in tensors]
    write_model(target, METADATA, other, resume_key=b"two")
    write_model(tmp_path / "whole.gguf", METADATA, other)
    assert file_hash(tmp_path / "whole.gguf") == file_hash(target)


@pytest.fixture
def journal(tmp_path):
    """Of an output that a test records parts of, with lines that are due at once."""
    file = PlannedFile(tmp_path / "m.gguf", METADATA, model()[:1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ggufkit.jobs.resume._SECONDS", 0)
        with ResumeLog(file.partial, file.layout, b"k") as journal:
            file.partial.write_bytes(bytes(file.layout.size))
            yield journal


def lines_of(journal: ResumeLog) -> list[str]:
    return journal.path.read_text().splitlines()[1:]


def test_line_is_added_after_the_flush_that_began_after_its_piece(journal, monkeypatch):
    """What is written during a flush may not be on the device when that ends."""
    name = model()[0].tensor.name
    seen = []

    def flush(handle: int) -> None:
        seen.append(lines_of(journal))
        if len(seen) == 1:
            thread = threading.Thread(target=journal.record, args=(name, 1, 20))
            thread.start()
            thread.join()

    monkeypatch.setattr("ggufkit.jobs.resume.sync_file", flush)
    journal.record(name, 0, 10)
    assert seen == [[]]
    assert [line.split()[1] for line in lines_of(journal)] == ["10"]
    journal.record(name, 2, 30)
    assert [line.split()[1] for line in lines_of(journal)] == ["10", "20", "30"]


def test_no_line_follows_a_flush_that_failed(journal, monkeypatch):
    """The system tells of an error once: the next flush says that all is well."""
    name = model()[0].tensor.name
    results = iter([OSError(5, "Input/output error"), None, None])

    def flush(handle: int) -> None:
        if (error := next(results)) is not None:
            raise error

    monkeypatch.setattr("ggufkit.jobs.resume.sync_file", flush)
    with pytest.raises(FileError, match=r"m\.gguf\.partial: input/output error"):
        journal.record(name, 0, 10)
    journal.record(name, 1, 20)
    journal.flush()
    assert lines_of(journal) == []


@pytest.mark.parametrize("failing", ["ggufkit.jobs.resume.sync_file", "ggufkit.storage.files.sync_file"])
def test_flush_that_fails_is_an_error_and_the_next_run_writes_all(tmp_path, small_pieces, monkeypatch, failing):
    def fails(handle: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(failing, fails)
        patch.setattr("ggufkit.jobs.resume._SECONDS", 0)
        with pytest.raises(FileError, match=r"input/output error.*do the same again"):
            write_model(tmp_path / "m.gguf", METADATA, model(), resume_key=b"k", threads=1)
    write_model(tmp_path / "m.gguf", METADATA, model(), resume_key=b"k")
    write_model(tmp_path / "whole.gguf", METADATA, model())
    assert file_hash(tmp_path / "whole.gguf") == file_hash(tmp_path / "m.gguf")


def test_disk_without_room_leaves_nothing(tmp_path, small_disk):
    usage = shutil.disk_usage(small_disk)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1 << 40))  # another took it
        (small_disk / "other").write_bytes(bytes(usage.free - 4096))
        with pytest.raises(FileError, match=r"no space left on the device(?!.*again)"):
            write_model(small_disk / "m.gguf", METADATA, model(), resume_key=b"k")
    assert [path.name for path in small_disk.iterdir()] == ["other"]


def test_existing_target_is_refused_before_any_work(tmp_path):
    target = tmp_path / "m.gguf"
    target.write_bytes(b"mine")
    for key in (None, b"k"):
        with pytest.raises(FileError, match="exists already"):
            write_model(target, METADATA, model(), resume_key=key)
    assert target.read_bytes() == b"mine"
    assert [target] == list(tmp_path.iterdir())


def test_second_writer_of_the_same_target_is_refused(tmp_path, small_pieces):
    target = tmp_path / "m.gguf"

    def again(planned: PlannedTensor, rows: int) -> None:
        with pytest.raises(FileError, match="another process is writing it"):
            write_model(target, METADATA, model(), resume_key=b"k")

    write_model(target, METADATA, model()[2:3], resume_key=b"k", progress=again)


def test_journal_with_a_line_cut_by_a_full_disk_is_still_of_use(tmp_path, small_pieces):
    target = tmp_path / "m.gguf"
    with pytest.raises(Interrupted):
        write_model(target, METADATA, model(), resume_key=b"k", progress=StopAfter(9, KeyboardInterrupt()), threads=1)
    journal = tmp_path / "m.gguf.partial.resume"
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join([*lines[:3], lines[3][:9], *lines[4:], "12345 67"]))
    write_model(target, METADATA, model(), resume_key=b"k")
    write_model(tmp_path / "whole.gguf", METADATA, model())
    assert file_hash(tmp_path / "whole.gguf") == file_hash(target)


def test_journal_with_other_lines_is_not_trusted(tmp_path, small_pieces):
    target = tmp_path / "m.gguf"
    with pytest.raises(Interrupted):
        write_model(target, METADATA, model(), resume_key=b"k", progress=StopAfter(9, KeyboardInterrupt()), threads=1)
    journal = tmp_path / "m.gguf.partial.resume"
    first, *lines = journal.read_text().splitlines()
    journal.write_text("\n".join([first, *(f"{line} 0123456789abcdef" for line in lines), ""]))  # and a hash
    write_model(target, METADATA, model(), resume_key=b"k")
    write_model(tmp_path / "whole.gguf", METADATA, model())
    assert file_hash(tmp_path / "whole.gguf") == file_hash(target)


def test_too_small_a_disk_is_refused_before_any_work(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(FileError, match=r"it needs \d+ bytes and the disk has 1000 left"):
        write_model(tmp_path / "m.gguf", METADATA, model(), resume_key=b"k")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(total=0, free=0))
    write_model(tmp_path / "m.gguf", METADATA, model(), resume_key=b"k")


def test_killed_process_continues_to_the_same_bytes():
    tool = Path(__file__).parent.parent / "tools" / "drills" / "break_quantize.py"
    found = subprocess.run(
        [sys.executable, tool, "kill", "--times", "3", "--layers", "1"], capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr
    assert "all continued to the right bytes" in found.stdout
