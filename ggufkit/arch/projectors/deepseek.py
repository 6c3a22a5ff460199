"""Vision towers of DeepSeek-OCR, with SAM in front of them, and of DeepSeek V4."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ggufkit.arch.fits import Views
from ggufkit.arch.metadata import Row, real, uint
from ggufkit.arch.projector import (
    CONVOLUTIONS,
    USES_GELU,
    USES_SILU,
    Projector,
    colours,
    image_epsilon,
    image_scale,
    projector,
    vision_keys,
)
from ggufkit.arch.tower import Queried, Twofold
from ggufkit.arch.transforms import rename, reshape, split_rows
from ggufkit.checkpoint.config import Config
from ggufkit.errors import ArchitectureError

# ---- DeepSeek-OCR -----------------------------------------------------------------------------------------------


def _part(config: Config, name: str) -> Config:
    """Of the towers that `width` describes, one."""
    return config.vision.part("width").part(name)


def _of_clip(*names: str, default: int | None = None) -> Callable[[Config], Any]:
    """Of the tower behind SAM, or what the config says of all."""

    def find(config: Config) -> Any:
        for part in (_part(config, "clip-l-14-224"), config.vision):
            if part.get(*names) is not None:
                return part.integer(*names)
        return default if default is not None else config.vision.require(*names)

    return find


def _of_sam(name: str) -> Callable[[Config], int]:
    return lambda config: _part(config, "sam_vit_b").integer(name)


def _ocr(models: tuple[str, ...], kind: str, tiles: int, *more: Row, **sizes: Callable[[Config], Any]) -> Projector:
    sizes = {
        "image_size": _of_clip("image_size"),
        "patch_size": _of_clip("patch_size"),
        "width": _of_clip("width"),
        "heads": _of_clip("heads"),
        "blocks": _of_clip("layers"),
        "feed_forward": lambda config: 4 * _of_clip("heads")(config),  # as the reference has it, which does not use it
        **sizes,
    }
    return Projector(
        models=models,
        keys=(
            *vision_keys(**sizes),
            projector(kind),
            image_epsilon("layer_norm_eps", default=1e-6),
            USES_GELU,
            uint("/clip.vision.projector.scale_factor", image_scale(sizes["image_size"], sizes["patch_size"])),
            uint("/clip.vision.window_size", lambda config: config.vision.count("window_size", default=14)),
            uint("/clip.vision.preproc_min_tiles", lambda config: 2),
            uint("/clip.vision.preproc_max_tiles", lambda config: tiles),
            uint("/clip.vision.sam.block_count", _of_sam("layers")),
            uint("/clip.vision.sam.embedding_length", _of_sam("width")),
            uint("/clip.vision.sam.head_count", _of_sam("heads")),
            *more,
        ),
        kept=r"^(?!(lm_head|model\.(embed_tokens|layers|norm))\.)",
        transforms=(
            rename((r"(pos_embed|rel_pos_[hw])$", r"\1.weight")),
            reshape(r"view_seperator$", lambda tensor, config: (1, tensor.size)),
        ),
        types={r"^v\.(patch_embd|sam\.(neck|net_|blk\.\d+\.attn\.pos_[hw]|pos_embd))": "F32", **CONVOLUTIONS},
        blocks=lambda config: max(sizes["blocks"](config), _of_sam("layers")(config)),
    )


# ---- DeepSeek V4 ------------------------------------------------------------------------------------------------

_HALF = (0.5, 0.5, 0.5)


def _v4(name: str) -> Callable[[Config], int]:
    return lambda config: config.integer(f"vision_{name}")


def _least_pixels(config: Config) -> int:
    for name, expected in (("vision_max_n_token", 384), ("vision_max_wh_ratio", 8)):
        if config.get(name) != expected:
            raise ArchitectureError(f"config.json: {name!r} of DeepSeek V4's encoder must be {expected}")
    return _v4("min_pixels")(config)


V4 = Projector(
    models=("DeepseekV4ForCausalLM",),
    keys=(
        *vision_keys(
            image_size=lambda config: 16 * _v4("patch_size")(config) * _v4("downsample_ratio")(config),
            patch_size=_v4("patch_size"),
            width=_v4("dim"),
            feed_forward=_v4("inter_dim"),
            blocks=_v4("n_layers"),
            heads=_v4("n_heads"),
            image_mean=colours("image_mean", _HALF),
            image_std=colours("image_std", _HALF),
        ),
        projector("deepseek4v"),
        real("/clip.vision.attention.layer_norm_epsilon", lambda config: 1e-6),
        USES_SILU,
        uint("/clip.vision.projector.scale_factor", _v4("downsample_ratio")),
        uint("/clip.vision.image_min_pixels", _least_pixels),
    ),
    kept=r"^(vision\.|aligner\.|image_)",
    transforms=(
        reshape(
            r"^vision\.patch_embed\.proj\.weight$",
            lambda tensor, config: (tensor.shape[0], 3, *[_v4("patch_size")(config)] * 2),
        ),
        split_rows(r"(?<=\.mlp\.)w1(?=\.)", "w1_gate", "w1_up"),
    ),
    blocks=_v4("n_layers"),
)

PROJECTORS = (
    _ocr(("DeepseekOCRForCausalLM",), "deepseekocr", 9),
    _ocr(("UnlimitedOCRForCausalLM",), "deepseekocr", 32),
    _ocr(
        ("DeepseekOCR2ForCausalLM",),
        "deepseekocr2",
        6,
        uint("/clip.vision.attention.head_count_kv", lambda config: 2),
        patch_size=_of_clip("patch_size", default=16),
        width=lambda config: _part(config, "qwen2-0-5b").integer("dim"),
        heads=_of_clip("num_attention_heads", default=14),
        blocks=_of_clip("layers", default=24),
        feed_forward=_of_clip("intermediate_size", default=4864),
    ),
    V4,
)

TOWERS = {
    "deepseekocr": Twofold(fit=Views("bicubic", base=1024, tile=640, colour=(127, 127, 127)), end="\n"),
    "deepseekocr2": Queried(
        fit=Views("bicubic", base=1024, tile=768, colour=(127, 127, 127), apart=True),
        end="\n",
    ),
}
