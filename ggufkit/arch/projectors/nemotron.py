"""RADIO's vision tower and Parakeet, which hears, in Nemotron Nano 2 VL."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from ggufkit.arch.batch_norms import BATCH_EPSILON
from ggufkit.arch.fits import Square
from ggufkit.arch.metadata import Row, real, uint
from ggufkit.arch.projector import CONVOLUTIONS, USES_GELU, Projector, audio_keys, colours, projector, vision_keys
from ggufkit.arch.tower import Activate, Join, Matrix, Normalize, Silent, Tower
from ggufkit.arch.transforms import drop, map_each, rename, reshape
from ggufkit.checkpoint.config import Config
from ggufkit.errors import ArchitectureError, CheckpointError, printable
from ggufkit.gguf.header import Value
from ggufkit.tensors.tensor import Tensor
from ggufkit.tensors.views import matrix, reshaped

# RADIO's config does not say it.
_WIDTH, _INNER, _LAYERS, _HEADS = 1280, 5120, 32, 16


def _hears(config: Config) -> bool:
    return bool(config.get("sound_config"))


def _if(condition: Callable[[Config], bool], *rows: Row) -> Row:
    def found(name: str, config: Config) -> Iterable[tuple[str, Value]]:
        for row in rows if condition(config) else ():
            yield from row(name, config)

    return found


def _of_sound(*names: str) -> Callable[[Config], int]:
    return lambda config: config.part("sound_config").integer(*names)


def _size(config: Config) -> int:
    return config.count("force_image_size", default=512)


def _scale(config: Config) -> int:
    ratio = config.number("downsample_ratio", default=0.5)
    if not 1 / 64 <= ratio <= 1:
        raise ArchitectureError("config.json: 'downsample_ratio' must be from 1/64 to 1")
    return int(1 / ratio)


def _positions(tensor: Tensor, config: Config) -> Tensor:
    """The table for pictures of the one size that there is, by PyTorch's bilinear way with corners on corners."""
    import numpy as np

    side = _size(config) // config.vision.integer("patch_size")
    old = math.isqrt(tensor.size // _WIDTH)
    if tensor.shape[-1] != _WIDTH or old * old * _WIDTH != tensor.size or not 0 < side <= 1 << 10:
        raise CheckpointError(f"{printable(tensor.name)} of shape {list(tensor.shape)} is no square of positions")
    if side == old:
        return tensor
    f = np.float32
    place = np.arange(side, dtype=f) * (f(old - 1) / f(side - 1) if side > 1 else f(0))
    low = place.astype(int)
    high = np.minimum(low + 1, old - 1)
    after = (place - low.astype(f)).astype(f)
    before = f(1) - after
    table = tensor.floats().reshape(old, old, _WIDTH)
    across = [table[:, at] * share[None, :, None] for at, share in ((low, before), (high, after))]
    rows = across[0] + across[1]  # (old, side, width)
    found = rows[low] * before[:, None, None] + rows[high] * after[:, None, None]
    return reshaped(matrix(tensor.name, found.reshape(side * side, _WIDTH)), (1, side * side, _WIDTH))


PROJECTORS = (
    Projector(
        models=("NemotronH_Nano_VL_V2", "RADIOModel"),
        keys=(
            _if(
                _hears,
                uint("/clip.audio.num_mel_bins", _of_sound("num_mel_bins")),
                real("/clip.audio.attention.layer_norm_epsilon", lambda config: BATCH_EPSILON),
                uint("/clip.audio.subsampling_factor", _of_sound("subsampling_factor")),
                uint("/clip.audio.conv_kernel_size", _of_sound("conv_kernel_size")),
                projector("parakeet", "clip.audio.projector_type"),
                projector("nemotron_v2_vl", "clip.vision.projector_type"),
            ),
            _if(lambda config: not _hears(config), projector("nemotron_v2_vl")),
            *vision_keys(
                image_size=_size,
                width=lambda config: _WIDTH,
                feed_forward=lambda config: _INNER,
                blocks=lambda config: _LAYERS,
                heads=lambda config: _HEADS,
                image_mean=colours("image_mean", (0.485, 0.456, 0.406)),
                image_std=colours("image_std", (0.229, 0.224, 0.225)),
            ),
            _if(
                _hears,
                *audio_keys(
                    width=_of_sound("hidden_size"),
                    feed_forward=_of_sound("intermediate_size"),
                    blocks=_of_sound("num_hidden_layers"),
                    heads=_of_sound("num_attention_heads"),
                )[1:],
            ),
            real("/clip.vision.attention.layer_norm_epsilon", lambda config: 1e-6),
            USES_GELU,
            uint("/clip.vision.projector.scale_factor", _scale),
        ),
        kept=r"^(vision_model\.radio_model\.model|mlp1|sound_encoder|sound_projection)\.",
        transforms=(
            drop(r"input_conditioner|patch_generator\.video_embedder|conv\.norm.*num_batches"),
            rename((r"(patch_generator\.pos_embed)$", r"\1.weight")),
            map_each(r"patch_generator\.pos_embed\.weight$", _positions),
            reshape(
                r"patch_generator\.embedder",
                lambda tensor, config: (_WIDTH, 3, *[config.vision.integer("patch_size")] * 2),
            ),
            reshape(r"depthwise_conv\.weight$", lambda tensor, config: (1, 1, tensor.shape[0], tensor.shape[-1])),
            reshape(r"pointwise_conv\d?\.weight$", lambda tensor, config: tensor.shape[:2]),
            reshape(
                r"(subsampling\.layers\..*|pointwise_conv\d?)\.bias$", lambda tensor, config: (1, tensor.size, 1, 1)
            ),
        ),
        types={r"^(mm\.a|a)\..*(bias|norm|conv.*weight)": "F32", **CONVOLUTIONS},
        blocks=lambda config: _LAYERS,
    ),
)

TOWERS = {
    "nemotron_v2_vl": Tower(
        fit=Square("bicubic"),
        extra="rows",
        positions="table",
        project=(
            Join("rows"),
            Normalize("mm.model.mlp.0", "rms", 1e-6),
            Matrix("mm.model.mlp.1"),
            Activate("relu_squared"),
            Matrix("mm.model.mlp.3"),
        ),
    ),
}

EARS = {"parakeet": Silent()}
