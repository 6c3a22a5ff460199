"""MoonViT, the vision tower of Kimi-VL."""

from __future__ import annotations

from ggufkit.arch.metadata import uint
from ggufkit.arch.projector import USES_GELU, Projector, image_epsilon, projector, vision_keys
from ggufkit.arch.tower import Activate, Join, Matrix, Normalize, Patches, Tower
from ggufkit.arch.transforms import reshape, split_rows

PROJECTORS = (
    Projector(
        models=("KimiVLForConditionalGeneration",),
        keys=(
            *vision_keys(image_size=lambda config: 64 * 14),  # unused
            projector("kimivl"),
            USES_GELU,
            uint("/clip.vision.projector.scale_factor", lambda config: 2),
            image_epsilon("layer_norm_eps", default=1e-5),
        ),
        kept=r"vision_tower|multi_modal_projector",
        transforms=(
            reshape(r"pos_emb\.weight$", lambda tensor, config: (tensor.rows, tensor.cols)),
            split_rows(r"wqkv(?=\.)", "wq", "wk", "wv"),
        ),
    ),
)

TOWERS = {
    "kimivl": Tower(
        fit=Patches("bicubic", tokens=(8, 1024)),
        positions="smoothed",
        rope="beside",
        project=(
            Normalize("mm.input_norm", "layer", 1e-5),
            Join("rows"),
            Matrix("mm.1"),
            Activate("gelu"),
            Matrix("mm.2"),
        ),
        begin="<|media_start|>",
        end="<|media_end|>",
    ),
}
