"""The `general.*` metadata: what the model is called, where it comes from, what it may be used for.

The heuristics over model card, `config.json` and folder name are the gguf package's own, so that a file carries
the same words whichever converter made it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

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
    """What is known of a model beyond its numbers."""

    metadata: gguf.Metadata

    def pairs(self, architecture: str) -> Iterator[tuple[str, Value]]:
        """`general.*` in file order."""
        import gguf

        # The writer types each key; nothing is written, its table of pairs is all that is wanted.
        writer = gguf.GGUFWriter(None, architecture)
        writer.add_type(gguf.GGUFType.MODEL)
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
    override: str | Path | None = None,
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
    CheckpointError : the model card's front matter, or `override`, is malformed.
    """
    import gguf
    import yaml  # of the gguf package

    total, shared, expert, experts = _parameters(tensors)
    logging.getLogger("metadata").setLevel(logging.ERROR)
    folder = checkpoint.folder.resolve()
    if override is not None and read_json(Path(override)) is None:
        raise FileError(f"{printable(override)} does not exist")
    try:
        metadata = gguf.Metadata.load(None if override is None else Path(override), folder, model_name, total)
    except (yaml.YAMLError, ValueError, TypeError, AttributeError) as e:
        first = printable(str(e).splitlines()[0] if str(e) else type(e).__name__)
        raise CheckpointError(f"{printable(folder / 'README.md')}: the front matter cannot be read: {first}") from None
    if metadata.sampling_penalty_repeat is None:
        # Newer than the package's releases.
        metadata.sampling_penalty_repeat = (_generation(checkpoint)).get("repetition_penalty")
    if metadata.name is None:
        metadata.name = folder.name
    if metadata.size_label is None and total > 0:
        metadata.size_label = gguf.size_label(total, shared, expert, experts)
    return Card(metadata)


def _generation(checkpoint: Checkpoint) -> dict:
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
