"""Checkpoints to GGUF, straight to any type, in one pass with bounded memory.

    convert("Llama-3.2-1B", "llama.gguf", "Q4_K_M")

A checkpoint is first seen as a GGUF that does not exist: typed metadata, and lazy tensors under their GGUF names at
the checkpoint's own precision (`as_gguf`). The converter's types (F32, F16, BF16, Q8_0, TQ1_0, TQ2_0) write that
out; every other type runs it through the same planning as `quantize`. So the bytes are those of llama.cpp's
converter, followed by llama-quantize where a mix is asked for.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ggufkit.arch.card import VOCABULARY, Card, read_card
from ggufkit.arch.metadata import rope_note
from ggufkit.arch.projector import CLIP
from ggufkit.arch.projectors import projector_of
from ggufkit.arch.registry import architecture_of
from ggufkit.arch.shapes import check_shapes
from ggufkit.arch.spec import Architecture
from ggufkit.checkpoint.checkpoint import Checkpoint
from ggufkit.checkpoint.config import Config
from ggufkit.checkpoint.folder import open_checkpoint
from ggufkit.checkpoint.packed.registry import unpack
from ggufkit.checkpoint.packed.stored import Source
from ggufkit.errors import CheckpointError, UsageError, printable
from ggufkit.formats.table import FORMATS
from ggufkit.gguf.checks.planned import check_planned
from ggufkit.gguf.header import Value, ValueType
from ggufkit.jobs.job import Job
from ggufkit.jobs.lattice import on_lattices, origin_notes
from ggufkit.jobs.origins import described, hints
from ggufkit.jobs.plan import Plan, PlannedTensor
from ggufkit.jobs.quantize import plan_quantize, with_imatrix
from ggufkit.jobs.stream import MEMORY, Reporter, silent
from ggufkit.policy.outtype import OUTTYPES, outtype_decision
from ggufkit.policy.presets import PRESETS, preset_by_name
from ggufkit.policy.recipe import Recipe, recipe_of
from ggufkit.storage.source import is_address
from ggufkit.tensors.tensor import Tensor
from ggufkit.tensors.views import vector

if TYPE_CHECKING:
    import numpy as np

    from ggufkit.importance.imatrix_file import Imatrix

__all__ = ["CheckpointModel", "as_gguf", "conversion", "convert", "converted_tensors", "plan_convert"]

# `general.quantization_version`: the generation of the block formats.
_QUANTIZATION_VERSION = 2


@dataclass(frozen=True)
class CheckpointModel:
    """A checkpoint seen as a GGUF.

    Attributes
    ----------
    metadata : key → typed value, in file order.
    tensors : GGUF name → tensor at the checkpoint's precision, in the converter's order.
    source_type : what the converter calls "auto": that of the first matrix of 16 bits, else F16.
    card : what the model is called.
    identity : changes when the checkpoint does.
    notes : what the user should know, a sentence each.
    types : pattern of names → the type that the converter always gives to such tensors; see `always`.
    description : its class and how it is stored, in one line.
    within : see `jobs.job.Job`.
    """

    metadata: Mapping[str, Value]
    tensors: Mapping[str, Tensor]
    source_type: str
    card: Card
    identity: bytes
    notes: tuple[str, ...] = ()
    types: Mapping[str, str] = field(default_factory=dict)
    description: str = ""
    within: Callable[[int], int] = lambda memory: memory

    @property
    def quantized_to(self) -> str | None:
        """The block format of most weight matrices, where most are quantized already."""
        formats = Counter(t.format.name for t in self.tensors.values() if len(t.shape) > 1)
        most = formats.most_common(1)[0][0] if formats else "F32"
        return most if FORMATS[most].is_quantized else None


def as_gguf(
    folder: str | Path,
    *,
    pre: str | None = None,
    metadata: str | os.PathLike[str] | None = None,
    model_name: str | None = None,
    vocab_only: bool = False,
    inexact: str = "step",
    requantize: bool = False,
    mtp: bool = True,
    mmproj: bool = False,
    base: str | os.PathLike[str] | None = None,
    lattices: bool = False,
) -> CheckpointModel:
    """See a checkpoint folder as a GGUF; reads headers and the tokenizer, no weight but where `lattices` asks for it.

    Parameters
    ----------
    folder : the checkpoint; ``hf://owner/repo`` for one on the Hugging Face hub.
    pre : llama.cpp's name of the pre-tokenizer, where it cannot be recognised.
    metadata : a JSON file of `general.*` keys that win over the model card's.
    model_name : `general.name`.
    vocab_only : without the tensors, which the folder need not have then.
    inexact : what a matrix of a quantized checkpoint becomes that no block holds: see `packed.registry.unpack`.
    requantize : decode quantized matrices, for a preset to go on from.
    mtp : with the blocks that predict further tokens, where the checkpoint has some.
    mmproj : not the language model but the encoders of images and sound beside it.
    base : of a model that drafts for another: that one's checkpoint, of which the config and the tokenizer are read.
    lattices : matrices that lie on the lattice of a block format, as training for it leaves them, become such blocks.

    Raises
    ------
    FileError : the folder or one of its files is missing or unreadable.
    CheckpointError : a file of it is malformed.
    ArchitectureError : the architecture is not known or a hyperparameter is missing.
    """
    checkpoint = open_checkpoint(folder, weights=not vocab_only)
    checkpoint.pre_tokenizer = pre
    if mmproj:
        return _encoders(checkpoint, metadata, model_name)
    if base is not None:
        checkpoint.base = open_checkpoint(base, weights=False)
        checkpoint.base.pre_tokenizer = pre
    of_base = None if checkpoint.base is None else checkpoint.base.config
    spec, config = architecture_of(checkpoint.config, checkpoint.text, checkpoint.tensors, mtp, of_base)
    _check_base(checkpoint, spec)
    unpacked = unpack(
        Source(checkpoint.tensors, checkpoint.config, checkpoint.json), inexact=inexact, keep=not requantize
    )
    source = checkpoint.tensors if unpacked is None else unpacked.tensors
    tensors = {tensor.name: tensor for tensor in _with_factors(map(_floating, spec.tensors(source.values(), config)))}
    card = read_card(checkpoint, tensors.values(), metadata, model_name)
    pairs = _pairs(checkpoint, spec, config, card)
    if not spec.drafts:  # whose blocks read more than one state, and whose output may have fewer tokens
        check_shapes(spec.name, pairs, tensors)
    _check_header(checkpoint, pairs, tensors)
    source_type = _source_type(checkpoint)
    # A tensor of divisors says any rope.
    rope = None if "rope_freqs.weight" in tensors else rope_note(config)
    notes = card.notes if rope is None else (*card.notes, rope)
    description = f"{source_type if tensors else 'no weights'}, not quantized"
    if unpacked is not None:
        pairs.update(hints(unpacked, tensors))
        description = described(unpacked, tensors)
        notes = (*notes, description)
    # From far, a few rows of each matrix would take a request each.
    if lattices and not is_address(str(folder)) and (lying := on_lattices(tensors)):
        tensors.update(lying)
        notes = (*notes, *origin_notes(lying))
    kind = str(checkpoint.config.get("architectures", [spec.name])[0])
    return CheckpointModel(
        pairs,
        tensors,
        source_type,
        card,
        checkpoint.identity,
        notes,
        spec.types,
        f"{kind}, {description}",
        (lambda memory: memory) if unpacked is None else unpacked.within,
    )


def _check_base(checkpoint: Checkpoint, spec: Architecture) -> None:
    """A model that drafts needs the one that it drafts for; no other has a base."""
    if spec.drafts and checkpoint.base is None:
        raise UsageError(
            f"{printable(checkpoint.folder)} drafts for another model, and has its tokenizer",
            "give that model's checkpoint: {base=FOLDER}",
        )
    if checkpoint.base is not None and not spec.drafts:
        raise UsageError("a base is for adapters, folders with an adapter_config.json, and for models that draft")


def _with_factors(tensors: Iterable[Tensor]) -> Iterator[Tensor]:
    """Behind each tensor that is multiplied with numbers of its own when the model runs, these."""
    for tensor in tensors:
        yield tensor
        if tensor.origin is not None and tensor.origin.factors:
            yield vector(f"{tensor.name.removesuffix('.weight')}.scale", tensor.origin.factors)


def _encoders(
    checkpoint: Checkpoint, metadata: str | os.PathLike[str] | None, model_name: str | None
) -> CheckpointModel:
    """The encoders of images and sound as a GGUF."""
    spec, config = projector_of(checkpoint.config, checkpoint.text, checkpoint.tensors)
    unpacked = unpack(Source(checkpoint.tensors, checkpoint.config, checkpoint.json), inexact="preset", keep=False)
    source = checkpoint.tensors if unpacked is None else unpacked.tensors
    tensors = {tensor.name: tensor for tensor in map(_floating, spec.tensors(source.values(), config))}
    if not tensors:
        raise CheckpointError(f"{printable(checkpoint.folder)} has no tensors of an encoder")
    card = read_card(checkpoint, tensors.values(), metadata, model_name)
    pairs = dict(card.pairs(CLIP, mmproj=True))
    for row in spec.keys:
        pairs.update(row(CLIP, config))
    pairs["general.quantization_version"] = Value(ValueType.UINT32, _QUANTIZATION_VERSION)
    source_type = _source_type(checkpoint)
    return CheckpointModel(pairs, tensors, source_type, card, checkpoint.identity, card.notes, spec.types)


def _check_header(checkpoint: Checkpoint, pairs: Mapping[str, Value], tensors: Mapping[str, Tensor]) -> None:
    """Refuse to write what `validate` would say cannot work."""
    for finding in check_planned(pairs, tensors):
        if finding.fatal:
            raise CheckpointError(f"{printable(checkpoint.folder)}: the GGUF would not work: {finding.message}")


def _pairs(checkpoint: Checkpoint, spec: Architecture, config: Config, card: Card) -> dict[str, Value]:
    """The metadata, in file order."""
    pairs: dict[str, Value] = {}
    for key, value in card.pairs(spec.name):
        pairs[key] = value
        if key == "general.architecture":
            for row in spec.preamble:
                pairs.update(row(spec.name, config))
    for row in spec.metadata:
        pairs.update(row(spec.name, config))
    pairs["general.quantization_version"] = Value(ValueType.UINT32, _QUANTIZATION_VERSION)
    pairs.update(spec.vocabulary(checkpoint, config))
    return pairs


def _source_type(checkpoint: Checkpoint) -> str:
    """What the converter calls "auto"."""
    for tensor in checkpoint.tensors.values():
        if len(tensor.shape) > 1 and tensor.format.name in ("F16", "BF16"):
            return tensor.format.name
    return "F16"


def _floating(tensor: Tensor) -> Tensor:
    """The tensor as F32, F16, BF16 or in blocks; doubles and integers become F32."""
    if tensor.origin is not None and tensor.format.name == "I64":
        return tensor  # token ids
    if tensor.format.name in ("F32", "F16", "BF16") or (tensor.format.is_quantized and tensor.format.id >= 0):
        return tensor
    if tensor.format.id < 0:
        raise CheckpointError(
            f"{printable(tensor.name)} is stored as {tensor.format.name}; this model's weights are expected as "
            "F32, F16 or BF16. Quantized checkpoints of this kind are not known."
        )
    return _as_f32(tensor)


def _as_f32(tensor: Tensor) -> Tensor:
    def read(lo: int, hi: int) -> np.ndarray:
        import numpy as np

        return tensor.floats(lo, hi).view(np.uint8)

    return replace(tensor, format=FORMATS["F32"], read=read)


def plan_convert(model: CheckpointModel, type: str | Recipe = "auto") -> Plan:
    """Plan the file of a checkpoint; see `convert` for the types.

    Raises
    ------
    PolicyError : there is no such type; or see `plan_quantize`.
    """
    if isinstance(type, str):
        name = model.source_type if type.lower() == "auto" else type.upper()
        if name in OUTTYPES:
            return _as_converted(model, name)
        type = recipe_of(type)
    source = _as_converted(model, model.source_type)
    metadata, planned = source.shards[0]
    # What the converter would only copy needs no step of its own.
    tensors = {p.tensor.name: p.tensor if p.copied else p.result for p in planned}
    plan = plan_quantize(metadata, tensors, type)
    return replace(plan, notes=(*model.notes, *plan.notes))


def _as_converted(model: CheckpointModel, outtype: str) -> Plan:
    """The file that llama.cpp's converter writes."""
    metadata = dict(model.metadata)
    if "general.file_type" in metadata:
        metadata["general.file_type"] = Value(ValueType.UINT32, _file_type(model, outtype))
    planned = []
    for tensor in model.tensors.values():
        if tensor.origin is not None and not tensor.origin.computed:
            planned.append(PlannedTensor(tensor, tensor.format, tensor.origin.note))
            continue
        decision = outtype_decision(tensor.name, tensor.shape, outtype, model.types)
        planned.append(PlannedTensor(tensor, decision.format, decision.reason))
    return Plan(((metadata, planned),), model.notes)


def _file_type(model: CheckpointModel, outtype: str) -> int:
    """`general.file_type`: MXFP4_MOE for experts in MXFP4 among weights of 16 or 32 bits."""
    whole = outtype in ("F32", "F16", "BF16")
    if whole and any(tensor.format.name == "MXFP4" for tensor in model.tensors.values()):
        return preset_by_name("MXFP4_MOE").file_type
    if whole and model.quantized_to in PRESETS:
        return preset_by_name(model.quantized_to).file_type
    return OUTTYPES[outtype]


def conversion(
    folder: str | Path,
    path: str | Path | None = None,
    type: str | Recipe = "auto",
    *,
    split_max_size: int = 0,
    split_max_tensors: int = 0,
    pre: str | None = None,
    metadata: str | os.PathLike[str] | None = None,
    model_name: str | None = None,
    vocab_only: bool = False,
    inexact: str | None = None,
    mtp: bool = True,
    mmproj: bool = False,
    base: str | os.PathLike[str] | None = None,
) -> Job:
    """Plan to convert a checkpoint; see `convert`."""
    if mmproj and not (isinstance(type, str) and type.upper() in ("AUTO", "F32", "F16", "BF16", "Q8_0")):
        raise UsageError("encoders are written as F32, F16, BF16 or Q8_0")
    plain = (isinstance(type, str) and type.lower() == "auto") or (isinstance(type, Recipe) and type.copy)
    model = as_gguf(
        folder,
        pre=pre,
        metadata=metadata,
        model_name=model_name,
        vocab_only=vocab_only,
        mtp=mtp,
        mmproj=mmproj,
        base=base,
        inexact=inexact or ("step" if plain else "preset"),
        requantize=isinstance(type, Recipe) and type.allow_requantize,
        lattices=plain and not vocab_only and not (isinstance(type, Recipe) and type.lattice == "off"),
    )
    plan = plan_convert(model, type).split(split_max_size, split_max_tensors)
    local = None if is_address(str(folder)) else Path(folder)
    name = _type_name(model, type)
    if path is None:
        path = (local or Path()) / f"{'mmproj-' if mmproj else ''}{model.card.file_name(name)}"
    job = Job(Path(_filled(str(path), name)), plan, model.identity, "converting", within=model.within)
    if local is not None:
        job.protect(file for file in local.iterdir() if file.suffix != ".gguf")
    return job


def _filled(path: str, type: str) -> str:
    """`path` with the type in the places that llama.cpp's converter has for it."""
    for place, text in (("ftype", type.lower()), ("outtype", type.lower()), ("FTYPE", type), ("OUTTYPE", type)):
        path = path.replace(f"{{{place}}}", text)
    return path


def _type_name(model: CheckpointModel, type: str | Recipe) -> str:
    """The type as file names have it."""
    if not model.tensors:
        return VOCABULARY
    if isinstance(type, Recipe):
        return model.source_type if type.copy else type.preset.name
    if type.lower() == "auto":
        return model.quantized_to or model.source_type
    return type.upper() if type.upper() in OUTTYPES else preset_by_name(type).name


def converted_tensors(folder: str | Path) -> list[Mapping[str, Tensor]]:
    """The tensors of a checkpoint by their GGUF names, in the ways that they may come into a quantized file.

    llama-quantize encodes what the converter's 16 bits are; the converter itself, Q8_0 from the weights; some lie on
    the lattice of a format.
    """
    model = as_gguf(folder)
    lying = {**model.tensors, **on_lattices(model.tensors)}
    return [{p.tensor.name: p.result for p in plan_convert(model).tensors}, model.tensors, lying]


def convert(
    folder: str | os.PathLike[str],
    path: str | os.PathLike[str] | None = None,
    type: str | Recipe = "auto",
    *,
    imatrix: str | os.PathLike[str] | Imatrix | None = None,
    base: str | os.PathLike[str] | None = None,
    split_max_size: int = 0,
    split_max_tensors: int = 0,
    pre: str | None = None,
    metadata: str | os.PathLike[str] | None = None,
    model_name: str | None = None,
    vocab_only: bool = False,
    inexact: str | None = None,
    mtp: bool = True,
    mmproj: bool = False,
    force: bool = False,
    threads: int | None = None,
    memory: int = MEMORY,
    report: Reporter = silent,
) -> Path:
    """Convert a checkpoint, or a LoRA adapter of PEFT, to GGUF.

    Parameters
    ----------
    folder : the checkpoint; ``hf://owner/repo`` for one on the Hugging Face hub.
    path : the file to write; default a name by llama.cpp's convention in the checkpoint's folder, of one on the hub
        in this folder. ``{ftype}`` in it becomes the type's name, ``{FTYPE}`` that in capitals.
    type : F32, F16, BF16, Q8_0, TQ1_0 or TQ2_0, as llama.cpp's converter writes them; or any preset of `quantize`, or
        a `Recipe` with rules: then the bytes are those of the converter's ``"auto"`` file after llama-quantize.
        ``"auto"`` is BF16 for a checkpoint in bfloat16 and F16 for any other; F32 for an adapter. Matrices that were
        trained for a block format, and lie on its lattice, become that. What is quantized already stays as it is, in
        blocks that hold it exactly; a `Recipe` with `allow_requantize` decodes it.
    imatrix : an importance matrix, or its file.
    base : of an adapter: its base model's checkpoint, of which the config is read; of a model that drafts for another
        (EAGLE 3, DFlash, DSpark): that one's, of which the tokenizer is read, too.
    split_max_size, split_max_tensors : write files of at most so many bytes and tensors; 0 for any number.
    pre : llama.cpp's name of the pre-tokenizer, where it cannot be recognised.
    metadata : a JSON file of `general.*` keys that win over the model card's.
    model_name : `general.name`.
    vocab_only : without the tensors, which the folder need not have then.
    inexact : what becomes of quantized matrices that no block holds: "step", F16, BF16, F32, or "preset", as `type`
        says. Default: "step" for "auto", else "preset". See `packed.registry.unpack`.
    mtp : with the blocks that predict further tokens, where the checkpoint has some.
    mmproj : not the language model but the encoders of images and sound beside it, for ``mmproj-….gguf``.
    force, threads, memory, report : see `jobs.job.Job.write`.

    Returns
    -------
    the path of the file, of a split model that of its first part

    Raises
    ------
    GgufkitError : the checkpoint or the type is wrong, or the file cannot be written. No file appears.
    """
    from ggufkit.jobs.adapter import adapter_conversion, is_adapter

    folder, path = os.fspath(folder), None if path is None else Path(path)
    if is_adapter(folder):
        if not isinstance(type, str) or imatrix or pre or vocab_only or split_max_size or split_max_tensors:
            raise UsageError("of an adapter only the type, the base, the metadata and the name can be chosen")
        type = "F32" if type == "auto" else type
        job = adapter_conversion(folder, path, type, base=base, metadata=metadata, model_name=model_name)
    else:
        job = conversion(
            folder,
            path,
            type if imatrix is None else with_imatrix(type, imatrix),
            split_max_size=split_max_size,
            split_max_tensors=split_max_tensors,
            pre=pre,
            metadata=metadata,
            model_name=model_name,
            vocab_only=vocab_only,
            inexact=inexact,
            mtp=mtp,
            mmproj=mmproj,
            base=base,
        )
    return job.write(force=force, threads=threads, memory=memory, report=report)[0]
