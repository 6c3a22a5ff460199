"""The vision towers of Qwen2-VL, 2.5-VL, Qwen3-VL, Qwen 3.5."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from ggufkit.arch.fits import Patches
from ggufkit.arch.metadata import Row, flags, real, string, uint
from ggufkit.arch.projector import (
    BLOCKS,
    CONVOLUTIONS,
    USES_GELU,
    USES_SILU,
    Projector,
    audio_keys,
    of_vision,
    projector,
    two_frames,
    vision_keys,
)
from ggufkit.arch.projectors.whisper import EARS as _WHISPER_EARS
from ggufkit.arch.projectors.whisper import HEARD, with_waves
from ggufkit.arch.spec import Transform
from ggufkit.arch.tower import Activate, Chunked, Join, Matrix, Tower, Windows
from ggufkit.arch.transforms import drop, rename, reshape, split_rows
from ggufkit.checkpoint.config import Config
from ggufkit.errors import ArchitectureError, CheckpointError, printable
from ggufkit.tensors.tensor import Tensor

# ---- Qwen2-VL, Qwen2.5-VL ---------------------------------------------------------------------------------------

_QWEN2_KINDS = {
    "qwen2_vl": "qwen2vl_merger",
    "sarashina2_vision": "qwen2vl_merger",
    "qwen2_5_vl": "qwen2.5vl_merger",
    "qwen2_5_omni": "qwen2.5o",
}
_WITHOUT_WINDOWS = ("qwen2_vl", "sarashina2_vision")


def _kind(config: Config) -> str:
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in _QWEN2_KINDS:
        raise ArchitectureError(f"config.json: {printable(repr(kind))} is no 'model_type' of a Qwen2-VL")
    return kind


def window_period(config: Config) -> int:
    """Of so many layers the last sees the whole image."""
    whole = config.vision.list("fullatt_block_indexes")
    period = whole[0] + 1 if whole and type(whole[0]) is int else 0
    if whole != [period * (i + 1) - 1 for i in range(len(whole))] or not period:
        raise ArchitectureError("config.json: 'fullatt_block_indexes' must be every so many layers")
    return period


def _width(config: Config) -> int:
    return config.vision.integer("embed_dim", "hidden_size")


def _feed_forward(config: Config) -> int:
    """Qwen2-VL calls the language model's width hidden_size, which the reference takes here."""
    return config.vision.integer("hidden_size" if "embed_dim" in config.vision else "intermediate_size")


QWEN2_SIZES = vision_keys(image_size=of_vision("image_size", default=560), width=_width, feed_forward=_feed_forward)
_QWEN2_OPTIONS: tuple[Row, ...] = (
    string("/clip.projector_type", lambda config: _QWEN2_KINDS[_kind(config)]),
    lambda name, config: () if _kind(config) in _WITHOUT_WINDOWS else USES_SILU(name, config),
    uint(
        "/clip.vision.n_wa_pattern",
        lambda config: None if _kind(config) in _WITHOUT_WINDOWS else window_period(config),
    ),
    real("/clip.vision.attention.layer_norm_epsilon", lambda config: config.get("rms_norm_eps", default=1e-6)),
)
_QWEN2_TRANSFORMS = split_rows(r"(?<=\.)qkv(?=\.)", "q", "k", "v"), two_frames(r"patch_embed\.proj\.weight")
QWEN2_TYPES = {r"\.position_embd\.": "F32", **CONVOLUTIONS}

QWEN2_VL = Projector(
    models=(
        "Qwen2VLForConditionalGeneration",
        "Qwen2VLModel",
        "Qwen2_5_VLForConditionalGeneration",
        "Sarashina2VisionForCausalLM",
    ),
    keys=(*QWEN2_SIZES, *_QWEN2_OPTIONS),
    kept=r"^visual\.",
    transforms=_QWEN2_TRANSFORMS,
    types=QWEN2_TYPES,
)

QWEN25_OMNI = Projector(
    models=("Qwen2_5OmniModel",),
    keys=(*QWEN2_SIZES, *audio_keys()[1:], *HEARD, *_QWEN2_OPTIONS),
    kept=r"^(thinker\.)?(visual|audio_tower)\.(?!audio_bos_eos_token)",
    transforms=(
        rename((r"^thinker\.", "")),
        *_QWEN2_TRANSFORMS,
        reshape(r"^audio_tower\.conv[12]\.bias", lambda tensor, config: (tensor.size, 1)),
        with_waves,
    ),
    types={**QWEN2_TYPES, r"^a\.conv1d\.\d+\.weight": "F16"},
    blocks=lambda config: 128,
)

# ---- Qwen3-VL, Qwen 3.5 -----------------------------------------------------------------------------------------


def qwen3_size(config: Config) -> int:
    """Of a picture that has as many patches as there are positions."""
    positions = config.vision.get("num_position_embeddings", default=2304)
    result: int = config.vision.get(
        "image_size", default=int(positions**0.5 * config.vision.get("patch_size", default=16))
    )
    return result


def _deepstack(config: Config) -> list[bool]:
    """Layers whose outputs also go to the language model's first layers."""
    layers = config.vision.integer("depth", "num_hidden_layers")
    chosen = config.vision.get("deepstack_visual_indexes", default=[])
    if not isinstance(chosen, list) or any(type(i) is not int or not 0 <= i < layers for i in chosen):
        raise ArchitectureError(f"config.json: 'deepstack_visual_indexes' must be layers below {layers}")
    return [layer in chosen for layer in range(layers)]


_MERGER = {"linear_fc1": "mm.0", "linear_fc2": "mm.2", "norm": "v.post_ln"}
_DEEPSTACK = {"norm": "norm", "linear_fc1": "fc1", "linear_fc2": "fc2"}


def _mergers(tensors: Iterable[Tensor], config: Config) -> Iterator[Tensor]:
    """What brings patches to the language model's width: at the end, and at the chosen layers."""
    chosen = [layer for layer, is_chosen in enumerate(_deepstack(config)) if is_chosen]
    for tensor in tensors:
        parts = tensor.name.split(".")
        if tensor.name.startswith("visual.deepstack_merger_list.") and len(parts) == 5:
            number = int(parts[2]) if parts[2].isdigit() else len(chosen)
            if number >= len(chosen) or parts[3] not in _DEEPSTACK:
                raise CheckpointError(f"{printable(tensor.name)} belongs to no layer of 'deepstack_visual_indexes'")
            yield tensor.renamed(f"v.deepstack.{chosen[number]}.{_DEEPSTACK[parts[3]]}.{parts[4]}")
        elif tensor.name.startswith("visual.merger.") and len(parts) == 4 and parts[2] in _MERGER:
            yield tensor.renamed(f"{_MERGER[parts[2]]}.{parts[3]}")
        else:
            yield tensor


_QWEN3_OPTIONS: tuple[Row, ...] = (
    USES_GELU,
    uint("/clip.vision.spatial_merge_size", lambda config: config.vision.get("spatial_merge_size")),
    real(
        "/clip.vision.attention.layer_norm_epsilon",
        lambda config: config.thinker.part("text_config").get("rms_norm_eps", default=1e-6),
    ),
    flags("/clip.vision.is_deepstack_layers", _deepstack),
)
_QWEN3_TRANSFORMS = (
    rename((r"^model\.visual\.", "visual.")),
    _mergers,
    two_frames(r"^visual\.patch_embed\.proj\.weight$"),
    rename((r"^visual\.patch_embed\.proj\.bias$", "v.patch_embd.bias")),
)

QWEN3_VL = Projector(
    models=(
        "Qwen3VLForConditionalGeneration",
        "Qwen3VLMoeForConditionalGeneration",
        "Qwen3_5ForConditionalGeneration",
        "Qwen3_5MoeForConditionalGeneration",
        "Qwen4ExpForConditionalGeneration",
        "OpenJevModel",
        "ClefModel",
    ),
    keys=(*vision_keys(image_size=qwen3_size), projector("qwen3vl_merger"), *_QWEN3_OPTIONS),
    kept=r"^(model\.)?visual\.",
    transforms=(drop(r"^(lm_head|mtp)\."), *_QWEN3_TRANSFORMS),
)


def _edge(name: str) -> Callable[[Config], int]:
    """How many pixels a picture has at least or at most, which that processor calls an edge."""

    def find(config: Config) -> int:
        return config.processor.part("size").integer(name)

    return find


PPLX_DECIDER = replace(
    QWEN3_VL,
    models=("PplxDeciderModel", "Qwen3_5ForConditionalGeneration"),  # it is one, with files beside it
    when=lambda config: (
        config.get("architectures") == ["PplxDeciderModel"] or config.text("decision_config.json") is not None
    ),
    keys=(
        *QWEN3_VL.keys,
        uint("/clip.vision.image_min_pixels", _edge("shortest_edge")),
        uint("/clip.vision.image_max_pixels", _edge("longest_edge")),
    ),
)

# ---- Qwen3-ASR, Qwen3-Omni --------------------------------------------------------------------------------------

_QWEN3_HEARS = projector("qwen3a", "clip.audio.projector_type")
_QWEN3_SOUND: tuple[Transform, ...] = (
    rename((r"^thinker\.", "")),
    reshape(r"^audio_tower\.conv2d\d\.bias", lambda tensor, config: (tensor.size, 1, 1)),
    with_waves,
)
_QWEN3_TYPES = {r"^a\.(conv2d\.\d+|conv_out)\.weight": "F16", **CONVOLUTIONS}

QWEN3_ASR = Projector(
    models=("Qwen3ASRForConditionalGeneration",),
    keys=(*audio_keys(), *HEARD, _QWEN3_HEARS),
    kept=r"^(thinker\.)?audio_tower\.",
    transforms=_QWEN3_SOUND,
    types=_QWEN3_TYPES,
    blocks=lambda config: config.audio.integer(*BLOCKS),
)

QWEN3_OMNI = Projector(
    models=("Qwen3OmniMoeForConditionalGeneration",),
    keys=(
        *vision_keys(image_size=qwen3_size),
        *audio_keys()[1:],
        *HEARD,
        *_QWEN3_OPTIONS,
        projector("qwen3vl_merger", "clip.vision.projector_type"),
        _QWEN3_HEARS,
    ),
    kept=r"^(thinker\.|model\.)?(visual|audio_tower)\.",
    transforms=(
        *_QWEN3_SOUND,
        rename(
            (r"^visual\.merger_list\.", "visual.deepstack_merger_list."),
            (r"^(visual\.(?:deepstack_merger_list|merger)\..*)\bln_q\.", r"\1norm."),
            (r"^(visual\.(?:deepstack_merger_list|merger)\..*)\bmlp\.0\.", r"\1linear_fc1."),
            (r"^(visual\.(?:deepstack_merger_list|merger)\..*)\bmlp\.2\.", r"\1linear_fc2."),
        ),
        *_QWEN3_TRANSFORMS,
    ),
    types=_QWEN3_TYPES,
    blocks=lambda config: 128,
)

PROJECTORS = (QWEN2_VL, QWEN25_OMNI, PPLX_DECIDER, QWEN3_VL, QWEN3_ASR, QWEN3_OMNI)

# ---- what they compute ------------------------------------------------------------------------------------------

_VL = Tower(
    fit=Patches("bicubic", tokens=(8, 4096)),
    project=(Join("rows"), Matrix("mm.0"), Activate("gelu"), Matrix("mm.2")),
    rope="halves",
    merge=2,
    merge_key="spatial_merge_size",
    begin="<|vision_start|>",
    end="<|vision_end|>",
)

_QWEN25 = replace(_VL, norm="rms", windows=Windows(112, "n_wa_pattern"))

TOWERS = {
    "qwen2vl_merger": _VL,
    "qwen2.5vl_merger": _QWEN25,
    "qwen2.5o": _QWEN25,
    "qwen3vl_merger": replace(_VL, positions="corners", deep=True),
}

EARS = {
    "qwen2.5o": _WHISPER_EARS["qwen2a"],
    "qwen3a": Chunked(
        project=(Matrix("mm.a.mlp.1"), Activate("gelu_erf"), Matrix("mm.a.mlp.2")),
        chunk=100,
        chunks=8,
        begin="<|audio_start|>",
        end="<|audio_end|>",
    ),
}
