"""The vision tower of MiniMax M3."""

from __future__ import annotations

from ggufkit.arch.fits import Patches
from ggufkit.arch.metadata import uint
from ggufkit.arch.projector import USES_GELU, Projector, image_epsilon, projector, two_frames, vision_keys
from ggufkit.arch.tower import Activate, Join, Matrix, Tower
from ggufkit.arch.transforms import map_each
from ggufkit.checkpoint.config import Config
from ggufkit.errors import CheckpointError, printable
from ggufkit.tensors.tensor import Tensor
from ggufkit.tensors.views import take_rows

_HEAD = 80  # numbers, the only size that the reference converts


def _merge(config: Config) -> int:
    return config.vision.part("img_token_compression_config").count("spatial_merge_size", default=2)


def _by_axis(tensor: Tensor, config: Config) -> Tensor:
    """Of a head's numbers those together that turn by one axis: time, row, column; the rest do not turn.

    t h w | t h w | rest  →  t t | h h | w w | rest
    """
    import numpy as np

    heads = config.vision.integer("num_attention_heads")
    rows = tensor.rows if len(tensor.shape) > 1 else tensor.cols
    if rows != heads * _HEAD:
        raise CheckpointError(f"{printable(tensor.name)} has {rows} rows, not {heads} heads of {_HEAD}")
    turned = _HEAD // 2 // 3 * 6
    each = np.arange(rows).reshape(heads, _HEAD)
    parts = each[:, :turned].reshape(heads, 2, 3, -1).transpose(0, 2, 1, 3).reshape(heads, -1)
    return take_rows(tensor, np.concatenate([parts, each[:, turned:]], axis=1).reshape(-1))


PROJECTORS = (
    Projector(
        models=("MiniMaxM3SparseForConditionalGeneration",),
        keys=(
            *vision_keys(),
            projector("minimax_m3"),
            USES_GELU,
            image_epsilon("layer_norm_eps", default=1e-5),
            uint("/clip.vision.spatial_merge_size", _merge),
        ),
        kept=r"^(vision_tower|multi_modal_projector|patch_merge_mlp)\.",
        transforms=(
            two_frames(r"^vision_tower\.vision_model\.embeddings\.patch_embedding\.weight$"),
            map_each(r"\.self_attn\.[qk]_proj\.", _by_axis),
        ),
    ),
)

TOWERS = {
    "minimax_m3": Tower(
        fit=Patches("bicubic", tokens=(8, 576), stretched=True),
        named=False,
        activation="gelu_erf",
        rope="sixths",
        merge=2,
        merge_key="spatial_merge_size",
        project=(
            Matrix("mm.1"),
            Activate("gelu_erf"),
            Matrix("mm.2"),
            Join("rows"),
            Matrix("mm.merger.fc1"),
            Activate("gelu_erf"),
            Matrix("mm.merger.fc2"),
        ),
        begin="]<]start of image[>[",
        end="]<]end of image[>[",
    ),
}
