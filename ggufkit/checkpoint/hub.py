"""A checkpoint on the Hugging Face hub: `hf://owner/repo` or `hf://owner/repo@revision`.

Its small files (config, tokenizer, model card) are fetched into a temporary folder, for those who read them there. Of
its weights the headers are fetched, and then the rows that somebody reads: the checkpoint is never on this disk.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from ggufkit.checkpoint.checkpoint import Checkpoint, gather, read_index, read_json
from ggufkit.checkpoint.safetensors import read_safetensors
from ggufkit.errors import CheckpointError, FileError, UsageError, printable
from ggufkit.tensors.tensor import Tensor

if TYPE_CHECKING:
    from ggufkit.storage.http import RemoteSource

__all__ = ["is_repository", "open_hub"]

_REPO = re.compile(r"hf://[^/@\s]+/([^/@\s]+)(@[^/\s]+)?/?")

_MAX_FILE = 200_000_000  # bytes; the largest tokenizer.json of today has 35 MB

_INDEX, _SINGLE = "model.safetensors.index.json", "model.safetensors"

# Everything that a conversion may read beside the weights.
_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "chat_template.jinja",
    "chat_template.json",
    "modules.json",
    "1_Pooling/config.json",
    "README.md",
)


def is_repository(address: str) -> bool:
    """Whether an address is one of a whole repository, and not of a file in it."""
    return _REPO.fullmatch(address) is not None


def open_hub(address: str, *, weights: bool = True) -> Checkpoint:
    """Open the checkpoint of a repository; see `folder.open_checkpoint`.

    Raises
    ------
    UsageError : the address is none of a repository.
    FileError : the hub cannot be reached, or has no such repository.
    CheckpointError : a file's contents are wrong.
    """
    match = _REPO.fullmatch(address)
    if match is None:
        raise UsageError(f"{printable(address)} should be hf://owner/repo, or hf://owner/repo@revision")
    address = address.rstrip("/")
    scratch = tempfile.TemporaryDirectory(prefix="ggufkit-")
    folder = Path(scratch.name) / match[1]
    versions = [(name, _fetch(address, name, folder / name)) for name in (*_FILES, *([_INDEX] if weights else []))]
    config = read_json(folder / "config.json")
    if config is None:
        raise FileError(f"{printable(address)} has no config.json, or there is no such repository")
    tensors: dict[str, Tensor] = {}
    if weights:
        expected = read_index(folder / _INDEX)
        files = sorted(set(expected.values())) if expected is not None else [_SINGLE]
        shards = [_shard(f"{address}/{name}") for name in files]
        versions += [(shard.name, shard.version) for shard in shards]
        tensors = gather(address, ((shard.name, read_safetensors(shard)) for shard in shards), expected)
    checkpoint = Checkpoint(folder, repr(versions).encode(), config, tensors)
    checkpoint.scratch = scratch
    return checkpoint


def _fetch(address: str, name: str, path: Path) -> str | None:
    """Copy a file of a repository to `path`; returns its version, None when there is no such file."""
    from ggufkit.storage.http import NoSuchFile, RemoteSource

    try:
        source = RemoteSource(f"{address}/{name}")
    except NoSuchFile:
        return None
    try:
        if source.size > _MAX_FILE:
            raise CheckpointError(f"{printable(source.name)} has {source.size} bytes, the limit is {_MAX_FILE}")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(source.read(0, source.size))
        return source.version
    finally:
        source.close()


def _shard(address: str) -> RemoteSource:
    from ggufkit.storage.http import NoSuchFile, RemoteSource

    try:
        return RemoteSource(address)
    except NoSuchFile as e:
        raise FileError(f"{e}; of repositories on the hub only safetensors are read") from None
