"""Gemma 4's and EmbeddingGemma 2's encoders, of images and sound."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace

from ggufkit.arch.fits import Patches
from ggufkit.arch.metadata import Row, real, uint
from ggufkit.arch.projector import (
    CONVOLUTIONS,
    Projector,
    audio_keys,
    channels_first,
    image_epsilon,
    projector,
    vision_keys,
)
from ggufkit.arch.tower import Conformer, Frames, Join, Matrix, Normalize, Scale, Standardize, Tower
from ggufkit.arch.transforms import map_each, rename, squeezed
from ggufkit.checkpoint.config import Config
from ggufkit.errors import CheckpointError, printable
from ggufkit.gguf.header import Value
from ggufkit.tensors.tensor import Tensor
from ggufkit.tensors.views import computed, take_columns, take_rows


def _if_it_hears(row: Row) -> Row:
    """A key of checkpoints that have an encoder of sound, too."""

    def found(name: str, config: Config) -> Iterable[tuple[str, Value]]:
        return row(name, config) if config.get("audio_config") else ()

    return found


def _softplus(tensor: Tensor, config: Config) -> Tensor:
    """ln(1 + eˣ), by which queries and keys are multiplied; the exponential is rounded to float32, as PyTorch's."""
    import numpy as np

    def softplus(x: np.ndarray) -> np.ndarray:
        exponential = np.exp(x.astype(np.float64)).astype(np.float32)
        return np.log1p(exponential.astype(np.float64)).astype(np.float32)

    return computed(tensor, softplus)


_MEL_BINS = uint("/clip.audio.num_mel_bins", lambda config: config.audio.get("input_feat_size", default=128))
_AUDIO_EPSILON = real(
    "/clip.audio.attention.layer_norm_epsilon", lambda config: config.audio.get("layer_norm_eps", default=1e-6)
)

GEMMA4 = Projector(
    models=("Gemma4ForConditionalGeneration",),
    keys=(
        *vision_keys(image_size=lambda config: 224),  # unused
        *map(_if_it_hears, audio_keys(feed_forward=lambda config: 4 * config.audio.integer("hidden_size"))[1:]),
        projector("gemma4v", "clip.vision.projector_type"),
        image_epsilon("layer_norm_eps", default=1e-6),
        _if_it_hears(projector("gemma4a", "clip.audio.projector_type")),
        _if_it_hears(_MEL_BINS),
        _if_it_hears(_AUDIO_EPSILON),
    ),
    transforms=(
        rename(
            (r"^model\.audio_tower\.", "conformer."),
            (r"model\.vision_tower\.encoder\.", "vision_model.model."),
            (r"^(conformer.*)\.linear\.", r"\1."),
            (r"\.linear\.weight", ".weight"),
            (r"(?<=\.per_dim)((?:_key)?_scale)$", r"\1.weight"),
            (r"(layer_scalar|position_embedding_table)$", r"\1.weight"),
        ),
        channels_first(r"patch_embedder\.input_proj\.weight$"),
        map_each(r"^conformer.*\.per_dim(_key)?_scale\.weight$", _softplus),
        squeezed(r"^conformer.*depthwise_conv1d\.weight$"),
    ),
    types={r"^v\.position_embd|^a\.(conv1d|input_projection|blk\.\d+\.conv_dw)\b": "F32", **CONVOLUTIONS},
    blocks=lambda config: 128,
)

EMBEDDING_GEMMA2 = replace(
    GEMMA4, models=("EmbeddingGemma2Model",), transforms=(rename((r"^", "model.")), *GEMMA4.transforms)
)

# ---- Gemma 4 without towers: patches and pieces of sound go to the language model as they are --------------------


def _of_images(*names: str) -> Callable[[Config], int]:
    return lambda config: config.vision.integer(*names)


def _none(config: Config) -> int:
    return 0


def _colours_first(tensor: Tensor, config: Config) -> Tensor:
    """Columns of (height, width, 3) as those of (3, height, width)."""
    import numpy as np

    side = math.isqrt(tensor.cols // 3)
    if 3 * side * side != tensor.cols:
        raise CheckpointError(f"{printable(tensor.name)} of shape {list(tensor.shape)} holds no square patches")
    return take_columns(tensor, np.arange(tensor.cols).reshape(side, side, 3).transpose(2, 0, 1).reshape(-1))


def _axes_first(tensor: Tensor, config: Config) -> Tensor:
    """(places, 2, width) as (2, places, width)."""
    import numpy as np

    if len(tensor.shape) != 3:
        raise CheckpointError(f"{printable(tensor.name)} of shape {list(tensor.shape)} is not two tables")
    places, axes, width = tensor.shape
    order = np.arange(places * axes).reshape(places, axes).T.reshape(-1)
    return take_rows(tensor, order, (axes, places, width))


GEMMA4_UNIFIED = Projector(
    models=("Gemma4UnifiedForConditionalGeneration",),
    keys=(
        *vision_keys(
            image_size=lambda config: 224,  # unused
            width=_of_images("mm_embed_dim"),
            feed_forward=_none,
            blocks=_none,
            heads=_none,
        ),
        *audio_keys(
            width=lambda config: config.audio.integer("audio_embed_dim"),
            feed_forward=_none,
            blocks=_none,
            heads=_none,
        )[1:],
        projector("gemma4uv", "clip.vision.projector_type"),
        image_epsilon("layer_norm_eps", default=1e-6),
        projector("gemma4ua", "clip.audio.projector_type"),
        _MEL_BINS,
        _AUDIO_EPSILON,
    ),
    transforms=(
        rename((r"\.pos_embedding$", ".pos_embedding.weight"), (r"\.pos_norm\.", ".patch_ln3.")),
        map_each(r"\.pos_embedding\.weight$", _axes_first),
        map_each(r"\.patch_dense\.weight$|\.patch_ln1\.(weight|bias)$", _colours_first),
    ),
    blocks=lambda config: 128,
)

PROJECTORS = (GEMMA4, EMBEDDING_GEMMA2, GEMMA4_UNIFIED)

TOWERS = {
    "gemma4v": Tower(
        fit=Patches("bicubic", tokens=(70, 1120)),
        norm="rms",
        positions="axes",
        rope="quarters",
        rope_base=100.0,
        merge=3,
        contrast=True,
        plain_scores=True,
        project=(
            Join("mean"),
            Scale(),
            Standardize("v.std_bias", "v.std_scale"),
            Normalize("", "rms"),
            Matrix("mm.input_projection"),
        ),
        begin="<|image>",
        end="<image|>",
        whole=lambda width: width not in (1536, 2560),  # of E2B and E4B the rows see only those before them
    ),
    "gemma4uv": Tower(
        fit=Patches("bicubic", tokens=(70, 1120)),
        merge=3,
        whole_patches=True,
        positions="axes",
        patch_norms=tuple(Normalize(f"v.patch_norm.{i}", "layer", 1e-5) for i in (1, 2, 3)),
        project=(Normalize("", "rms"), Matrix("mm.input_projection")),
        begin="<|image>",
        end="<image|>",
        whole=lambda width: True,
    ),
}

EARS = {
    "gemma4a": Conformer(
        project=(
            Matrix("a.pre_encode.out"),
            Normalize("", "rms", 1e-6),
            Matrix("mm.a.input_projection"),
        ),
        seen=12,
        cap=50.0,
        begin="<|audio>",
        end="<audio|>",
    ),
    "gemma4ua": Frames(
        project=(Normalize("", "rms", 1e-6), Matrix("mm.a.input_projection")),
        samples=640,
        begin="<|audio>",
        end="<audio|>",
    ),
}
