"""Vision towers of models that read documents: dots.ocr, PaddleOCR-VL."""

from __future__ import annotations

import math
from collections.abc import Callable

from ggufkit.arch.fits import Patches
from ggufkit.arch.metadata import uint
from ggufkit.arch.projector import (
    USES_GELU,
    USES_SILU,
    Projector,
    image_epsilon,
    of_vision,
    projector,
    vision_keys,
)
from ggufkit.arch.tower import Activate, Join, Matrix, Normalize, Tower
from ggufkit.arch.transforms import drop, rename
from ggufkit.checkpoint.config import Config
from ggufkit.errors import ArchitectureError


def _pixels(name: str) -> Callable[[Config], int]:
    """How many pixels a picture has at least or at most."""

    def find(config: Config) -> int:
        value = config.processor.get(name)
        if type(value) is not int or not 0 < value < 1 << 31:
            raise ArchitectureError(f"preprocessor_config.json: {name!r} must be a number of pixels")
        return value

    return find


DOTS_OCR = Projector(
    models=("DotsOCRForCausalLM",),
    keys=(
        *vision_keys(image_size=lambda config: 0),
        projector("dots_ocr"),
        uint("/clip.vision.image_min_pixels", _pixels("min_pixels")),
        uint("/clip.vision.image_max_pixels", _pixels("max_pixels")),
        image_epsilon("rms_norm_eps"),
        uint("/clip.vision.projector.scale_factor", of_vision("spatial_merge_size")),
        USES_SILU,
    ),
    kept=r"^vision_tower\.",
    transforms=(
        rename(
            (r"^vision_tower\.blocks\.(?=.*\.mlp\.)", "visual.blocks."),
            (r"\.fc1(?=\.)", ".gate_proj"),
            (r"\.fc2(?=\.)", ".down_proj"),
            (r"\.fc3(?=\.)", ".up_proj"),
        ),
    ),
)

PADDLE_OCR = Projector(
    models=("PaddleOCRVisionModel",),
    keys=(
        *vision_keys(image_size=lambda config: math.isqrt(_pixels("max_pixels")(config))),
        projector("paddleocr"),
        uint("/clip.vision.image_max_pixels", _pixels("max_pixels")),
        uint("/clip.vision.image_min_pixels", _pixels("min_pixels")),
        USES_GELU,
        image_epsilon("rms_norm_eps", default=1e-6),
    ),
    kept=r"vision_model|mlp_AR",
    transforms=(
        drop(r"packing_position_embedding|vision_model\.head"),
        rename((r"visual\.", "model.")),
    ),
)

PROJECTORS = (DOTS_OCR, PADDLE_OCR)

TOWERS = {
    "dots_ocr": Tower(
        fit=Patches("bicubic", tokens=None),
        norm="rms",
        rope="halves",
        project=(
            Normalize("mm.post_norm", "rms"),
            Normalize("mm.input_norm", "layer", 1e-6),
            Join("rows"),
            Matrix("mm.0"),
            Activate("gelu_erf"),
            Matrix("mm.2"),
        ),
        begin="<|img|>",
        end="<|endofimg|>",
    ),
    "paddleocr": Tower(
        fit=Patches("bicubic", tokens=None),
        positions="smoothed",
        rope="halves",
        merge=2,
        merge_key="",
        project=(
            Normalize("mm.input_norm", "layer", 1e-5),
            Join("rows"),
            Matrix("mm.1"),
            Activate("gelu"),
            Matrix("mm.2"),
        ),
        begin="<|IMAGE_START|>",
        end="<|IMAGE_END|>",
    ),
}
