"""LoRA adapters of PEFT to GGUF: `convert_lora_to_gguf`'s files, for llama.cpp.

    adapter_config.json, adapter_model.safetensors     and, of the base model, config.json
    …q_proj.lora_A.weight (rank, in)                   →  blk.0.attn_q.weight.lora_a
    …q_proj.lora_B.weight (out, rank)                  →  blk.0.attn_q.weight.lora_b

What happens to a weight W = B · A on its way to GGUF happens to its halves: a new order of W's rows is one of B's
rows, a stack of experts is one of the As and one of the Bs. So the base model's own spec converts the Bs; and to learn
which A belongs to a result, it converts stand-ins whose rows hold nothing but their number.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ggufkit.arch.card import read_card
from ggufkit.arch.registry import architecture_of
from ggufkit.arch.spec import Architecture
from ggufkit.checkpoint.checkpoint import Checkpoint, read_json
from ggufkit.checkpoint.config import Config
from ggufkit.checkpoint.folder import open_checkpoint
from ggufkit.checkpoint.pytorch import read_pytorch
from ggufkit.checkpoint.safetensors import read_safetensors
from ggufkit.errors import CheckpointError, FileError, UsageError, printable
from ggufkit.formats.table import FORMATS, Format
from ggufkit.gguf.header import Value, ValueType
from ggufkit.jobs.job import Job
from ggufkit.jobs.plan import Plan, planned_tensor
from ggufkit.policy.decision import Decision
from ggufkit.tensors.tensor import Tensor
from ggufkit.tensors.views import LastMatrices, stacked, transposed

if TYPE_CHECKING:
    import numpy as np

__all__ = ["adapter_conversion", "is_adapter"]

_CONFIG = "adapter_config.json"
# The end of a half's name; PEFT puts the adapter's own name into it where it saves a model as it is in memory:
# …q_proj.lora_A.weight, …q_proj.lora_A.default.weight, …embed_tokens.lora_embedding_A, ….lora_embedding_A.default
_HALF = re.compile(r"\.lora_(embedding_)?([AB])(?:\.(?!weight$)([^.]+))?(?:\.weight)?$")

# A stand-in's rows: the number of the weight that it stands for.
_NUMBERS = Format("weight's number", -1, 1, "x:i4", "number", encodable=False)


@dataclass(frozen=True)
class Pair:
    """The halves of a weight W = B · A: A of shape (rank, in), B of shape (out, rank)."""

    name: str
    a: Tensor
    b: Tensor
    embedding: bool = False


def is_adapter(folder: str | Path) -> bool:
    """Whether a folder holds a PEFT adapter."""
    return (Path(folder) / _CONFIG).is_file()


def adapter_conversion(
    folder: str | Path,
    path: str | Path | None = None,
    type: str = "F32",
    *,
    base: str | os.PathLike[str] | None = None,
    metadata: str | os.PathLike[str] | None = None,
    model_name: str | None = None,
) -> Job:
    """Plan to convert a LoRA adapter.

    Parameters
    ----------
    folder : has `adapter_config.json` and the adapter's weights.
    path : the file to write; default a name by llama.cpp's convention in the folder.
    type : F32, F16, BF16 or Q8_0.
    base : the base model's checkpoint, of which `config.json` alone is read; default what the adapter calls its base,
        where that is a folder.
    metadata, model_name : see `convert.as_gguf`.

    Raises
    ------
    GgufkitError : a file is missing or malformed, or a GGUF adapter cannot say what this one does.
    """
    folder, type = Path(folder), type.upper()
    if type not in ("F32", "F16", "BF16", "Q8_0"):
        raise UsageError(f"an adapter can be F32, F16, BF16 or Q8_0, not {printable(type)}")
    settings = read_json(folder / _CONFIG)
    if settings is None:
        raise FileError(f"{printable(folder)} has no {_CONFIG}, so it is not an adapter")
    files = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
    found = open_checkpoint(_base(settings, base, folder), weights=False)
    spec, config = architecture_of(found.config, found.text)
    tensors = list(_converted(_read(folder), spec, config))
    identity = repr([(name, (folder / name).stat().st_mtime_ns) for name in files]).encode()
    card = read_card(Checkpoint(folder, identity, {}, {}), (), metadata, model_name)
    pairs: dict[str, Value] = {}
    for key, value in card.pairs(spec.name):
        pairs[key] = Value(ValueType.STRING, "adapter") if key == "general.type" else value
        if key == "general.type":
            pairs["adapter.type"] = Value(ValueType.STRING, "lora")
    pairs.update(_settings(settings, tensors))
    pairs["general.quantization_version"] = Value(ValueType.UINT32, 2)
    planned = [planned_tensor(tensor, _decided(tensor, type)) for tensor in tensors]
    target = folder / card.file_name(type, "LoRA") if path is None else Path(path)
    job = Job(target, Plan(((pairs, planned),)), identity, "converting")
    job.protect(file for file in folder.iterdir() if file.suffix != ".gguf")
    return job


def _base(settings: Mapping[str, Any], base: str | os.PathLike[str] | None, folder: Path) -> str | os.PathLike[str]:
    if base is not None:
        return base
    name = settings.get("base_model_name_or_path")
    if isinstance(name, str) and name and Path(name).is_dir():
        return name
    example = f", e.g. hf://{printable(name)}" if isinstance(name, str) and name.count("/") == 1 else ""
    raise UsageError(f"{printable(folder)} is an adapter", f"give its base model's folder as {{base}}{example}")


def _read(folder: Path) -> Iterator[Tensor]:
    for name, reader in (("adapter_model.safetensors", read_safetensors), ("adapter_model.bin", read_pytorch)):
        if (folder / name).is_file():
            yield from reader(folder / name)
            return
    raise FileError(f"{printable(folder)} has neither adapter_model.safetensors nor adapter_model.bin")


def _settings(settings: Mapping[str, Any], tensors: list[Tensor]) -> Iterator[tuple[str, Value]]:
    """What llama.cpp scales the adapter with: alpha divided by the rank of each pair."""
    config = Config(settings)
    for name, why in (
        ("use_dora", "DoRA's magnitudes"),
        ("alpha_pattern", "layers of their own alpha"),
        ("fan_in_fan_out", "layers that are stored transposed"),
    ):
        if config.get(name):
            raise CheckpointError(f"{_CONFIG}: {name} is set; {why} have no place in a GGUF adapter")
    alpha = float(config.number("lora_alpha"))
    if config.get("use_rslora"):
        # PEFT divides by the root of the rank instead.
        ranks = {tensor.cols for tensor in tensors if tensor.name.endswith(".lora_b")}
        if len(ranks) > 1:
            raise CheckpointError(f"{_CONFIG}: use_rslora with several ranks {sorted(ranks)} cannot be said in a GGUF")
        alpha *= math.sqrt(max(ranks, default=1))
    yield "adapter.lora.alpha", Value(ValueType.FLOAT32, alpha)
    if tokens := config.get("alora_invocation_tokens"):
        yield "adapter.alora.invocation_tokens", Value(ValueType.ARRAY, tokens, ValueType.UINT32)


def _decided(tensor: Tensor, type: str) -> Decision:
    half = tensor.name.endswith((".lora_a", ".lora_b"))
    if not half:
        return Decision(FORMATS["F32"], "a norm")
    if tensor.cols % FORMATS[type].block_size:
        return Decision(FORMATS["F16"], f"rows of {tensor.cols} are not a multiple of {type}'s block")
    return Decision(FORMATS[type], f"{type} for both halves of every weight")


# ---- halves -----------------------------------------------------------------------------------------------------


def _converted(tensors: Iterable[Tensor], spec: Architecture, config: Config) -> Iterator[Tensor]:
    """The adapter's tensors under their GGUF names: norms, then a and b of each weight."""
    norms, pairs = _sorted(tensors)
    for norm in norms:
        results = [tensor for tensor in spec.tensors([norm], config) if not _is_made(tensor)]
        if not results:
            raise _no_place(norm.name)
        yield from results
    stand_ins = [_stand_in(pair, number) for number, pair in enumerate(pairs)]
    bs = {t.name: t for t in spec.tensors([pair.b.renamed(pair.name) for pair in pairs], config)}
    cache = LastMatrices()
    left = {pair.name: pair for pair in pairs}
    for result in spec.tensors(stand_ins, config):
        if _is_made(result):
            continue
        found = _pairs_of(result, pairs)
        for pair in found:
            left.pop(pair.name, None)
        if found[0].embedding:  # llama.cpp looks its rows up
            a, b = transposed(found[0].a, cache), found[0].b
        else:
            a, b = _half_a(result, found), bs[result.name]
        yield a.renamed(f"{result.name}.lora_a")
        yield b.renamed(f"{result.name}.lora_b")
    for name in left:
        raise _no_place(name)


def _no_place(name: str) -> CheckpointError:
    return CheckpointError(
        f"{printable(name)} is changed by the adapter and is not a part of the GGUF of its base model (a head that is "
        "tied to the embedding, a vision tower), so the adapter would lose it; merge the adapter into its base model "
        "and convert that, or train one without it"
    )


def _sorted(tensors: Iterable[Tensor]) -> tuple[list[Tensor], list[Pair]]:
    """(norms, pairs) of an adapter, under the names that their weights have in a checkpoint."""
    norms: list[Tensor] = []
    halves: dict[str, dict[str, Tensor]] = {}
    adapters: set[str] = set()
    for tensor in tensors:
        name = tensor.name.removeprefix("base_model.model.")
        half = _HALF.search(name)
        if half is not None:
            if len(tensor.shape) != 2:
                raise CheckpointError(
                    f"{printable(tensor.name)} has the shape {list(tensor.shape)}, not two dimensions"
                )
            adapters.add(half[3] or "")
            weight = name[: half.start()] + ".weight"
            kind = ("embedding " if half[1] else "") + half[2].lower()
            if kind in (found := halves.setdefault(weight, {})):
                raise CheckpointError(
                    f"{printable(weight)} has two halves {half[2]}, of the adapters "
                    f"{printable(' and '.join(sorted(adapters)))}; save one adapter alone"
                )
            found[kind] = tensor
        elif ".base_layer." in name:
            continue
        elif "_layernorm" in name or ".norm" in name:
            norms.append(tensor.renamed(name))
        else:
            raise CheckpointError(
                f"{printable(tensor.name)} is no half of a LoRA; whole matrices (modules_to_save) have no place in a "
                "GGUF adapter: merge the adapter into its base model and convert that"
            )
    return norms, [_pair(name, found) for name, found in halves.items()]


def _pair(name: str, halves: Mapping[str, Tensor]) -> Pair:
    for a, b, embedding in (("a", "b", False), ("embedding a", "embedding b", True)):
        if set(halves) == {a, b}:
            pair = Pair(name, halves[a], halves[b], embedding)
            if pair.a.shape[0] != pair.b.shape[1]:
                raise CheckpointError(
                    f"{printable(name)}: A of shape {list(pair.a.shape)} and B of shape {list(pair.b.shape)} have "
                    "different ranks"
                )
            return pair
    raise CheckpointError(f"{printable(name)}: the adapter has only {printable(', '.join(halves))} of A and B")


def _stand_in(pair: Pair, number: int) -> Tensor:
    shape = (pair.b.shape[0], pair.a.shape[1])

    def read(lo: int, hi: int) -> np.ndarray:
        import numpy as np

        return np.full((hi - lo, shape[1]), number, "<i4").view(np.uint8)

    return Tensor(pair.name, shape, _NUMBERS, read)


def _is_made(tensor: Tensor) -> bool:
    """Whether the spec made the tensor by itself, as it does rope factors."""
    return tensor.format is not _NUMBERS and tensor.name.startswith("rope_")


def _pairs_of(result: Tensor, pairs: list[Pair]) -> list[Pair]:
    """The pairs that a converted weight is made of: one, or one for each of a stack of experts."""
    if result.format is not _NUMBERS:
        raise CheckpointError(
            f"{printable(result.name)} is worked out from whole weights; an adapter for it cannot be converted"
        )
    matrices = math.prod(result.shape[:-2])
    rows = result.rows // matrices
    first = (result.read(matrix * rows, matrix * rows + 1) for matrix in range(matrices))
    return [pairs[int(row.view("<i4")[0, 0])] for row in first]


def _half_a(result: Tensor, pairs: list[Pair]) -> Tensor:
    """The A of a converted weight; the stack of its experts' As, for a stack."""
    if any(pair.a.cols != result.cols for pair in pairs):
        raise CheckpointError(f"{printable(result.name)} is stored transposed; an adapter for it cannot be converted")
    return pairs[0].a if len(result.shape) == 2 else stacked(result.name, [pair.a for pair in pairs])
