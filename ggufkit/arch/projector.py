"""Encoders of images and sound beside a language model, and what brings their outputs to its width: an mmproj file.

    GEMMA3 = Projector(
        models=("Gemma3ForConditionalGeneration",),
        keys=(*vision_keys(), projector("gemma3"), vision_epsilon("layer_norm_eps"), USES_GELU),
        kept=r"^(vision_tower|multi_modal_projector)\\.",
        types={r"^mm\\.input_projection": "F16"},
    )

The rows and transforms are those of language models; the names are those of the architecture "clip".
Source: `MmprojModel` in conversion/base.py of llama.cpp.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ggufkit.arch.metadata import FILE_TYPE, Hyperparameter, Row, flag, real, reals, string, uint
from ggufkit.arch.names import name_map
from ggufkit.arch.spec import Transform
from ggufkit.checkpoint.config import Config
from ggufkit.errors import ArchitectureError, CheckpointError, printable
from ggufkit.gguf.header import Value
from ggufkit.policy.outtype import F16_OR_F32
from ggufkit.tensors.tensor import Tensor
from ggufkit.tensors.views import take_columns, take_rows

__all__ = [
    "BLOCKS",
    "CLIP",
    "CONVOLUTIONS",
    "USES_GELU",
    "USES_SILU",
    "Projector",
    "audio_keys",
    "channels_first",
    "colours",
    "fixed",
    "image_epsilon",
    "image_scale",
    "named_activation",
    "of_processor",
    "of_vision",
    "projector",
    "two_frames",
    "vision_keys",
]

CLIP = "clip"

# What configs call the number of an encoder's layers.
BLOCKS = (
    "n_layers",
    "num_hidden_layers",
    "n_layer",
    "num_layers",
    "depth",
    "layers",
    "encoder_layers",
    "vt_num_hidden_layers",
)

# How GGUF's names of encoders' tensors begin.
_GGUF = ("v.", "a.", "mm.")

_SUFFIXES = (".weight", ".bias", ".input_max", ".input_min", ".output_max", ".output_min")


# What llama.cpp's convolutions of images take.
CONVOLUTIONS = {r"\.patch_(embd|merger)\.weight": F16_OR_F32}


@dataclass(frozen=True)
class Projector:
    """How the encoders of some classes become a GGUF.

    Attributes
    ----------
    models : Hugging Face classes.
    keys : metadata in file order.
    kept : searched in checkpoint names: which tensors belong to the encoders; those of the language model never do.
    transforms : steps on the stream of tensors, before names are mapped.
    names : GGUF's names of what the table of names lacks.
    types : pattern of GGUF names → the type that such tensors always have.
    blocks : the number of layers for which there may be names.
    when : which configs of the classes these are.
    """

    models: tuple[str, ...]
    keys: tuple[Row, ...]
    kept: str = ""
    transforms: tuple[Transform, ...] = ()
    names: Mapping[str, str] = field(default_factory=dict)
    types: Mapping[str, str] = field(default_factory=lambda: CONVOLUTIONS)
    blocks: Callable[[Config], int] = lambda config: config.vision.integer(*BLOCKS)
    when: Callable[[Config], bool] = lambda config: True

    def tensors(self, source: Iterable[Tensor], config: Config) -> Iterator[Tensor]:
        """The encoders' tensors, transformed, with their GGUF names and in the checkpoint's order."""
        kept = re.compile(self.kept)
        stream: Iterable[Tensor] = (
            tensor for tensor in source if "language_model." not in tensor.name and kept.search(tensor.name)
        )
        for transform in self.transforms:
            stream = transform(stream, config)
        rename = name_map(CLIP, self.blocks(config))
        for tensor in stream:
            name = self.names.get(tensor.name) or rename(tensor.name) or _with_limits(rename, tensor.name)
            if name is None and tensor.name.startswith(_GGUF):  # named by a transform
                name = tensor.name
            if name is None:
                raise CheckpointError(f"no encoder has a tensor {printable(tensor.name)} in GGUF")
            yield replace(tensor, name=name, shape=tensor.shape or (1,))


def _with_limits(rename: Callable[[str], str | None], name: str) -> str | None:
    """The name of a clamp's limit, beside the weight that it belongs to."""
    for suffix in _SUFFIXES:
        if name.endswith(suffix) and (known := rename(name.removesuffix(suffix))) is not None:
            return known + suffix
    return None


# ---- keys -------------------------------------------------------------------------------------------------------


def of_vision(*names: str, default: Any = None) -> Callable[[Config], Any]:
    """The first of `names` that `vision_config` has; needed where there is no default."""

    def find(config: Config) -> Any:
        return config.vision.require(*names) if default is None else config.vision.get(*names, default=default)

    return find


def _text_width(config: Config) -> int:
    return config.text_part.integer("hidden_size", "n_embd", "dim")


def of_processor(name: str) -> Callable[[Config], Any]:
    """What preprocessor_config.json must have."""

    def find(config: Config) -> Any:
        value = config.processor.get(name)
        if value is None:
            raise ArchitectureError(f"preprocessor_config.json has no {name!r}, which an mmproj needs")
        return value

    return find


def colours(name: str, default: Sequence[float] | None = None) -> Callable[[Config], list[float]]:
    """A number of each colour, from preprocessor_config.json; needed where there is no default."""

    def find(config: Config) -> list[float]:
        values = config.processor.get(name, default=None if default is None else list(default))
        if not isinstance(values, list) or len(values) > 16:
            raise ArchitectureError(
                f"preprocessor_config.json has no {name!r}, which an mmproj needs; it is not guessed"
            )
        return values

    return find


def vision_keys(**sources: Callable[[Config], Any]) -> tuple[Row, ...]:
    """What every encoder of images has; `sources` win: image_size, width, feed_forward, blocks, heads, …"""
    find: dict[str, Callable[[Config], Any]] = {
        "image_size": of_vision("image_size"),
        "patch_size": of_vision("patch_size"),
        "width": of_vision("hidden_size", "width", "vt_hidden_size"),
        "feed_forward": of_vision("intermediate_size", "vt_intermediate_size"),
        "blocks": of_vision(*BLOCKS),
        "heads": of_vision("num_attention_heads", "num_heads", "heads", "vt_num_attention_heads"),
        "image_mean": colours("image_mean"),
        "image_std": colours("image_std"),
        **sources,
    }
    return (
        FILE_TYPE,
        flag("/clip.has_vision_encoder", True),
        uint("/clip.vision.projection_dim", _text_width),
        uint("/clip.vision.image_size", find["image_size"]),
        uint("/clip.vision.patch_size", find["patch_size"]),
        uint("/clip.vision.embedding_length", find["width"]),
        uint("/clip.vision.feed_forward_length", find["feed_forward"]),
        uint("/clip.vision.block_count", find["blocks"]),
        uint("/clip.vision.attention.head_count", find["heads"]),
        reals("/clip.vision.image_mean", find["image_mean"]),
        reals("/clip.vision.image_std", find["image_std"]),
    )


def audio_keys(**sources: Callable[[Config], Any]) -> tuple[Row, ...]:
    """What every encoder of sound has; `sources` win: width, feed_forward, blocks, heads."""
    find: dict[str, Callable[[Config], Any]] = {
        "width": lambda config: config.audio.integer("hidden_size", "d_model"),
        "feed_forward": lambda config: config.audio.integer("intermediate_size", "encoder_ffn_dim"),
        "blocks": lambda config: config.audio.integer(*BLOCKS),
        "heads": lambda config: config.audio.integer("num_attention_heads", "encoder_attention_heads"),
        **sources,
    }
    return (
        FILE_TYPE,
        flag("/clip.has_audio_encoder", True),
        uint("/clip.audio.projection_dim", _text_width),
        uint("/clip.audio.embedding_length", find["width"]),
        uint("/clip.audio.feed_forward_length", find["feed_forward"]),
        uint("/clip.audio.block_count", find["blocks"]),
        uint("/clip.audio.attention.head_count", find["heads"]),
    )


def projector(name: str, key: str = "clip.projector_type") -> Hyperparameter:
    """What llama.cpp calls the way from the encoder to the language model."""
    return string(f"/{key}", name)


def image_epsilon(*names: str, default: float | None = None) -> Hyperparameter:
    """The epsilon of the norms of an encoder of images."""
    return real("/clip.vision.attention.layer_norm_epsilon", of_vision(*names, default=default))


def image_scale(size: Callable[[Config], Any], patch: Callable[[Config], Any]) -> Callable[[Config], int | None]:
    """How many patches become one in each direction, where it is not Gemma's four."""

    def find(config: Config) -> int | None:
        side = int(config.processor.count("image_seq_length", default=256) ** 0.5)
        scale: int = size(config) // patch(config) // side if side else 0
        return scale if scale not in (0, 4) else None

    return find


def fixed(row: Callable[..., Hyperparameter], key: str, value: Any) -> Hyperparameter:
    """A key that is always the same."""
    return row(f"/clip.{key}", lambda config: value)


USES_GELU = flag("/clip.use_gelu", True)
USES_SILU = flag("/clip.use_silu", True)


def named_activation(whose: str = "") -> Row:
    """GELU or SiLU, as `hidden_act` says; others are refused where it is said `whose` they would be."""

    def row(name: str, config: Config) -> Iterable[tuple[str, Value]]:
        kind = str(config.vision.get("hidden_act", default="")).lower()
        if kind == "gelu":
            return USES_GELU(name, config)
        if kind == "silu":
            return USES_SILU(name, config)
        if whose:
            raise ArchitectureError(f"config.json: {whose}'s 'hidden_act' is silu or gelu, not {printable(repr(kind))}")
        return ()

    return row


# ---- tensors ----------------------------------------------------------------------------------------------------


def two_frames(pattern: str) -> Transform:
    """A convolution over two frames, as two: (out, in, 2, h, w) → two of (out, in, h, w)."""
    matcher = re.compile(pattern)

    def transform(tensors: Iterable[Tensor], config: Config) -> Iterator[Tensor]:
        import numpy as np

        for tensor in tensors:
            if not matcher.search(tensor.name):
                yield tensor
                continue
            if len(tensor.shape) != 5 or tensor.shape[2] != 2:
                raise CheckpointError(
                    f"{printable(tensor.name)} of shape {list(tensor.shape)} is no convolution over two frames"
                )
            out, channels, _, height, width = tensor.shape
            rows = np.arange(tensor.rows).reshape(out, channels, 2, height)
            for frame, name in enumerate(("v.patch_embd.weight", "v.patch_embd.weight.1")):
                order = rows[:, :, frame].reshape(-1)
                yield take_rows(tensor, order, (out, channels, height, width)).renamed(name)

    return transform


def channels_first(pattern: str) -> Transform:
    """Patches stored as (out, height · width · 3), as convolutions (out, 3, height, width)."""
    matcher = re.compile(pattern)

    def transform(tensors: Iterable[Tensor], config: Config) -> Iterator[Tensor]:
        import numpy as np

        from ggufkit.tensors.views import reshaped

        for tensor in tensors:
            if not matcher.search(tensor.name):
                yield tensor
                continue
            side = round((tensor.cols / 3) ** 0.5) if len(tensor.shape) == 2 else 0
            if not side or side * side * 3 != tensor.cols:
                raise CheckpointError(f"{printable(tensor.name)} of shape {list(tensor.shape)} holds no square patches")
            order = np.arange(tensor.cols).reshape(side, side, 3).transpose(2, 0, 1).reshape(-1)
            yield reshaped(take_columns(tensor, order), (tensor.rows, 3, side, side))

    return transform
