"""A checkpoint: its JSON files, and its weights out of all shards."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ggufkit.errors import CheckpointError, os_errors, printable
from ggufkit.storage.regular import read_small
from ggufkit.tensors.tensor import Tensor

__all__ = ["Checkpoint", "gather", "read_index", "read_json"]

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
    base : the checkpoint of the model that this one drafts for, without weights.
    pre_tokenizer : llama.cpp's name of the pre-tokenizer, where the user knows it better; None to recognise it.
    """

    pre_tokenizer: str | None = None
    scratch: Any = None
    base: Checkpoint | None = None

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
        return io.TextIOWrapper(io.BytesIO(read_small(path, _MAX_JSON)), "utf-8").read()  # any line ends
    except UnicodeDecodeError as e:
        raise CheckpointError(f"{printable(path)} is not valid UTF-8 (byte {e.start})") from None


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
