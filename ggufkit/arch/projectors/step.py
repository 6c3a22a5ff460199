"""The vision tower of Step3-VL and Step-3.7."""

from __future__ import annotations

from ggufkit.arch.fits import Crops
from ggufkit.arch.metadata import uint
from ggufkit.arch.projector import CONVOLUTIONS, Projector, colours, image_epsilon, projector, vision_keys
from ggufkit.arch.tower import Halve, Matrix, Tower
from ggufkit.arch.transforms import rename
from ggufkit.checkpoint.config import Config
from ggufkit.errors import ArchitectureError, printable
from ggufkit.policy.outtype import F16_OR_F32

_LONGEST = 3024  # of processing_step3.py


def _stride(config: Config) -> int:
    vision = config.vision
    sizes = {
        "understand_projector_stride": (config.get("understand_projector_stride"), 2),
        "image_size": (vision.get("image_size"), 728),
        "hidden_size": (vision.get("hidden_size", "width"), 1536),
        "num_hidden_layers": (vision.get("num_hidden_layers", "layers"), 47),
    }
    for name, (found, expected) in sizes.items():
        if found != expected:
            raise ArchitectureError(
                f"config.json: {name!r} of a Step3-VL must be {expected}, not {printable(repr(found))}"
            )
    return 2


def _inner(config: Config) -> int:
    if config.vision.get("intermediate_size"):
        return config.vision.integer("intermediate_size")
    width = config.vision.integer("hidden_size", "width")
    return round(width * float(config.vision.number("mlp_ratio", default=8960 / 1536)))


PROJECTORS = (
    Projector(
        models=("StepVLForConditionalGeneration", "Step3p7ForConditionalGeneration"),
        keys=(
            *vision_keys(
                feed_forward=_inner,
                image_mean=colours("image_mean", (0.48145466, 0.4578275, 0.40821073)),
                image_std=colours("image_std", (0.26862954, 0.26130258, 0.27577711)),
            ),
            projector("step3vl"),
            image_epsilon("layer_norm_eps", default=1e-5),
            uint("/clip.vision.projector.scale_factor", lambda config: _stride(config) ** 2),
            uint("/clip.vision.preproc_image_size", lambda config: _LONGEST),
        ),
        kept=r"^(vision_model\.|vit_large_projector\.weight$)",
        transforms=(
            rename(
                (r"^vision_model\.vit_downsampler1\.", "mm.0."),
                (r"^vision_model\.vit_downsampler2\.", "mm.1."),
                (r"^vit_large_projector\.", "mm.model.fc."),
                (r"positional_embedding$", "positional_embedding.weight"),
                (r"(\.ls_\d+)\.gamma$", r"\1.weight"),
                (r"attn\.in_proj_(?=weight|bias)", "attn.in_proj."),
            ),
        ),
        types={r"\.position_embd\.": "F32", r"\bmm\.[01]\..*weight$": F16_OR_F32, **CONVOLUTIONS},
    ),
)

TOWERS = {
    "step3vl": Tower(
        fit=Crops(
            tile=504,
            part=("<patch_start>", "<patch_end>"),
            overview=("<im_start>", "<im_end>"),
            row_end="<patch_newline>",
        ),
        positions="smoothed",
        rope="beside",
        raster=True,
        merge=4,
        project=(Halve("mm.0", before=4), Halve("mm.1", before=2), Matrix("mm.model.fc")),
    ),
}
