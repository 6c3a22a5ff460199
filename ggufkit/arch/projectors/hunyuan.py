"""The vision tower of HunyuanVL and HunyuanOCR."""

from __future__ import annotations

from collections.abc import Callable

from ggufkit.arch.fits import Patches
from ggufkit.arch.metadata import uint
from ggufkit.arch.projector import (
    CONVOLUTIONS,
    USES_GELU,
    Projector,
    image_epsilon,
    of_processor,
    of_vision,
    projector,
    vision_keys,
)
from ggufkit.arch.tower import Activate, Around, Join, Matrix, Normalize, RowEnds, Tower
from ggufkit.arch.transforms import first_rows
from ggufkit.checkpoint.config import Config
from ggufkit.policy.outtype import F16_OR_F32


def _size(config: Config) -> int:
    size: int = config.vision.get("image_size", "max_image_size", default=2048)
    return size


def _pixels(name: str) -> Callable[[Config], int]:
    return lambda config: int(of_processor(name)(config))


PROJECTORS = (
    Projector(
        models=("HunYuanVLForConditionalGeneration",),
        keys=(
            *vision_keys(image_size=_size),
            projector("hunyuanvl"),
            USES_GELU,
            image_epsilon("rms_norm_eps", default=1e-5),
            uint("/clip.vision.spatial_merge_size", of_vision("spatial_merge_size", default=2)),
            uint("/clip.vision.image_min_pixels", _pixels("min_pixels")),
            uint("/clip.vision.image_max_pixels", _pixels("max_pixels")),
        ),
        kept=r"^vit\.",
        transforms=(first_rows("position_embedding", lambda config: range(1, 1 << 31)),),  # the first is of no patch
        types={r"\bmm\.[02]\..*\.?weight$": F16_OR_F32, **CONVOLUTIONS},
    ),
)

TOWERS = {
    "hunyuanvl": Tower(
        fit=Patches("lanczos", tokens=(256, 16384), stretched=True),
        positions="nudged",
        merge=2,
        merge_key="spatial_merge_size",
        project=(
            Normalize("mm.pre_norm", "rms"),
            Join("channels"),
            Matrix("mm.0"),
            Activate("gelu"),
            Matrix("mm.2"),
            RowEnds("v.image_newline", last=True),
            Matrix("mm.model.fc"),
            Around("mm.image_begin", "mm.image_end"),
            Normalize("mm.post_norm", "rms"),
        ),
        framed=True,
        unread=("v.view_seperator",),
        begin="<｜hy_place▁holder▁no▁100｜>",
        end="<｜hy_place▁holder▁no▁101｜>",
    ),
}
