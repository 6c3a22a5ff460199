"""The vision tower of Muse Glimmer."""

from __future__ import annotations

from ggufkit.arch.fits import NearestShape
from ggufkit.arch.metadata import real, uint
from ggufkit.arch.projector import Projector, projector, vision_keys
from ggufkit.arch.tower import Activate, Join, Matrix, Tower, Windows
from ggufkit.arch.transforms import map_each, permute_rope, rename
from ggufkit.checkpoint.config import Config
from ggufkit.tensors.tensor import Tensor
from ggufkit.tensors.views import by_rows, reshaped, take_columns

_FRAMES = 64


def _nominal_size(config: Config) -> int:
    size = 1
    for name in ("pos_emb_height", "patch_size", "merge_size"):
        size *= config.vision.integer(name)
    return size


def _one_frame(tensor: Tensor, config: Config) -> Tensor:
    """The convolution over frames, of a picture that is as many equal ones: their sum."""
    import numpy as np

    frames, side = config.vision.integer("patch_temporal"), config.vision.integer("patch_size")
    rows, patch = tensor.shape[0], 3 * side * side
    whole = reshaped(tensor, (rows, frames * patch))
    first, *others = (take_columns(whole, np.arange(i * patch, (i + 1) * patch)) for i in range(min(frames, _FRAMES)))

    def summed(weights: np.ndarray, lo: int) -> np.ndarray:
        for other in others:
            weights = weights + other.floats(lo, lo + len(weights))
        return weights

    return reshaped(by_rows(first, summed), (rows, 3, side, side))


PROJECTORS = (
    Projector(
        models=("MuseGlimmerForConditionalGeneration",),
        keys=(
            *vision_keys(image_size=_nominal_size),
            projector("muse-glimmer"),
            real("/clip.vision.attention.layer_norm_epsilon", lambda config: config.vision.number("layer_norm_eps")),
            uint("/clip.vision.spatial_merge_size", lambda config: config.vision.integer("merge_size")),
        ),
        kept=r"^model\.(vision_tower|vision_adapter|vision_projection)\.",
        transforms=(
            permute_rope("attn.q_proj", lambda config: config.vision.integer("num_attention_heads")),
            permute_rope("attn.k_proj", lambda config: config.vision.integer("num_attention_heads")),
            rename(
                (r"^model\.vision_adapter\.fc1\.", "mm.0."),
                (r"^model\.vision_adapter\.fc2\.", "mm.1."),
                (r"^model\.vision_projection\.", "mm.2."),
            ),
            map_each(r"patch_embedder\.patch_embedding\.weight$", _one_frame),
        ),
    ),
)

TOWERS = {
    "muse-glimmer": Tower(
        fit=NearestShape("lanczos", tokens=4096),
        named=False,
        activation="gelu_erf",
        positions="linear",
        rope="beside",
        rope_first=1,
        merge=2,
        merge_key="spatial_merge_size",
        windows=Windows(0, 4),
        project=(
            Join("channels"),
            Matrix("mm.0"),
            Activate("gelu_erf"),
            Matrix("mm.1"),
            Activate("gelu_erf"),
            Matrix("mm.2"),
        ),
        begin="<|image_start|>",
        end="<|image_end|>",
    ),
}
