"""A checkpoint folder: its JSON files and its weights, single or sharded by an index."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from ggufkit.checkpoint.checkpoint import Checkpoint, gather, read_index, read_json
from ggufkit.checkpoint.hub import is_repository, open_hub
from ggufkit.checkpoint.pytorch import read_pytorch
from ggufkit.checkpoint.safetensors import read_safetensors
from ggufkit.errors import CheckpointError, FileError, os_errors, printable
from ggufkit.storage.foreign import HEAD, foreign_file, foreign_folder
from ggufkit.storage.regular import kind_of_file
from ggufkit.tensors.tensor import Tensor

__all__ = ["is_checkpoint", "open_checkpoint"]

# What a checkpoint in Mistral's own format (params.json, consolidated.safetensors) is called, as it names no class.
_MISTRAL_FORMAT = "MistralFormat"

_OUTPUTS = (".gguf", ".partial", ".resume")


def is_checkpoint(path: str | Path) -> bool:
    """Whether `path` is the place of a checkpoint, a folder or ``hf://owner/repo``, and not a file."""
    if str(path).startswith("hf://"):
        return is_repository(str(path))
    return Path(path).is_dir()


def open_checkpoint(folder: str | os.PathLike[str], *, weights: bool = True) -> Checkpoint:
    """Open a checkpoint folder and index its weights; no weight is read yet.

    Parameters
    ----------
    folder : its path, or ``hf://owner/repo`` for one on the Hugging Face hub.
    weights : whether it must have weights; False leaves them out.

    Raises
    ------
    FileError : the folder or a file is missing or unreadable.
    CheckpointError : a file's contents are wrong.
    """
    if str(folder).startswith("hf://"):
        return open_hub(str(folder), weights=weights)
    folder = Path(folder)
    if folder.is_file():
        raise _not_a_folder(folder)
    with os_errors(folder, "open the checkpoint"):
        entries = sorted((entry.name, entry.stat()) for entry in folder.iterdir())
    for name, found_stat in entries:
        kind = kind_of_file(found_stat.st_mode)
        if kind not in (None, "a directory"):
            raise FileError(f"{printable(folder / name)} is {kind}, which has no place in a checkpoint folder")
    found = [name for name, _ in entries]
    # Outputs may lie here, too: an interrupted run must find its checkpoint unchanged.
    inputs = [(name, stat) for name, stat in entries if not name.endswith(_OUTPUTS)]
    identity = repr([(name, stat.st_size, stat.st_mtime_ns) for name, stat in inputs]).encode()
    config = read_json(folder / "config.json")
    if config is None and (parameters := read_json(folder / "params.json")) is not None and "dim" in parameters:
        config = {"architectures": [_MISTRAL_FORMAT], **parameters}
    if config is None:
        found_kind = foreign_folder(found)
        hint = None if found_kind is None else found_kind[1]
        raise FileError(f"{printable(folder)} has no config.json, so it is not a checkpoint folder", hint)
    return Checkpoint(folder, identity, config, _index(folder, found) if weights else {})


def _not_a_folder(path: Path) -> FileError:
    with os_errors(path, "read"), path.open("rb") as file:
        head = file.read(HEAD)
    if head[:4] == b"GGUF":
        return FileError(f"{printable(path)} is a GGUF file already, not a checkpoint folder", "quantize it instead")
    what, todo = foreign_file(head) or ("a file", "give the folder that it lies in")
    return FileError(f"{printable(path)} is not a checkpoint folder: it is {what}", todo)


# Kinds of weights, the preferred first: index, start and end of the files' names, reader.
_KINDS: tuple[tuple[str, str, str, Callable[[Path], Iterator[Tensor]]], ...] = (
    ("model.safetensors.index.json", "model", ".safetensors", read_safetensors),
    ("pytorch_model.bin.index.json", "pytorch_model", ".bin", read_pytorch),
    ("output.safetensors.index.json", "output", ".safetensors", read_safetensors),  # as EXL2's tool calls it
    ("consolidated.safetensors.index.json", "consolidated", ".safetensors", read_safetensors),  # Mistral's
)


def _index(folder: Path, found: list[str]) -> dict[str, Tensor]:
    for index_name, start, end, reader in _KINDS:
        expected = read_index(folder / index_name)
        if expected is None:
            files = [name for name in found if name.startswith(start) and name.endswith(end)]
        else:
            files = sorted(set(expected.values()))
        if missing := [name for name in files if name not in found]:
            more = f" and {len(missing) - 1} more" if missing[1:] else ""
            raise FileError(f"{printable(folder)} lacks the shard {printable(missing[0])}{more} that the index names")
        if files:
            return gather(folder, ((folder / name, reader(folder / name)) for name in files), expected)
    raise CheckpointError(f"{printable(folder)} has no weights: no model*.safetensors and no pytorch_model*.bin")
