"""From a path to a `Fit`: a model that is there, or one that would be made."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ggufkit.checkpoint.folder import is_checkpoint
from ggufkit.errors import UsageError
from ggufkit.gguf.reader import open as open_gguf
from ggufkit.jobs.plan import Plan
from ggufkit.memory.devices import Device, device, this_machine
from ggufkit.memory.family import model_as
from ggufkit.memory.line import Line, amount
from ggufkit.memory.model import Model, model_of, model_of_plan
from ggufkit.memory.report import Fit, report
from ggufkit.memory.setup import Setup
from ggufkit.policy.recipe import Recipe
from ggufkit.runtime.sizes import CONTEXT

__all__ = ["described", "devices_of", "fit"]

StrPath = str | os.PathLike[str]


def fit(
    source: StrPath | Plan,
    devices: Sequence[str | Device] = (),
    *,
    type: str | Recipe | None = None,
    engine: str | None = None,
    context: int | None = None,
    slots: int = 1,
    unified: bool = False,
    keys: str = "F16",
    values: str = "F16",
    batch: int = 2048,
    ubatch: int = 512,
    outputs: int = 0,
    flash: bool = True,
    swa_full: bool = False,
    gpu_layers: int | None = None,
    cpu_experts: int = 0,
    mmproj: StrPath | None = None,
    lora: Sequence[StrPath] = (),
) -> Fit:
    """How much memory a model takes, and whether it fits; only headers are read.

    Parameters
    ----------
    source : a GGUF file, any of a split model, an address (``https://…``, ``hf://owner/repo/file``), a checkpoint, or a
        `Plan` of a model that is not written yet.
    devices : names such as ``"m4-pro-48"``, ``"rtx-4090"``, ``"24G"`` or ``"cpu-64G"``, or `memory.Device`; by default
        this machine. Cards have this machine's CPU beside them, unless another is named.
    type : as what it would be quantized: a type's name or a `Recipe`; None for the file as it is.
    engine : ``"cpu"``, ``"mlx"`` or ``"llama.cpp"``; by default what runs on the devices.
    context : tokens of a conversation; by default 4096, or fewer if the model was trained on fewer.
    slots, unified, keys, values, batch, ubatch, outputs, flash, swa_full, gpu_layers, cpu_experts : see `memory.Setup`.
    mmproj, lora : further files of llama.cpp: a projector, adapters.

    Raises
    ------
    GgufkitError : the source is not a model, or an option is wrong.
    """
    model = described(source, type)
    places = devices_of(devices)
    engine = engine or places[0].engine
    places = [place.for_engine(engine) for place in places]
    context = min(CONTEXT, model.context_length) if context is None else context
    wanted = Setup(
        engine=engine,
        context=context,
        slots=slots,
        unified=unified,
        keys=keys,
        values=values,
        batch=batch,
        ubatch=ubatch,
        outputs=outputs,
        flash=flash,
        swa_full=swa_full,
        gpu_layers=gpu_layers,
        cpu_experts=cpu_experts,
    )
    extra = _beside(wanted, mmproj, lora)
    return report(model, wanted, places, extra)


def described(source: StrPath | Plan, type: str | Recipe | None = None) -> Model:
    """What memory depends on in a model, or in what it would be as another type; see `fit`."""
    if isinstance(source, Plan):
        model = model_of_plan(source, "planned.gguf")
        return model if type is None or isinstance(type, Recipe) else model_as(model, type)[0]
    path = os.fspath(source)
    if is_checkpoint(path):
        from ggufkit.jobs.convert import as_gguf, plan_convert

        checkpoint = as_gguf(path)
        made = type if type is not None and not _is_preset(type) else "auto"
        model = model_of_plan(plan_convert(checkpoint, made), path, checkpoint.description)
    else:
        with open_gguf(path) as gguf:
            model = model_of(gguf)
            if isinstance(type, Recipe):
                from ggufkit.jobs.quantize import plan_quantize

                plan = plan_quantize(gguf.fields, gguf.tensors, replace(type, allow_requantize=True))
                return model_of_plan(plan, f"ggml-model-{type.name}.gguf")
    if isinstance(type, str) and _is_preset(type):
        made_of = model_as(model, type)[0]
        return replace(made_of, path=f"ggml-model-{type.upper()}.gguf")
    return model


def _is_preset(type: str | Recipe) -> bool:
    """Whether only the formats of a model's tensors change."""
    return isinstance(type, str) and type.lower() not in ("auto", "copy")


def devices_of(wanted: Sequence[str | Device]) -> list[Device]:
    """Devices by their names; cards have a CPU behind them.

    Raises
    ------
    UsageError : a name is not known, or the devices do not go together.
    """
    found = [device(item) if isinstance(item, str) else item for item in wanted] or [this_machine()]
    cards = [place for place in found if place.kind == "card"]
    others = [place for place in found if place.kind != "card"]
    if len(others) > 1 or (cards and others and others[0].kind == "unified"):
        raise UsageError(f"{others[0].name} has one memory for all; give it alone, or cards and one CPU")
    return [*cards, *(others or [this_machine()])]


def _beside(setup: Setup, mmproj: StrPath | None, lora: Sequence[StrPath]) -> list[Line]:
    """Lines of the files beside the model."""
    if (mmproj is not None or lora) and setup.engine != "llama.cpp":
        raise UsageError("projectors and adapters are counted for llama.cpp", "take {engine=llama.cpp}")
    lines = []
    files = [("adapter", path) for path in lora] + ([("projector", mmproj)] if mmproj is not None else [])
    for part, path in files:
        with open_gguf(path) as gguf:
            nbytes = sum(info.nbytes for info in gguf.info.values())
            lines.append(Line(part, 0, nbytes, f"{amount(len(gguf.info), 'tensor')} of {gguf.path}"))
            if part == "projector":
                lines += _seeing(gguf.metadata)
    return lines


# No log of llama.cpp's was compared with this.
_PROJECTING = 0.5


def _seeing(metadata: Mapping[str, Any]) -> list[Line]:
    """What computing an image takes: all of its patches at once, with scores of each for each."""
    names = ("image_size", "patch_size", "embedding_length", "feed_forward_length", "attention.head_count")
    found = [metadata.get(f"clip.vision.{name}") for name in names]
    if not all(isinstance(value, int) and 0 < value < 1 << 24 for value in found):
        return []
    image, patch, width, inner, heads = (int(value) for value in found if value is not None)
    patches = (image // patch) ** 2
    nbytes = 4 * patches * (4 * width + 2 * inner) + 4 * patches * patches * heads
    text = f"{patches} patches × (4 × {width} + 2 × {inner} + {patches} × {heads} scores) × 4 B"
    return [Line("projecting", 0, nbytes, text, _PROJECTING)]
