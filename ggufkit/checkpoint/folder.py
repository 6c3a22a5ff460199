"""A checkpoint folder: its JSON files and its weights, single or sharded by an index."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ggufkit.checkpoint.pytorch import read_pytorch
from ggufkit.checkpoint.safetensors import read_safetensors
from ggufkit.errors import CheckpointError, FileError, os_errors, printable
from ggufkit.tensors.tensor import Tensor

__all__ = ["Checkpoint", "gather", "is_checkpoint", "open_checkpoint", "read_index", "read_json"]

_OUTPUTS = (".gguf", ".partial", ".journal")

_MAX_JSON = 200_000_000  # bytes; the largest tokenizer.json of today has 35 MB


class Checkpoint:
    """A folder with `config.json` and weights.

    Attributes
    ----------
    folder : its path.
    identity : changes when a file of the folder does (names, sizes and times).
    config : `config.json`.
    tensors : name → `Tensor`, shard after shard, sorted by name within each.
    scratch : keeps the folder for as long as there is the checkpoint, where it is a temporary one.
    pre_tokenizer : llama.cpp's name of the pre-tokenizer, where the user knows it better; None to recognise it.
    """

    pre_tokenizer: str | None = None
    scratch: Any = None

    def __init__(self, folder: Path, identity: bytes, config: dict[str, Any], tensors: Mapping[str, Tensor]):
        self.folder = folder
        self.identity = identity
        self.config = config
        self.tensors = tensors

    def json(self, name: str) -> dict[str, Any] | None:
        """The JSON object in file `name` of the folder, or None when there is no such file.

        Raises
        ------
        CheckpointError : it is not a JSON object.
        """
        return read_json(self.folder / name)

    def text(self, name: str) -> str | None:
        """The text in file `name` of the folder, or None when there is no such file."""
        return _read_text(self.folder / name)


def is_checkpoint(path: str | Path) -> bool:
    """Whether `path` is the place of a checkpoint, a folder or ``hf://owner/repo``, and not a file."""
    if str(path).startswith("hf://"):
        from ggufkit.checkpoint.hub import is_repository

        return is_repository(str(path))
    return Path(path).is_dir()


def open_checkpoint(folder: str | Path, *, weights: bool = True) -> Checkpoint:
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
        from ggufkit.checkpoint.hub import open_hub

        return open_hub(str(folder), weights=weights)
    folder = Path(folder)
    with os_errors(folder, "open the checkpoint"):
        entries = sorted((entry.name, entry.stat()) for entry in folder.iterdir())
    found = [name for name, _ in entries]
    # Outputs may lie here, too: an interrupted run must find its checkpoint unchanged.
    inputs = [(name, stat) for name, stat in entries if not name.endswith(_OUTPUTS)]
    identity = repr([(name, stat.st_size, stat.st_mtime_ns) for name, stat in inputs]).encode()
    config = read_json(folder / "config.json")
    if config is None:
        raise FileError(f"{printable(folder)} has no config.json, so it is not a checkpoint folder")
    return Checkpoint(folder, identity, config, _index(folder, found) if weights else {})


def read_json(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file, or None when the file does not exist."""
    text = _read_text(path)
    if text is None:
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise CheckpointError(f"{printable(path)} is not valid JSON: {printable(e)}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{printable(path)} must hold a JSON object, not {type(value).__name__}")
    return value


def _read_text(path: Path) -> str | None:
    with os_errors(path, "read"):
        if not path.exists():
            return None
        if path.stat().st_size > _MAX_JSON:
            raise CheckpointError(f"{printable(path)} has {path.stat().st_size} bytes, the limit is {_MAX_JSON}")
        try:
            return path.read_text(encoding="utf-8")
        except UnicodeDecodeError as e:
            raise CheckpointError(f"{printable(path)} is not valid UTF-8 (byte {e.start})") from None


# Kinds of weights, the preferred first: index, start and end of the files' names, reader.
_KINDS: tuple[tuple[str, str, str, Callable[[Path], Iterator[Tensor]]], ...] = (
    ("model.safetensors.index.json", "model", ".safetensors", read_safetensors),
    ("pytorch_model.bin.index.json", "pytorch_model", ".bin", read_pytorch),
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


def gather(
    where: object, shards: Iterable[tuple[object, Iterable[Tensor]]], expected: Mapping[str, str] | None
) -> dict[str, Tensor]:
    """The tensors of (file, its tensors), which must be those of the index, if there is one, each once."""
    tensors: dict[str, Tensor] = {}
    for file, contents in shards:
        for tensor in contents:
            if tensor.name in tensors:
                raise CheckpointError(f"{printable(file)}: tensor {printable(tensor.name)} is in another shard too")
            tensors[tensor.name] = tensor
    if expected is not None:
        _check_complete(where, set(expected), set(tensors))
    return tensors


def read_index(path: Path) -> dict[str, str] | None:
    """Tensor name → shard file of an index, refusing files outside the folder; None when there is no index."""
    if (index := read_json(path)) is None:
        return None
    weight_map = index.get("weight_map")
    where = printable(path)
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise CheckpointError(f"{where}: weight_map must map tensor names to file names")
    for name, file in weight_map.items():
        if not file or Path(file).name != file or "\\" in file or file == "..":
            raise CheckpointError(
                f"{where}: tensor {printable(name)} is said to be in {printable(file)}, "
                "which is not a file of this folder"
            )
    return weight_map


def _check_complete(where: object, expected: set[str], present: set[str]) -> None:
    for names, what in (
        (expected - present, "in the index but in no shard"),
        (present - expected, "in a shard but not in the index"),
    ):
        if names:
            raise CheckpointError(
                f"{printable(where)}: {len(names)} tensors are {what}, the first is {printable(min(names))}"
            )
