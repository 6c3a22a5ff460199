"""Llama 4's vision tower."""

from __future__ import annotations

from ggufkit.arch.fits import Shapes
from ggufkit.arch.metadata import real, uint
from ggufkit.arch.projector import USES_GELU, Projector, of_vision, projector, vision_keys
from ggufkit.arch.tower import Activate, Columns, Join, Matrix, Tower
from ggufkit.arch.transforms import rename
from ggufkit.checkpoint.config import Config
from ggufkit.errors import ArchitectureError


def _scale(config: Config) -> int:
    """How many patches become one in each direction."""
    ratio = config.vision.require("pixel_shuffle_ratio")
    if not isinstance(ratio, (int, float)) or not 1 / 64 <= ratio <= 1:
        raise ArchitectureError("config.json: 'pixel_shuffle_ratio' must be from 1/64 to 1")
    if config.vision.get("hidden_act") not in (None, "gelu"):
        raise ArchitectureError("config.json: 'hidden_act' of Llama 4's encoder must be gelu")
    return int(1 / ratio)


PROJECTORS = (
    Projector(
        models=("Llama4ForConditionalGeneration",),
        keys=(
            *vision_keys(),
            projector("llama4"),
            real("/clip.vision.attention.layer_norm_epsilon", of_vision("norm_eps", default=1e-5)),
            uint("/clip.vision.projector.scale_factor", _scale),
            USES_GELU,
        ),
        kept=r"multi_modal_projector|vision_model",
        transforms=(
            rename(
                (r"positional_embedding_vlm$", "positional_embedding_vlm.weight"),
                (r"^.*multi_modal_projector\.linear_1\.weight$", "mm.model.fc.weight"),
            ),
        ),
    ),
)

TOWERS = {
    "llama4": Tower(
        fit=Shapes("bicubic", side=3),
        extra="row",
        positions="table",
        rope="beside",
        rope_first=1,
        project=(
            Join("rows"),
            Columns(),  # which transformers does not do
            Matrix("mm.model.mlp.1"),
            Activate("gelu"),
            Matrix("mm.model.mlp.2"),
            Activate("gelu"),
            Matrix("mm.model.fc"),
        ),
        begin="<|image_start|>",
        end="<|image_end|>",
    ),
}
