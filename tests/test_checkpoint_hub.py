"""Checkpoints on the hub: the same file as from a clone, without the weights on this disk."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_gguf_remote import serve, server  # noqa: F401
from tiny_checkpoints import write
from tiny_families import FAMILIES

from ggufkit.checkpoint.folder import open_checkpoint
from ggufkit.errors import CheckpointError, FileError, UsageError
from ggufkit.jobs.convert import convert

REPO = "owner/Tiny-Gemma"


@pytest.fixture
def clone(server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:  # noqa: F811
    """The folder of a checkpoint that the server has as a repository."""
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("no_proxy", "*")
    return write(FAMILIES["gemma3"](), tmp_path / REPO / "resolve" / "main")


def test_hub_gives_the_file_of_a_clone(clone: Path, tmp_path: Path):
    local = clone.rename(tmp_path / "Tiny-Gemma")
    expected = convert(local, tmp_path / "local.gguf", "Q8_0").read_bytes()
    local.rename(clone)
    assert convert(f"hf://{REPO}", tmp_path / "remote.gguf", "Q8_0").read_bytes() == expected


def test_hub_file_is_named_after_the_repository_and_lies_here(
    clone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    assert convert(f"hf://{REPO}") == Path("Tiny-Gemma-31K-BF16.gguf")
    assert [path.name for path in here.iterdir()] == ["Tiny-Gemma-31K-BF16.gguf"]


def test_hub_reads_what_is_asked_for_and_keeps_no_files(server, clone: Path):  # noqa: F811
    (clone / "model.safetensors").unlink()
    checkpoint = open_checkpoint(f"hf://{REPO}", weights=False)
    assert checkpoint.tensors == {}
    folder = checkpoint.folder
    assert folder.is_dir()
    del checkpoint
    assert not folder.exists()


def test_hub_shards_by_index(clone: Path):
    names = list(open_checkpoint(clone).tensors)
    (clone / "model.safetensors").rename(clone / "model-1.safetensors")
    index = {"weight_map": dict.fromkeys(names, "model-1.safetensors")}
    (clone / "model.safetensors.index.json").write_text(json.dumps(index))
    assert list(open_checkpoint(f"hf://{REPO}").tensors) == names
    index["weight_map"]["more"] = "model-1.safetensors"
    (clone / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"hf://owner/Tiny-Gemma: 1 tensors are in the index but in no shard"):
        open_checkpoint(f"hf://{REPO}")


@pytest.mark.parametrize("address", ["hf://", "hf://owner", "hf://owner/repo/file.gguf", "hf://a/b@"])
def test_hub_address_must_be_a_repository(address: str):
    with pytest.raises(UsageError, match="should be hf://owner/repo"):
        open_checkpoint(address)


def test_hub_missing_things(clone: Path):
    with pytest.raises(FileError, match=r"hf://owner/other has no config\.json, or there is no such repository"):
        open_checkpoint("hf://owner/other")
    (clone / "model.safetensors").unlink()
    with pytest.raises(FileError, match=r"model\.safetensors: does not exist.*only safetensors"):
        open_checkpoint(f"hf://{REPO}")
