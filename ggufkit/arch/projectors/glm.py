"""The vision towers of GLM-4.1V, GLM-4.5V, GLM-OCR and GLM-5.3."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ggufkit.arch.fits import Canvas
from ggufkit.arch.metadata import Row, real, uint
from ggufkit.arch.projector import Projector, named_activation, of_vision, projector, two_frames, vision_keys
from ggufkit.arch.projectors.qwen import TOWERS as _QWEN
from ggufkit.arch.projectors.qwen import qwen3_size
from ggufkit.arch.tower import Activate, Gated, Join, Matrix, Normalize
from ggufkit.arch.transforms import rename
from ggufkit.checkpoint.config import Config


def _glm(models: tuple[str, ...], kind: str, *more: Row) -> Projector:
    return Projector(
        models=models,
        keys=(
            *vision_keys(image_size=qwen3_size),
            projector(kind),
            named_activation(),
            real("/clip.vision.attention.layer_norm_epsilon", of_vision("rms_norm_eps", default=1e-5)),
            *more,
        ),
        kept=r"^(model\.)?visual\.",
        transforms=(
            rename((r"^model\.visual\.", "visual.")),
            two_frames(r"^visual\.patch_embed\.proj\.weight$"),
            rename((r"^visual\.patch_embed\.proj\.bias$", "v.patch_embd.bias")),
        ),
    )


def _pixels(name: str) -> Callable[[Config], int | None]:
    """Of so many tokens."""

    def find(config: Config) -> int | None:
        processor = config.processor
        if name not in processor:
            return None
        side = processor.count("patch_size", default=14) * processor.count("merge_size", default=2)
        return processor.count(name) * side**2

    return find


PROJECTORS = (
    _glm(
        ("Glm4vForConditionalGeneration", "Glm4vMoeForConditionalGeneration", "GlmOcrForConditionalGeneration"),
        "glm4v",
    ),
    _glm(
        ("Glm5NextForConditionalGeneration",),
        "glm5v",
        uint("/clip.vision.spatial_merge_size", of_vision("spatial_merge_size", default=2)),
        real("/clip.vision.swiglu_clamp", lambda config: config.vision.get("swiglu_limit")),
        uint("/clip.vision.image_min_pixels", _pixels("min_image_tokens")),
        uint("/clip.vision.image_max_pixels", _pixels("max_image_tokens")),
    ),
)

TOWERS = {
    "glm4v": replace(
        _QWEN["qwen2vl_merger"],
        norm="rms",
        positions="cubic",
        project=(
            Join("channels"),
            Matrix("mm.patch_merger"),
            Matrix("mm.model.fc"),
            Normalize("mm.post_norm", "layer", 1e-5),
            Activate("gelu_erf"),
            Gated("mm.gate", "mm.up", "mm.down"),
        ),
        begin="<|begin_of_image|>",
        end="<|end_of_image|>",
    ),
}
TOWERS["glm5v"] = replace(TOWERS["glm4v"], fit=Canvas("bicubic"))
