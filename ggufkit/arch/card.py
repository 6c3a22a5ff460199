"""The `general.*` metadata: what the model is called, where it comes from, what it may be used for.

The heuristics over model card, `config.json` and folder name are the gguf package's own, so that a file carries
the same words whichever converter made it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from datetime import date
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ggufkit.checkpoint.checkpoint import Checkpoint, read_json
from ggufkit.errors import CheckpointError, FileError, printable
from ggufkit.gguf.header import Value, ValueType
from ggufkit.tensors.tensor import Tensor

if TYPE_CHECKING:
    import gguf

__all__ = ["VOCABULARY", "Card", "read_card"]

# What the name of a file without tensors ends with.
VOCABULARY = "vocab"


@dataclass(frozen=True)
class Card:
    """What is known of a model beyond its numbers.

    Attributes
    ----------
    metadata : as the gguf package has it.
    notes : what was left out of it, a sentence each.
    """

    metadata: gguf.Metadata
    notes: tuple[str, ...] = ()

    def pairs(self, architecture: str, mmproj: bool = False) -> Iterator[tuple[str, Value]]:
        """`general.*` in file order; `mmproj` for the encoders beside a model."""
        import gguf

        # The writer types each key; nothing is written, its table of pairs is all that is wanted.
        writer = gguf.GGUFWriter(None, architecture)
        writer.add_type(gguf.GGUFType.MMPROJ if mmproj else gguf.GGUFType.MODEL)
        self.metadata.set_gguf_meta_model(writer)
        for key, typed in writer.kv_data[0].items():
            item_type = None
            if typed.type == gguf.GGUFValueType.ARRAY:
                item_type = ValueType(typed.sub_type or gguf.GGUFValueType.get_type(typed.value[0]))
            yield key, Value(ValueType(typed.type), typed.value, item_type)

    def file_name(self, encoding: str, kind: str | None = None) -> str:
        """The name that llama.cpp's convention gives a file: ``Pylib-Llama-5.2M-Q4_K_M.gguf``.

        Parameters
        ----------
        encoding : the type's name, or VOCABULARY.
        kind : what it is instead of a model: ``"LoRA"``.
        """
        import gguf

        m = self.metadata
        type_, kind = (None, VOCABULARY) if encoding == VOCABULARY else (encoding, kind)
        stem = gguf.naming_convention(m.name, m.basename, m.finetune, m.version, m.size_label, type_, kind)
        return f"{stem.replace('/', '-')}.gguf"


def read_card(
    checkpoint: Checkpoint,
    tensors: Iterable[Tensor],
    override: str | os.PathLike[str] | None = None,
    model_name: str | None = None,
) -> Card:
    """The card of a checkpoint whose tensors have their GGUF names already.

    Parameters
    ----------
    override : a JSON file whose `general.*` keys win over all else.
    model_name : `general.name`, in their place where they have none.

    Raises
    ------
    FileError : there is no file `override`.
    CheckpointError : `override` is malformed. A model card that is only goes without.
    """
    import gguf

    total, shared, expert, experts = _parameters(tensors)
    logging.getLogger("metadata").setLevel(logging.ERROR)
    folder = checkpoint.folder.resolve()
    if override is not None and read_json(Path(override)) is None:
        raise FileError(f"{printable(override)} does not exist")
    over = None if override is None else Path(override)
    try:
        _check_front_matter(folder / "README.md")
        metadata, notes = gguf.Metadata.load(over, folder, model_name, total), []
    except Exception as e:  # whatever YAML of a stranger leads the package to
        first = printable(str(e).splitlines()[0] if str(e) else type(e).__name__)
        notes = [f"{printable(folder / 'README.md')} is left out: its front matter cannot be read: {first}"]
        metadata = _without_card(folder, over, model_name, total)
    if metadata.sampling_penalty_repeat is None:
        # Newer than the package's releases.
        metadata.sampling_penalty_repeat = (_generation(checkpoint)).get("repetition_penalty")
    odd = sorted(_drop_odd(metadata))
    if odd:
        notes.append(f"the model card's {printable(', '.join(odd))} cannot be written and is left out")
    if metadata.name is None:
        metadata.name = folder.name
    if metadata.size_label is None and total > 0:
        metadata.size_label = gguf.size_label(total, shared, expert, experts)
    return Card(metadata, tuple(notes))


_MAX_FRONT_MATTER = 1 << 20  # bytes; the tables of results of large embedding models have 300 KB


def _check_front_matter(path: Path) -> None:
    """Refuse what would take long: the package reads all of it, and YAML's aliases multiply."""
    import yaml

    if not path.is_file():
        return
    with path.open("rb") as file:
        text = file.read(_MAX_FRONT_MATTER)
    if not text.startswith(b"---"):
        if path.stat().st_size > 64 * _MAX_FRONT_MATTER:
            raise ValueError(f"the file has {path.stat().st_size} bytes")
        return
    end = text.find(b"\n---", 3)
    if end < 0 and path.stat().st_size > len(text):
        raise ValueError(f"it has more than {_MAX_FRONT_MATTER} bytes")
    if b"*" in text[:end] and any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text[3:end].decode())):
        raise ValueError("it has aliases")


def _without_card(folder: Path, override: Path | None, model_name: str | None, total: int) -> gguf.Metadata:
    """What `gguf.Metadata.load` finds without README.md."""
    import gguf

    try:
        parameters = gguf.Metadata.load_hf_parameters(folder)
        metadata = gguf.Metadata.apply_metadata_heuristic(gguf.Metadata(), {}, parameters, folder, total)
        generation = gguf.Metadata.load_generation_config(folder) or {}
        over = gguf.Metadata.load(override, None, model_name)
    except (ValueError, TypeError, AttributeError) as e:
        raise CheckpointError(
            f"{printable(override or folder)}: what it says about the model cannot be read: {printable(e)}"
        ) from None
    for field in fields(metadata):
        if field.name.startswith("sampling_"):
            key = {"sampling_temp": "temperature"}.get(field.name, field.name.removeprefix("sampling_"))
            setattr(metadata, field.name, generation.get(key, getattr(metadata, field.name)))
        if (value := getattr(over, field.name)) is not None:
            setattr(metadata, field.name, value)
    return metadata


def _drop_odd(metadata: gguf.Metadata) -> Iterator[str]:
    """Take away what is not of its field's type, or make it so; yields the names of what was lost."""
    for field in fields(metadata):
        value = getattr(metadata, field.name)
        if value is None:
            continue
        kept = _fitting(value, str(field.type))
        if field.name == "license" and isinstance(value, list):
            kept = _fitting(value, "Optional[list[str]]")
        setattr(metadata, field.name, kept)
        if kept is None or (isinstance(value, list) and len(kept) < len(value)):
            yield field.name


def _fitting(value: Any, kind: str) -> Any:
    """`value` as a field of a kind has it, or None."""
    plain = (str, int, float, bool, date)
    if "list[dict]" in kind:
        entries = [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []
        texts = [{k: str(v) for k, v in entry.items() if isinstance(v, plain)} for entry in entries]
        return texts or None
    if "list[str]" in kind:
        items = value if isinstance(value, list) else [value]
        return [_text(item) for item in items if isinstance(item, plain) and _text(item) is not None] or None
    if "str" in kind:
        return _text(value) if isinstance(value, plain) else None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e38:
        return None
    if "int" in kind:
        return int(value) if -(1 << 31) <= value < 1 << 31 else None
    return value


def _text(value: Any) -> str | None:
    """A plain value as text that UTF-8 can have."""
    try:
        text = str(value)
        text.encode()
    except ValueError:  # a number of thousands of digits, half a surrogate pair
        return None
    return text


def _generation(checkpoint: Checkpoint) -> dict[str, Any]:
    try:
        return checkpoint.json("generation_config.json") or {}
    except CheckpointError:  # the reference does without a broken one too
        return {}


def _parameters(tensors: Iterable[Tensor]) -> tuple[int, int, int, int]:
    """(all parameters, those outside experts, those of one expert, experts a layer)."""
    total = shared = expert = counted = stacks = 0
    for tensor in tensors:
        size = prod(tensor.shape)
        total += size
        if "_exps." in tensor.name and len(tensor.shape) >= 3:
            expert += size // tensor.shape[0]
            counted += tensor.shape[0]
            stacks += 1
        else:
            shared += size
    return total, shared, expert, counted // stacks if stacks else 0
