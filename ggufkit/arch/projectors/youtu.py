"""SigLIP 2 with windows, the vision tower of Youtu-VL."""

from __future__ import annotations

from collections.abc import Iterable

from ggufkit.arch.fits import RoundedUp
from ggufkit.arch.metadata import integers, uint
from ggufkit.arch.projector import (
    USES_GELU,
    USES_SILU,
    Projector,
    image_epsilon,
    of_vision,
    projector,
    vision_keys,
)
from ggufkit.arch.tower import Activate, Join, Matrix, Normalize, Tower, Windows
from ggufkit.arch.transforms import drop
from ggufkit.checkpoint.config import Config
from ggufkit.errors import ArchitectureError, printable
from ggufkit.gguf.header import Value

_GELUS = ("gelu", "gelu_pytorch_tanh", "gelu_fast", "gelu_new", "gelu_accurate")


def _activation(name: str, config: Config) -> Iterable[tuple[str, Value]]:
    kind = str(config.vision.get("hidden_act", default="gelu_pytorch_tanh")).lower()
    if kind in _GELUS:
        return USES_GELU(name, config)
    if kind == "silu":
        return USES_SILU(name, config)
    raise ArchitectureError(f"config.json: Youtu-VL's 'hidden_act' is silu or a gelu, not {printable(repr(kind))}")


PROJECTORS = (
    Projector(
        models=("YoutuVLForConditionalGeneration",),
        keys=(
            *vision_keys(image_size=of_vision("image_size", default=560)),
            projector("youtuvl"),
            image_epsilon("layer_norm_eps", default=1e-6),
            _activation,
            uint("/clip.vision.spatial_merge_size", of_vision("spatial_merge_size", default=2)),
            uint("/clip.vision.window_size", lambda config: config.vision.get("window_size")),
            integers("/clip.vision.wa_layer_indexes", lambda config: config.vision.list("fullatt_block_indexes")),
        ),
        kept=r"^(?!(lm_head|model\.(layers|embed_tokens|norm))\.)",
        transforms=(drop(r"^siglip2\.vision_model\.head\."),),
    ),
)

TOWERS = {
    "youtuvl": Tower(
        fit=RoundedUp("bilinear", tokens=62500),
        rope="halves",
        merge=2,
        merge_key="spatial_merge_size",
        windows=Windows(112, "wa_layer_indexes"),
        colours_last=True,
        project=(
            Normalize("mm.input_norm", "rms", 1e-6),
            Join("rows"),
            Matrix("mm.0"),
            Activate("gelu"),
            Matrix("mm.2"),
        ),
        begin="<|vision_start|>",
        end="<|vision_end|>",
    ),
}
