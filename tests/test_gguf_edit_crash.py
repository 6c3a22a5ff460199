"""Edits that are killed, broken or unplugged leave the old or the new file: drills/crash_edits.py, a few of each."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys

import pytest

import ggufkit
from ggufkit.errors import FileError
from ggufkit.formats.table import FORMATS
from ggufkit.gguf.edit import commit
from ggufkit.gguf.writer import Writer

METADATA = {"general.architecture": "llama", "general.name": "A model", "k": "x" * 100}


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "model.gguf"
    with Writer(path, METADATA, [("w", (4,), FORMATS["F32"])]) as out:
        out.write_at(out.layout.file_offset("w"), bytes(range(16)))
        out.wrote("w", 16)
    return path


@pytest.fixture
def interrupted(path, monkeypatch):
    """An edit in place that died after its bytes were written → (the file, its bytes before)."""
    before = path.read_bytes()

    class Died(BaseException):
        pass

    def die(source, target):
        if target.endswith(".undo"):
            raise Died
        os.rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", die)
        patch.setattr(commit, "_restore", lambda *_: None)
        with pytest.raises(Died), ggufkit.edit(path) as e:
            e.set("general.name", "B model")
    assert path.read_bytes() != before
    return path, before


def test_killed_broken_and_unplugged_edits_leave_the_old_or_the_new_file(fixtures):
    tool = fixtures.parent / "tools" / "drills" / "crash_edits.py"
    run = subprocess.run(
        [sys.executable, tool, "--edits", "20", "--rewrites", "6", "--megabytes", "1"],
        env={**os.environ, "PYTHONPATH": str(fixtures.parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (run.returncode, run.stderr) == (0, "")
    assert len(run.stdout.splitlines()) == 24


def test_next_open_takes_an_interrupted_edit_back(interrupted):
    path, before = interrupted
    with ggufkit.open(path) as model:
        assert model.metadata["general.name"] == "A model"
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_interrupted_edit_is_read_around_where_it_cannot_be_taken_back(interrupted):
    path, before = interrupted
    changed = path.read_bytes()
    with open(path, "rb") as other:
        fcntl.flock(other, fcntl.LOCK_SH)
        with ggufkit.open(path) as model:
            assert model.metadata["general.name"] == "A model"
            source = model.parts[0].source
            for lo, hi in ((0, len(before)), (90, 100), (0, 93), (94, len(before))):
                assert source.read(lo, hi - lo) == before[lo:hi]
        assert path.read_bytes() == changed
        with pytest.raises(FileError, match="died half-way"):
            ggufkit.edit(path)
    with ggufkit.edit(path) as e:
        e.set("k", "y" * 100)
    assert path.read_bytes() == before.replace(b"x" * 100, b"y" * 100)


def test_undo_takes_only_the_interrupted_edit_back(interrupted):
    path, before = interrupted
    # The record of an edit before that one.
    path.with_name("model.gguf.undo").write_bytes(path.with_name("model.gguf.journal").read_bytes())
    ggufkit.undo(path)
    assert path.read_bytes() == before
    with pytest.raises(FileError, match="no longer as it left it"):
        ggufkit.undo(path)


def test_journal_of_another_file_is_not_applied(interrupted):
    path, before = interrupted
    other = before.replace(b"x" * 100, b"z" * 100)
    path.write_bytes(other)
    with ggufkit.open(path):
        pass
    assert path.read_bytes() == other
    with ggufkit.edit(path) as e:
        e.set("general.name", "C model")
    ggufkit.undo(path)
    assert path.read_bytes() == other


def test_damaged_journal_is_refused(interrupted):
    path, _ = interrupted
    journal = path.with_name("model.gguf.journal")
    journal.write_bytes(journal.read_bytes()[:-1])
    with pytest.raises(FileError, match="damaged"):
        ggufkit.open(path)


def test_files_that_are_no_records_are_neither_read_nor_replaced(path):
    before = path.read_bytes()
    for ending in ("journal", "undo"):
        stranger = path.with_name(f"model.gguf.{ending}")
        stranger.write_text("mine")
        with pytest.raises(FileError, match="in the way"), ggufkit.edit(path) as e:
            e.set("general.name", "B model")
        assert (path.read_bytes(), stranger.read_text()) == (before, "mine")
        stranger.unlink()


def test_record_has_the_permissions_of_the_model(path):
    path.chmod(0o600)
    with ggufkit.edit(path) as e:
        e.set("general.name", "B model")
    assert path.with_name("model.gguf.undo").stat().st_mode & 0o777 == 0o600
