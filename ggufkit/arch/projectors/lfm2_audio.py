"""What hears in LFM2-Audio."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from ggufkit.arch.metadata import real, uint
from ggufkit.arch.projector import BLOCKS, CONVOLUTIONS, Projector, audio_keys, projector
from ggufkit.arch.tower import Activate, FastConformer, Matrix, Normalize
from ggufkit.arch.transforms import drop, reshape
from ggufkit.checkpoint.config import Config
from ggufkit.errors import CheckpointError, printable
from ggufkit.tensors.tensor import Tensor
from ggufkit.tensors.views import vector

_NORM = ".conv.batch_norm."
_PARTS = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
_EPSILON = 1e-5


def _of_encoder(*names: str) -> Callable[[Config], int]:
    return lambda config: config.part("encoder").integer(*names)


def _batch_norms(tensors: Iterable[Tensor], config: Config) -> Iterator[Tensor]:
    """What a batch was normalised by becomes one factor and one bias of each channel, where the last part was."""
    import numpy as np

    seen: dict[str, dict[str, Tensor]] = {}
    for tensor in tensors:
        at, found, part = tensor.name.partition(_NORM)
        if not found:
            yield tensor
            continue
        parts = seen.setdefault(at, {})
        parts[part] = tensor
        if len(parts) < len(_PARTS):
            continue
        if set(parts) != set(_PARTS) or len({parts[name].size for name in _PARTS[:4]}) != 1:
            raise CheckpointError(f"{printable(at + _NORM)} has not the parts of a norm of batches")
        weight, bias, mean, variance = (parts[name].floats().reshape(-1) for name in _PARTS[:4])
        if not (variance >= 0).all():
            raise CheckpointError(f"{printable(at + _NORM)}running_var has numbers below 0")
        factor = weight / np.sqrt(variance + np.float32(_EPSILON))
        yield vector(f"{at}{_NORM}weight", factor)
        yield vector(f"{at}{_NORM}bias", bias - mean * factor)


def _taken_apart(tensor: Tensor, config: Config) -> tuple[int, ...]:
    """Of convolutions of one channel or one place only what there is more than one of."""
    return tuple(n for n in tensor.shape if n != 1)


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
        real("/clip.audio.attention.layer_norm_epsilon", lambda config: _EPSILON),
    ),
    transforms=(
        drop(r"^lfm\.|audio_loss_weight|codebook_offsets|depth_embeddings|depth_linear|depthformer"),
        _batch_norms,
        reshape(r"^conformer\.pre_encode\.conv\..*\.bias$", lambda tensor, config: (tensor.size, 1, 1)),
        reshape(r"\.conv\.(depthwise|pointwise)_conv\d?\.weight$", _taken_apart),
    ),
    types={r"^a\.(conv1d|blk\.\d+\.conv_(dw|pw1|pw2))\b": "F32", **CONVOLUTIONS},
    blocks=_of_encoder(*BLOCKS),
)

PROJECTORS = (LFM2_AUDIO,)

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
