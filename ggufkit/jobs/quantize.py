"""Quantize a model: the bytes of llama-quantize, from a GGUF file or a checkpoint on its way to one.

    quantize("model.gguf", "small.gguf", "Q4_K_M")

or in two steps, to look at the plan first:

    with ggufkit.open("model.gguf") as model:
        job = quantization(model, "small.gguf", "Q4_K_M")
        job.plan.size                                # bytes of the file to come
        job.write()

Everything that can be refused is refused by the plan, before a weight is read.

Source: `llama_model_quantize_impl` in src/llama-quant.cpp of llama.cpp.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ggufkit.arch.registry import traits_of
from ggufkit.errors import Hint, PolicyError, printable
from ggufkit.formats.table import Format
from ggufkit.gguf.header import Field, Value, ValueType
from ggufkit.gguf.reader import GGUF
from ggufkit.gguf.reader import open as open_gguf
from ggufkit.gguf.shards import SPLIT_KEYS
from ggufkit.gguf.writer import as_value
from ggufkit.jobs.job import Job
from ggufkit.jobs.lattice import keeping_lattices, lattice_notes
from ggufkit.jobs.plan import Plan, PlannedTensor, planned_tensor, sharded
from ggufkit.jobs.stream import MEMORY, Reporter, silent
from ggufkit.policy.decide import decide, requires_importance
from ggufkit.policy.decision import Decision
from ggufkit.policy.hyperparameters import hyperparameters_of
from ggufkit.policy.presets import PRESETS, preset_by_name
from ggufkit.policy.prune import pruned_metadata, renumbered
from ggufkit.policy.recipe import Recipe, recipe_of
from ggufkit.policy.roles import Role, by_layer, layer_of, role_of, trimmed
from ggufkit.tensors.tensor import Tensor

if TYPE_CHECKING:
    from ggufkit.importance.imatrix_file import Imatrix

__all__ = ["plan_quantize", "quantization", "quantize", "source_key", "with_imatrix"]

FILE_TYPE = "general.file_type"
VERSION = "general.quantization_version"

# GGML_QNT_VERSION.
_VERSION = 2

# llama.cpp adds this to a file type that it guessed from the tensors.
_GUESSED = 1024

# llama.cpp holds the text of an override in 128 bytes, the last of them NUL.
_MAX_TEXT = 127


def plan_quantize(
    fields: Mapping[str, Field | Value | Any],
    tensors: Mapping[str, Tensor],
    recipe: Recipe,
    shard_of: Callable[[str], int] | None = None,
) -> Plan:
    """Plan the output that llama-quantize would write.

    Parameters
    ----------
    fields : metadata of the source in file order.
    tensors : its tensors, in file order.
    recipe : what to do.
    shard_of : tensor name → number of the output file ; by default there is one.

    Raises
    ------
    PolicyError : a rule matches nothing, a format needs importance that is missing, the importance matrix belongs
        to another model, or a tensor is quantized already.
    UsageError : a layer to leave out does not exist.
    """
    typed = {key: value if isinstance(value, Field) else as_value(value) for key, value in fields.items()}
    overridden = {**typed, **dict(recipe.overrides)}
    names = renumbered(tensors, recipe.prune_layers)  # name in the source → name in the output
    ordered = list(names) if shard_of else sorted(names, key=by_layer)
    if shard_of:
        ordered.sort(key=shard_of)
    shaped = {old: replace(tensors[old], name=names[old], shape=trimmed(tensors[old].shape) or (1,)) for old in ordered}
    values = {key: value.value for key, value in overridden.items() if _decides(key)}
    traits = traits_of(str(values.get("general.architecture", "")))
    model = hyperparameters_of(values, names.values(), traits, recipe.imatrix is not None)
    decisions = decide([(t.name, t.shape, t.format) for t in shaped.values()], model, recipe)
    planned = [_planned(old, t, recipe.types.get(old, decisions[t.name]), recipe) for old, t in shaped.items()]
    _check_imatrix_used(planned, recipe.imatrix)
    planned = keeping_lattices(planned, recipe.lattice)

    metadata = _output_metadata(typed, list(tensors.values()), recipe)
    if recipe.prune_layers:
        metadata = pruned_metadata(metadata, model.architecture, recipe.prune_layers, len(_layers(names.values())))
    shards = sharded(metadata, planned, [shard_of(old) if shard_of else 0 for old in shaped])
    return Plan(shards, (*_notes(planned, recipe), *lattice_notes(planned)), numbered=shard_of is not None)


def _layers(names: Any) -> set[int]:
    return {layer for name in names if (layer := layer_of(name)) is not None}


def _decides(key: str) -> bool:
    # Vocabularies are long and decide nothing.
    return not key.startswith("tokenizer.")


# -- tensors ----------------------------------------------------------------------------------------------


def _planned(old: str, tensor: Tensor, decision: Decision, recipe: Recipe) -> PlannedTensor:
    kept = None if tensor.origin is None or tensor.origin.computed else tensor.origin
    if kept is not None and decision.format != tensor.format and not recipe.allow_requantize:
        return PlannedTensor(tensor, tensor.format, kept.note)
    name, source = printable(tensor.name), tensor.format
    if source.is_quantized and decision.format != source and not recipe.allow_requantize:
        raise PolicyError(
            f"{name} is quantized already, to {source.name}",
            Hint("start from the original weights", "give {allow_requantize=True} and lose quality"),
        )
    planned = planned_tensor(tensor, decision, recipe.imatrix, old)
    poor = planned.importance is None and requires_importance(tensor.name, decision.format, recipe.preset)
    if poor and not planned.copied:
        needed = f"{name} as {decision.format.name} needs importance weights to be of any use"
        if recipe.imatrix is not None:
            raise PolicyError(f"{needed}; {printable(recipe.imatrix.path)} has none for it")
        raise PolicyError(needed, "make a matrix with `ggufkit imatrix` and give it as {imatrix}")
    return planned


def _check_imatrix_used(planned: Sequence[PlannedTensor], imatrix: Imatrix | None) -> None:
    encoded = [p for p in planned if not p.copied and p.format.is_quantized]
    if imatrix is not None and encoded and all(p.importance is None for p in encoded):
        raise PolicyError(
            f"the importance matrix {printable(imatrix.path)} belongs to another model: it names none of the "
            f"{len(encoded)} tensors to quantize, but {printable(next(iter(imatrix.values), 'nothing'))}"
        )


def _notes(planned: Sequence[PlannedTensor], recipe: Recipe) -> list[str]:
    notes = []
    encoded = [p for p in planned if not p.copied and p.format.is_quantized]
    if recipe.imatrix is not None:
        without = [p for p in encoded if p.importance is None and role_of(p.tensor.name) is not Role.TOKEN_EMBD]
        if without:
            notes.append(
                f"{len(without)} of {len(encoded)} quantized tensors have no importance in the matrix, "
                f"the first is {printable(without[0].tensor.name)}"
            )
    fallbacks = [p for p in planned if "needs columns in multiples" in p.reason]
    if fallbacks:
        notes.append(
            f"{len(fallbacks)} of {len(planned)} tensors fall back to another type for their width, "
            f"the first is {printable(fallbacks[0].tensor.name)}"
        )
    return notes


# -- metadata ---------------------------------------------------------------------------------------------


def _output_metadata(fields: Mapping[str, Any], tensors: Sequence[Tensor], recipe: Recipe) -> dict[str, Any]:
    """The source's pairs; then what llama-quantize sets, in its order. A key that is set again moves to the end."""
    metadata = dict(fields)
    file_type = _file_type_of(fields, tensors) if recipe.copy else recipe.preset.file_type
    changes = {VERSION: Value(ValueType.UINT32, _VERSION), FILE_TYPE: Value(ValueType.UINT32, file_type)}
    for key, value in changes.items():
        metadata.pop(key, None)
        metadata[key] = value
    for key in SPLIT_KEYS:
        metadata.pop(key, None)
    for key, value in (*recipe.overrides, *_imatrix_fields(recipe.imatrix)):
        metadata.pop(key, None)
        metadata[key] = value
    return metadata


def _imatrix_fields(imatrix: Imatrix | None) -> list[tuple[str, Value]]:
    if imatrix is None:
        return []

    def text(value: str) -> Value:
        return Value(ValueType.STRING, value.encode("utf-8", "surrogateescape")[:_MAX_TEXT])

    pairs = [("file", text(imatrix.path))]
    if imatrix.datasets:
        pairs.append(("dataset", text(imatrix.datasets[0])))
    pairs.append(("entries_count", Value(ValueType.UINT32, len(imatrix.values))))
    if imatrix.chunks > 0:
        pairs.append(("chunks_count", Value(ValueType.UINT32, imatrix.chunks)))
    return [(f"quantize.imatrix.{key}", value) for key, value in pairs]


def _file_type_of(fields: Mapping[str, Any], tensors: Sequence[Tensor]) -> int:
    """The source's file type; without the key, llama.cpp's guess after the most frequent format."""
    if (known := fields.get(FILE_TYPE)) is not None:
        return int(known.value)
    counts: Counter[Format] = Counter()
    most = None
    for tensor in sorted(tensors, key=lambda t: by_layer(t.name)):
        counts[tensor.format] += 1
        if most is None or counts[tensor.format] > counts[most]:
            most = tensor.format
    known_types = most is not None and (most.name in PRESETS or most.name in ("Q3_K", "Q4_K", "Q5_K"))
    return _GUESSED + (preset_by_name(most.name).file_type if most is not None and known_types else 0)


# -- files ------------------------------------------------------------------------------------------------


def source_key(model: GGUF) -> bytes:
    """What identifies the contents of an open model, for resuming: sizes, times and headers of its files."""
    digest = hashlib.sha256()
    for part in model.parts:
        name = part.source.name
        when = os.stat(name).st_mtime_ns if os.path.exists(name) else 0
        digest.update(f"{part.source.size} {when} ".encode())
        digest.update(part.source.read(part.start, part.header.data_offset))
    return digest.digest()


def quantization(model: GGUF, target: str | os.PathLike[str], type: str | Recipe, *, keep_split: bool = False) -> Job:
    """Plan to quantize an open model; see `quantize`."""
    recipe = type if isinstance(type, Recipe) else recipe_of(type)
    shards = {id(part): i for i, part in enumerate(model.parts)}
    shard_of = (lambda name: shards[id(model.part_of(name))]) if keep_split else None
    plan = plan_quantize(model.fields, model.tensors, recipe, shard_of)
    job = Job(Path(target), plan, source_key(model), "quantizing")
    job.protect(part.source.name for part in model.parts)
    return job


def with_imatrix(type: str | Recipe, imatrix: str | os.PathLike[str] | Imatrix) -> Recipe:
    """A recipe with an importance matrix."""
    from ggufkit.importance.imatrix_file import Imatrix, read_imatrix

    read = imatrix if isinstance(imatrix, Imatrix) else read_imatrix(imatrix)
    return replace(type if isinstance(type, Recipe) else recipe_of(type), imatrix=read)


def quantize(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    type: str | Recipe,
    *,
    imatrix: str | os.PathLike[str] | Imatrix | None = None,
    allow_requantize: bool = False,
    keep_split: bool = False,
    force: bool = False,
    threads: int | None = None,
    memory: int = MEMORY,
    report: Reporter = silent,
) -> Path:
    """Quantize a GGUF file: the bytes that llama-quantize writes.

    Parameters
    ----------
    source, target : the files.
    type : a preset's name, COPY, or a `Recipe` with rules.
    imatrix : an importance matrix, or its file.
    allow_requantize : decode tensors that are quantized already, at the cost of quality.
    keep_split : write the parts of a split model one by one; `target` is their name without the number.
    force, threads, memory, report : see `jobs.job.Job.write`.

    Returns
    -------
    the path of the file, of a split model that of its first part

    Raises
    ------
    GgufkitError : the source or the recipe is wrong, or the file cannot be written. No file appears.
    """
    recipe = type if isinstance(type, Recipe) else recipe_of(type)
    if imatrix is not None:
        recipe = with_imatrix(recipe, imatrix)
    if allow_requantize:
        recipe = replace(recipe, allow_requantize=True)
    with open_gguf(source) as model:
        model.read_once()
        job = quantization(model, target, recipe, keep_split=keep_split)
        return job.write(force=force, threads=threads, memory=memory, report=report)[0]
