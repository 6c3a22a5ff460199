"""The vision tower of EXAONE 4.5: Qwen2.5-VL's, with fewer heads of keys and values."""

from __future__ import annotations

from dataclasses import replace

from ggufkit.arch.metadata import real, uint
from ggufkit.arch.projector import USES_SILU, Projector, of_processor, projector, two_frames
from ggufkit.arch.projectors.qwen import QWEN2_SIZES, QWEN2_TYPES, window_period
from ggufkit.arch.projectors.qwen import TOWERS as _QWEN
from ggufkit.arch.transforms import rename
from ggufkit.checkpoint.config import Config


def _epsilon(config: Config) -> float:
    value: float = config.vision.get("rms_norm_eps", default=config.get("rms_norm_eps", default=1e-6))
    return value


def _period(config: Config) -> int | None:
    return window_period(config) if config.vision.get("fullatt_block_indexes") else None


PROJECTORS = (
    Projector(
        models=("Exaone4_5_ForConditionalGeneration",),
        keys=(
            *QWEN2_SIZES,
            projector("exaone4_5"),
            USES_SILU,
            uint("/clip.vision.image_min_pixels", of_processor("min_pixels")),
            uint("/clip.vision.image_max_pixels", of_processor("max_pixels")),
            uint("/clip.vision.attention.head_count_kv", lambda config: config.vision.get("num_key_value_heads")),
            real("/clip.vision.attention.layer_norm_epsilon", _epsilon),
            uint("/clip.vision.window_size", lambda config: config.vision.get("window_size")),
            uint("/clip.vision.n_wa_pattern", _period),
        ),
        kept=r"^(model\.)?visual\.",
        transforms=(rename((r"^model\.visual\.", "visual.")), two_frames(r"patch_embed\.proj\.weight")),
        types=QWEN2_TYPES,
    ),
)

TOWERS = {
    "exaone4_5": replace(_QWEN["qwen2.5vl_merger"], begin="<vision>", end="</vision>", merge_key="spatial_merge_size"),
}
