"""What hears in LFM2-Audio and d1-omni, and sees in d1-omni."""

from __future__ import annotations

from collections.abc import Callable

from ggufkit.arch.batch_norms import BATCH_EPSILON, batch_norms
from ggufkit.arch.metadata import real, uint
from ggufkit.arch.projector import (
    BLOCKS,
    CONVOLUTIONS,
    USES_GELU,
    Projector,
    audio_keys,
    channels_first,
    image_epsilon,
    projector,
    vision_keys,
)
from ggufkit.arch.tower import Activate, FastConformer, Matrix, Normalize
from ggufkit.arch.transforms import drop, rename, reshape
from ggufkit.checkpoint.config import Config
from ggufkit.tensors.tensor import Tensor


def _of_encoder(*names: str) -> Callable[[Config], int]:
    return lambda config: config.part("encoder").integer(*names)


def _taken_apart(tensor: Tensor, config: Config) -> tuple[int, ...]:
    """Of convolutions of one channel or one place only what there is more than one of."""
    return tuple(n for n in tensor.shape if n != 1)


_HEARD = (
    batch_norms(),
    reshape(r"^conformer\.pre_encode\.conv\..*\.bias$", lambda tensor, config: (tensor.size, 1, 1)),
    reshape(r"\.conv\.(depthwise|pointwise)_conv\d?\.weight$", _taken_apart),
)
_TYPES = {r"^a\.(conv1d|blk\.\d+\.conv_(dw|pw1|pw2))\b": "F32", **CONVOLUTIONS}

LFM2_AUDIO = Projector(
    models=("Lfm2AudioForConditionalGeneration",),
    keys=(
        *audio_keys(
            width=_of_encoder("d_model"),
            feed_forward=_of_encoder("d_model"),
            blocks=_of_encoder(*BLOCKS),
            heads=_of_encoder("n_heads"),
        ),
        projector("lfm2a"),
        uint("/clip.audio.num_mel_bins", _of_encoder("feat_in")),
        real("/clip.audio.attention.layer_norm_epsilon", lambda config: BATCH_EPSILON),
    ),
    transforms=(
        drop(r"^lfm\.|audio_loss_weight|codebook_offsets|depth_embeddings|depth_linear|depthformer"),
        *_HEARD,
    ),
    types=_TYPES,
    blocks=_of_encoder(*BLOCKS),
)


def _of_audio(*names: str) -> Callable[[Config], int]:
    return lambda config: config.audio.integer(*names)


def _half(config: Config) -> list[float]:
    return [0.5, 0.5, 0.5]


D1_OMNI = Projector(
    models=("D1OmniModel",),
    keys=(
        *vision_keys(image_size=lambda config: 256, image_mean=_half, image_std=_half),
        *audio_keys(
            width=_of_audio("d_model"),
            feed_forward=lambda config: _of_audio("d_model")(config) * _of_audio("ff_expansion_factor")(config),
            heads=_of_audio("n_heads"),
        )[1:],
        projector("d1omni_v", "clip.vision.projector_type"),
        image_epsilon("layer_norm_eps"),
        uint("/clip.vision.projector.scale_factor", lambda config: config.get("downsample_factor", default=2)),
        USES_GELU,
        projector("d1omni_a", "clip.audio.projector_type"),
        uint("/clip.audio.num_mel_bins", _of_audio("feat_in")),
        real("/clip.audio.attention.layer_norm_epsilon", lambda config: BATCH_EPSILON),
    ),
    kept=r"^(?!(encoder|head)\.)",
    transforms=(
        rename(
            (r"^vision\.tower\.", "vision_tower."),
            (r"^vision\.projector\.", "multi_modal_projector."),
            (r"^audio\.encoder\.", "conformer."),
            # The residual block goes on behind the adapter.
            *(
                (rf"^audio\.{name}\.", f"audio_adapter.model.{number}.")
                for name, number in (
                    (r"adapter\.norm", 0),
                    (r"adapter\.linear_1", 1),
                    (r"adapter\.linear_2", 3),
                    (r"residual\.ln", 4),
                    (r"residual\.down", 5),
                    (r"residual\.up", 6),
                )
            ),
        ),
        channels_first(r"patch_embedding\.weight"),
        *_HEARD,
    ),
    types=_TYPES,
    blocks=lambda config: 128,
)

PROJECTORS = (LFM2_AUDIO, D1_OMNI)

EARS = {
    "lfm2a": FastConformer(
        project=(
            Normalize("mm.a.mlp.0", "layer", 1e-5),
            Matrix("mm.a.mlp.1"),
            Activate("gelu_erf"),
            Matrix("mm.a.mlp.3"),
        ),
        unread=("a.position_embd.weight", "a.position_embd_norm.weight", "a.embd_to_logits.weight"),
    ),
}
