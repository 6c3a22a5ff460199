"""InternVL's vision tower, of versions 1.5 to 3.5."""

from __future__ import annotations

from collections.abc import Callable

from ggufkit.arch.fits import Shapes
from ggufkit.arch.metadata import uint
from ggufkit.arch.projector import CONVOLUTIONS, Projector, image_epsilon, named_activation, projector, vision_keys
from ggufkit.arch.tower import Activate, Join, Matrix, Normalize, Tower
from ggufkit.arch.transforms import rename, split_rows
from ggufkit.checkpoint.config import Config
from ggufkit.errors import ArchitectureError, printable


def _side(name: str) -> Callable[[Config], int]:
    """A size that is one number, or two of which the first counts."""

    def find(config: Config) -> int:
        value = config.vision.require(name)
        if isinstance(value, list) and value:
            value = value[0]
        if type(value) is not int:
            raise ArchitectureError(f"config.json: {name!r} must be a number or two, not {printable(repr(value))}")
        return value

    return find


def _scale(config: Config) -> int:
    """How many patches become one in each direction."""
    ratio = config.require("downsample_ratio")
    if not isinstance(ratio, (int, float)) or not 1 / 64 <= ratio <= 1:
        raise ArchitectureError("config.json: 'downsample_ratio' must be from 1/64 to 1")
    return int(1 / ratio)


def _tiles(name: str) -> Callable[[Config], int | None]:
    def find(config: Config) -> int | None:
        count = config.get(name, default=0)
        return count if type(count) is int and count > 0 else None

    return find


PROJECTORS = (
    Projector(
        models=("InternVisionModel",),
        keys=(
            *vision_keys(image_size=_side("image_size"), patch_size=_side("patch_size")),
            projector("internvl"),
            image_epsilon("layer_norm_eps"),
            named_activation("InternVL"),
            uint("/clip.vision.projector.scale_factor", _scale),
            uint("/clip.vision.preproc_min_tiles", _tiles("min_dynamic_patch")),
            uint("/clip.vision.preproc_max_tiles", _tiles("max_dynamic_patch")),
        ),
        kept=r"^(vision_model|mlp|model\.vision_tower|model\.multi_modal_projector)",
        transforms=(
            rename(
                (r"^model\.multi_modal_projector\.layer_norm\.", "mlp1.0."),
                (r"^model\.multi_modal_projector\.linear_1\.", "mlp1.1."),
                (r"^model\.multi_modal_projector\.linear_2\.", "mlp1.3."),
                (r"^vision_model", "vision_tower.vision_model"),
                (r"^(?=.*(\.ls|\.lambda_|position_embedding))(.*)(?<!\.weight)$", r"\2.weight"),
            ),
            split_rows(r"attn\.qkv(?=\.)", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        ),
        types={r"\.position_embd\.": "F32", **CONVOLUTIONS},
    ),
)

TOWERS = {
    "internvl": Tower(
        fit=Shapes("bicubic", tiles=(1, 12)),
        norm="either",
        extra="row",
        positions="table",
        project=(
            Join("rows"),
            Normalize("mm.model.mlp.0", "layer", 1e-5),
            Matrix("mm.model.mlp.1"),
            Activate("gelu"),
            Matrix("mm.model.mlp.3"),
        ),
        begin="<img>",
        end="</img>",
    ),
}
