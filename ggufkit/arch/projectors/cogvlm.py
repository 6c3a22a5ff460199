"""EVA's vision tower in CogVLM."""

from __future__ import annotations

from ggufkit.arch.fits import Square
from ggufkit.arch.projector import Projector, image_epsilon, projector, vision_keys
from ggufkit.arch.tower import Activate, Around, Gated, Matrix, Normalize, Tower

PROJECTORS = (
    Projector(
        models=("CogVLMForCausalLM",),
        keys=(*vision_keys(), image_epsilon("layer_norm_eps", default=1e-6), projector("cogvlm")),
        kept=r"^model\.vision\.",
    ),
)

TOWERS = {
    "cogvlm": Tower(
        fit=Square("bicubic", colour=(122, 116, 104)),
        late_norm=True,
        extra="row",
        positions="table",
        project=(
            Matrix("mm.model.fc"),
            Normalize("mm.post_fc_norm", "layer", 1e-5),
            Activate("gelu"),
            Gated("mm.gate", "mm.up", "mm.down", "silu"),
            Around("v.boi", "v.eoi"),
        ),
    ),
}
