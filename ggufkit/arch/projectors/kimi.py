"""MoonViT, the vision tower of Kimi-VL, Kimi-K2.5 and GLM-5V."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ggufkit.arch.fits import Patches
from ggufkit.arch.metadata import flag, uint
from ggufkit.arch.projector import USES_GELU, Projector, image_epsilon, of_vision, projector, vision_keys
from ggufkit.arch.tower import Activate, Either, Join, Matrix, Normalize, Tower
from ggufkit.arch.transforms import map_each, rename, reshape, split_rows
from ggufkit.checkpoint.config import Config
from ggufkit.errors import ArchitectureError, CheckpointError, printable
from ggufkit.tensors.tensor import Tensor
from ggufkit.tensors.views import take_rows

KIMI_VL = Projector(
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
)


def _patch(config: Config) -> int:
    return config.vision.count("patch_size", default=14)


def _positions(side: str, default: int = 64) -> Callable[[Config], int]:
    return lambda config: config.vision.count(f"init_pos_emb_{side}", default=default)


def _merge(config: Config) -> int:
    sides = config.vision.get("merge_kernel_size", default=[2, 2])
    if not isinstance(sides, list) or not sides or type(sides[0]) is not int:
        raise ArchitectureError("config.json: 'merge_kernel_size' must be two numbers of patches")
    return sides[0]


def _side_by_side(tensor: Tensor, config: Config) -> Tensor:
    """Queries and keys of a head in halves, which turn by column and by row, where they took turns in fours."""
    import numpy as np

    heads = config.vision.count("num_attention_heads", default=16)
    rows = tensor.rows if len(tensor.shape) > 1 else tensor.cols
    if not heads or rows % (12 * heads):
        raise CheckpointError(
            f"{printable(tensor.name)} has {rows} rows, which are not those of {heads} heads of fours, thrice"
        )
    each = np.arange(rows).reshape(3, heads, -1, 2, 2)
    turned = each[:2].transpose(0, 1, 3, 2, 4)
    return take_rows(tensor, np.concatenate([turned.reshape(-1), each[2].reshape(-1)]))


KIMI_K25 = Projector(
    models=("KimiK25ForConditionalGeneration", "Glm5vForConditionalGeneration"),
    keys=(
        *vision_keys(image_size=lambda config: _positions("height")(config) * _patch(config)),
        projector("kimik25"),
        uint("/vision.pos_emb_height", _positions("height")),
        uint("/vision.pos_emb_width", _positions("width")),
        uint("/vision.pos_emb_time", _positions("time", 4)),
        flag("/clip.use_gelu", lambda config: of_vision("projector_hidden_act", default="gelu")(config) == "gelu"),
        image_epsilon("projector_ln_eps", default=1e-5),
        uint("/clip.vision.projector.scale_factor", _merge),
        uint("/clip.vision.image_min_pixels", lambda config: 8 * _patch(config) ** 2),
        uint(
            "/clip.vision.image_max_pixels",
            lambda config: config.processor.count("in_patch_limit", default=16384) * _patch(config) ** 2,
        ),
    ),
    kept=r"vision_tower|mm_projector",
    transforms=(
        map_each(r"wqkv\.", _side_by_side),
        rename(
            (r"mm_projector\.(proj\.0|linear_1)\.", "mm_projector.proj.linear_1."),
            (r"mm_projector\.(proj\.2|linear_2)\.", "mm_projector.proj.linear_2."),
        ),
    ),
)

PROJECTORS = KIMI_VL, KIMI_K25

_KIMI_VL = Tower(
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
)

TOWERS = {
    "kimivl": _KIMI_VL,
    "kimik25": replace(
        _KIMI_VL,
        fit=Patches("bicubic", tokens=(2, 4096)),
        positions="cubic",
        project=(Normalize("mm.input_norm", "layer"), *_KIMI_VL.project[1:]),
        begin=Either("<|begin_of_image|>", "<|media_begin|>"),
        end=Either("<|end_of_image|>", "<|media_end|>"),
    ),
}
