"""The vision tower of Ling 3 VL: Qwen3-VL's, whose merger is a norm, and the network behind it the model's own."""

from __future__ import annotations

from dataclasses import replace

from ggufkit.arch.metadata import real, uint
from ggufkit.arch.projector import USES_GELU, Projector, projector, two_frames, vision_keys
from ggufkit.arch.projectors.qwen import TOWERS as _QWEN
from ggufkit.arch.projectors.qwen import qwen3_size
from ggufkit.arch.tower import Activate, Join, Matrix, Normalize
from ggufkit.arch.transforms import rename
from ggufkit.checkpoint.config import Config
from ggufkit.errors import ArchitectureError


def _merge(config: Config) -> int | None:
    if config.vision.get("disable_merger_proj") is not True:
        raise ArchitectureError("config.json: Ling 3 VL's 'disable_merger_proj' must be true")
    config.vision.integer("out_hidden_size")
    merge: int | None = config.vision.get("spatial_merge_size")
    return merge


PROJECTORS = (
    Projector(
        models=("BailingMoeV3VLForConditionalGeneration",),
        keys=(
            *vision_keys(image_size=qwen3_size),
            projector("ling3vl"),
            USES_GELU,
            uint("/clip.vision.spatial_merge_size", _merge),
            real(
                "/clip.vision.attention.layer_norm_epsilon",
                lambda config: config.part("text_config").get("rms_norm_eps", default=1e-6),
            ),
        ),
        kept=r"^((model\.)?visual\.|linear_proj)",
        transforms=(
            rename(
                (r"^linear_proj\.", "mm."),
                (r"^model\.visual\.", "visual."),
                (r"^visual\.merger\.norm\.", "mm.input_norm."),
                (r"^visual\.patch_embed\.proj\.bias$", "v.patch_embd.bias"),
            ),
            two_frames(r"^visual\.patch_embed\.proj\.weight$"),
        ),
    ),
)

TOWERS = {
    "ling3vl": replace(
        _QWEN["qwen3vl_merger"],
        deep=False,
        project=(
            Normalize("mm.input_norm", "layer"),
            Join("rows"),
            Matrix("mm.0"),
            Activate("gelu"),
            Matrix("mm.2"),
        ),
    ),
}
