"""Checkpoints as mlx-lm has them, there and back: what the table `arch.mlx.Mlx` of an export says, read both ways."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from ggufkit.arch.export import NAMES, Export, Exported, Source, exported
from ggufkit.arch.mlx import Mlx
from ggufkit.tensors.tensor import Tensor
from ggufkit.tensors.views import reshaped

__all__ = ["exported_for_mlx", "from_mlx"]

_STACK = "switch_mlp"
_ONE_BY_ONE = re.compile(r"\.experts\.\{xid\}\.")
_PARTS = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
_CONVOLUTION = re.compile(r"conv(1d)?\.weight$")


def exported_for_mlx(exports: Sequence[Export], source: Source) -> Exported:
    """See a GGUF as mlx-lm's checkpoint; `exports` all have their `mlx`.

    Raises
    ------
    ArchitectureError : see `export.exported`.
    """
    seen = exported([_for_mlx(export) for export in exports], source)
    own, config = _own(seen.export), seen.config
    if own.nested:
        outer = {"architectures": config["architectures"], "model_type": own.model_type}
        config = {**outer, "text_config": config}
    tensors = {name: _channels_last(tensor) for name, tensor in seen.tensors.items() if not own.skip(source, name)}
    head = f"{own.prefix}lm_head.weight"
    if own.headed and head not in tensors:
        tensors[head] = tensors[f"{own.prefix}model.embed_tokens.weight"].renamed(head)
    return replace(seen, config=config, tensors=tensors)


def _own(export: Export) -> Mlx:
    assert export.mlx is not None
    return export.mlx


def _for_mlx(export: Export) -> Export:
    """The export with mlx-lm's names and settings."""
    own, names = _own(export), _as_in_gguf(export)
    ends = [name.removesuffix(".weight").removeprefix("blk.{bid}") for name in names]
    called = own.called or export.called
    return replace(
        export,
        model_type=export.model_type if own.nested else own.model_type or export.model_type,
        config={**export.config, **own.config},
        names={**export.names, **names},
        fused={whole: parts for whole, parts in export.fused.items() if not names.keys() & set(parts)},
        undo={**export.undo, **dict.fromkeys(ends, lambda s, tensor: tensor)},
        called=lambda s, tensor: own.prefix + called(s, tensor),
        when=lambda s: export.when(s) and own.when(s),
    )


def _as_in_gguf(export: Export) -> dict[str, str]:
    """GGUF name → mlx-lm's, of arrays that it has as GGUF has them."""
    stacks = {gguf: _stacked(name) for gguf, name in export.names.items() if _ONE_BY_ONE.search(name)}
    return {**stacks, **_own(export).names}


def _stacked(name: str) -> str:
    module, _, part = _ONE_BY_ONE.sub(f".{_STACK}.", name).rpartition(".")
    return f"{module}.{_PARTS.get(part, part)}"


def _channels_last(tensor: Tensor) -> Tensor:
    """A convolution of each channel by itself, (channels, 1, taps), as MLX has it: (channels, taps, 1)."""
    if _CONVOLUTION.search(tensor.name) and len(tensor.shape) == 3:
        return reshaped(tensor, (tensor.shape[0], tensor.shape[2], 1))
    return tensor


# ---- the way back ----


def from_mlx(
    exports: Iterable[Export], tensors: Iterable[Tensor], layers: int
) -> tuple[Iterable[Tensor], Sequence[Tensor]]:
    """A checkpoint's tensors as published ones have them; and those that are as in GGUF already, under its names."""
    known, found = [export for export in exports if export.mlx is not None], list(tensors)
    back = {
        name.removesuffix(".weight").replace("{bid}", str(bid)): gguf.removesuffix(".weight").replace("{bid}", str(bid))
        for export in known
        for gguf, own in _as_in_gguf(export).items()
        for name in (own.replace("language_model.", ""), own.replace(f".mlp.{_STACK}.", ".mlp.experts."))
        for bid in range(layers if "{bid}" in gguf else 1)
    }
    published = {name for export in known for name in (NAMES | dict(export.names)).values()}
    if not any(_is_convolution(tensor) or _is_own(tensor, back, published) for tensor in found):
        return found, ()
    others: list[Tensor] = []
    ready: list[Tensor] = []
    for tensor in found:
        module, _, end = tensor.name.rpartition(".")
        own = back.get(module) if end in ("weight", "bias") else back.get(tensor.name)
        if own is not None:
            ready.append(tensor.renamed(f"{own}.{end if end == 'bias' else 'weight'}"))
        elif _is_convolution(tensor):
            others.append(reshaped(tensor, (tensor.shape[0], 1, tensor.shape[1])))
        else:
            others.append(tensor)
    return others, ready


def _is_convolution(tensor: Tensor) -> bool:
    return len(tensor.shape) == 3 and tensor.shape[2] == 1 < tensor.shape[1] and bool(_CONVOLUTION.search(tensor.name))


_LAYER = re.compile(r"(?<=\.layers\.)\d+(?=\.)")


def _is_own(tensor: Tensor, back: Mapping[str, str], published: set[str]) -> bool:
    """Whether mlx-lm's checkpoints have such a tensor and no published one has."""
    module = tensor.name.removesuffix(".weight").removesuffix(".bias")
    return module in back and _LAYER.sub("{bid}", module) not in published
