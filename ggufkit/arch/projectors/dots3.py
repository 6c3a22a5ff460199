"""What sees and hears in dots 3 note."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

from ggufkit.arch.metadata import integers, real, uint
from ggufkit.arch.projector import (
    CONVOLUTIONS,
    USES_SILU,
    Projector,
    audio_keys,
    image_epsilon,
    of_vision,
    projector,
    vision_keys,
)
from ggufkit.arch.transforms import rename, split_rows, stack_experts
from ggufkit.checkpoint.config import Config
from ggufkit.errors import ArchitectureError, printable
from ggufkit.tensors.tensor import Tensor


def _required(config: Config) -> Config:
    """The config, if its encoders are of the one kind that is known."""
    vision, audio = config.vision, config.audio
    rope = audio.part("rope_parameters")
    for name, found, expected in (
        ("adapter_type", vision.get("adapter_type"), "patch_merger"),
        ("pre_pixel_shuffle", bool(vision.get("pre_pixel_shuffle")), True),
        ("router_scoring_func", vision.get("router_scoring_func", default="sigmoid"), "sigmoid"),
        ("router_scale", vision.get("router_scale", default=1.0), 1.0),
        ("temporal_patch_size", vision.get("temporal_patch_size", default=1), 1),
        ("use_bias", bool(vision.get("use_bias")), False),
        ("use_qk_norm", bool(vision.get("use_qk_norm")), True),
        ("use_conv2d_stem", bool(audio.get("use_conv2d_stem")), True),
        ("use_rope", bool(audio.get("use_rope")), True),
        ("use_rms_norm", bool(audio.get("use_rms_norm")), True),
        ("use_causal", bool(audio.get("use_causal")), False),
        ("activation_function", audio.part("whisper_config").get("activation_function"), "swiglu"),
        ("merge_factor", audio.get("merge_factor", default=1), 1),
        ("chunk_seconds", audio.get("chunk_seconds"), 60),
        ("partial_rotary_factor", rope.get("partial_rotary_factor"), 0.5),
        ("rope_theta", rope.get("rope_theta"), 10000.0),
    ):
        if found != expected:
            raise ArchitectureError(f"config.json: {name!r} of dots 3 note must be {expected}, not {printable(found)}")
    return config


def _of_whisper(*names: str) -> Callable[[Config], int]:
    return lambda config: config.audio.part("whisper_config").integer(*names)


def _of_pictures(name: str) -> Callable[[Config], Any]:
    """preprocessor_config.json has what is of images in a part of its own."""

    def find(config: Config) -> Any:
        value = config.processor.part("vision_config").get(name, default=config.processor.get(name))
        if value is None:
            raise ArchitectureError(f"preprocessor_config.json has no {name!r}, which an mmproj needs")
        return value

    return find


def _experts(config: Config) -> list[int]:
    """How many experts each block has, 0 of one without."""
    counts = config.vision.list("pyramid_num_routed")
    if not all(type(count) is int and -1 <= count < 1 << 12 for count in counts):
        raise ArchitectureError("config.json: 'pyramid_num_routed' must be numbers of experts")
    return [max(0, count) for count in counts]


def _same(count: int, config: Config) -> int:
    return count


def _stacked(tensors: Iterable[Tensor], config: Config) -> Iterator[Tensor]:
    """The experts of a block, of which each has its own number."""
    at = r"vision_encoder\.blocks\."
    for layer, count in enumerate(_experts(config)):
        if count:
            tensors = stack_experts(
                rf"{at}(?P<layer>{layer})\.mlp\.experts\.(?P<expert>\d+)\.(?P<part>fc[123])\.weight",
                ("fc1", "fc2", "fc3"),
                "vision_encoder.blocks.{layer}.mlp.experts.{part}.weight",
                partial(_same, count),
            )(tensors, config)
    yield from tensors


PROJECTORS = (
    Projector(
        models=("Dots3NoteForCausalLM", "Dots3NoteForConditionalGeneration"),
        keys=(
            *vision_keys(
                image_size=lambda config: 0,
                width=lambda config: _required(config).vision.integer("embed_dim"),
                image_mean=_of_pictures("image_mean"),
                image_std=_of_pictures("image_std"),
            ),
            *audio_keys(
                width=_of_whisper("d_model"),
                feed_forward=_of_whisper("encoder_ffn_dim"),
                blocks=_of_whisper("encoder_layers"),
                heads=_of_whisper("encoder_attention_heads"),
            )[1:],
            projector("dots3note_v", "clip.vision.projector_type"),
            USES_SILU,
            image_epsilon("rms_norm_eps"),
            uint("/clip.vision.spatial_merge_size", of_vision("spatial_merge_size")),
            uint("/clip.vision.image_min_pixels", _of_pictures("min_pixels")),
            uint("/clip.vision.image_max_pixels", _of_pictures("max_pixels")),
            integers("/clip.vision.expert_count_per_layer", _experts),
            uint("/clip.vision.expert_used_count", lambda config: int(config.vision.number("capacity_factor"))),
            projector("dots3note_a", "clip.audio.projector_type"),
            uint("/clip.audio.num_mel_bins", _of_whisper("num_mel_bins")),
            real("/clip.audio.attention.layer_norm_epsilon", lambda config: 1e-6),
        ),
        kept=r"^(vision_encoder|audio_encoder)\.",
        transforms=(
            rename((r"\.(gate_weight|router_bias)$", r".\1.weight")),
            rename((r"(\.speech_encoder\.layers\.\d+\.)fc1\.", r"\1gate_up.")),
            split_rows(r"(?<=\.)gate_up(?=\.)", "fc1_gate", "fc1_up"),
            _stacked,
        ),
        types={
            r"\.(ffn_gate_inp|exp_probs_b)\.": "F32",
            r"^a\.(conv2d|conv_out)": "F32",
            **CONVOLUTIONS,
        },
        blocks=lambda config: 128,
    ),
)
