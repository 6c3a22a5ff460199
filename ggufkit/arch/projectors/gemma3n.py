"""Gemma 3n's encoders: MobileNet V5, which sees, and a conformer, which hears."""

from __future__ import annotations

from typing import Any

from ggufkit.arch.batch_norms import BATCH_EPSILON
from ggufkit.arch.fits import Square
from ggufkit.arch.metadata import real, uint
from ggufkit.arch.projector import CONVOLUTIONS, Projector, audio_keys, image_epsilon, projector, vision_keys
from ggufkit.arch.tower import Matrix, Mobile, Normalize, Scale, Silent
from ggufkit.arch.transforms import rename, reshape
from ggufkit.checkpoint.config import Config
from ggufkit.errors import ArchitectureError

_LAYERS = 128  # of all encoders, as the reference has it

# What the blocks of MobileNet V5 are made of.
_PARTS = (
    "conv_exp",
    "conv_pwl",
    "bn[12]",
    r"(dw_start|dw_mid|pw_exp|pw_proj)\.(conv|bn)",
    r"attn\.(query|key|value|output)\.proj",
    r"attn\.(key|value)\.(down_conv|norm)",
    "norm",
)
_WEIGHT = rf"(({'|'.join(_PARTS)})\.weight|layer_scale\.gamma)$"


def _size(config: Config) -> int:
    size = config.processor.get("size", default={"height": 768})
    height: Any = size.get("height") if isinstance(size, dict) else None
    if type(height) is not int or not 0 < height < 1 << 16:
        raise ArchitectureError("preprocessor_config.json: 'size' must have a 'height' in pixels")
    return height


def _patch(config: Config) -> int:
    """As the reference has it, which does not use it."""
    return _size(config) // max(1, config.processor.count("image_seq_length", default=256))


PROJECTORS = (
    Projector(
        models=("Gemma3nForConditionalGeneration",),
        keys=(
            *vision_keys(
                image_size=_size,
                patch_size=_patch,
                feed_forward=lambda config: 4 * config.vision.count("intermediate_size", default=2048),
                blocks=lambda config: _LAYERS,
                heads=lambda config: config.vision.count("num_attention_heads", default=8),
                image_mean=lambda config: [0.0, 0.0, 0.0],
                image_std=lambda config: [1.0, 1.0, 1.0],
            ),
            *audio_keys(
                feed_forward=lambda config: config.audio.count("intermediate_size", default=6144),
                blocks=lambda config: config.audio.integer("conf_num_hidden_layers"),
                heads=lambda config: config.audio.integer("conf_num_attention_heads"),
            )[1:],
            projector("gemma3nv", "clip.vision.projector_type"),
            image_epsilon("layer_norm_eps", default=1e-6),
            projector("gemma3na", "clip.audio.projector_type"),
            uint("/clip.audio.num_mel_bins", lambda config: config.audio.integer("input_feat_size")),
            real("/clip.audio.attention.layer_norm_epsilon", lambda config: BATCH_EPSILON),
        ),
        kept=r"^model\.(embed_vision|vision_tower|embed_audio|audio_tower)\.",
        transforms=(
            rename(
                (rf"^model\.vision_tower\.timm_model\.blocks\.(?=\d+\.\d+\.{_WEIGHT})", "v.blk."),
                (r"^model\.audio_tower\.subsample_conv_projection\.conv_(\d+)\.norm\.", r"a.conv1d.\1.norm."),
                (r"^model\.audio_tower\.conformer\.", "conformer.layers."),
            ),
            reshape(r"conv_stem\.conv\.bias$", lambda tensor, config: (1, tensor.size, 1, 1)),
        ),
        types={
            r"^a\.(conv1d\.\d+|blk\.\d+\.conv_dw)\.weight$": "F32",
            r"^a\.pre_encode\.out\.weight$": "F16",
            r"^v\.conv_stem\.": "F32",
            **CONVOLUTIONS,
        },
        blocks=lambda config: _LAYERS,
    ),
)

TOWERS = {
    "gemma3nv": Mobile(
        fit=Square("bilinear"),
        project=(
            Scale(),
            Normalize("mm.soft_emb_norm", "rms", 1e-6),
            Matrix("mm.input_projection"),
            Normalize("", "rms", 1e-6),
        ),
        unread=("mm.embedding.weight", "mm.hard_emb_norm.weight"),
        begin="<start_of_image>",
        end="<end_of_image>",
    ),
}

EARS = {"gemma3na": Silent()}
