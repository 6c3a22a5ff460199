"""Whisper's encoder, in Qwen2-Audio, Ultravox, Voxtral and Audio Flamingo 3."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from ggufkit.arch.metadata import Row, real, uint
from ggufkit.arch.projector import BLOCKS, CONVOLUTIONS, Projector, audio_keys, projector
from ggufkit.arch.tower import Activate, Around, Ear, Gated, Halves, Join, Matrix, Normalize
from ggufkit.arch.transforms import drop, rename, reshape
from ggufkit.checkpoint.config import Config
from ggufkit.errors import ArchitectureError, CheckpointError, printable
from ggufkit.tensors.tensor import Tensor
from ggufkit.tensors.views import matrix, take_rows

HEARD: tuple[Row, ...] = (
    uint("/clip.audio.num_mel_bins", lambda config: config.audio.integer("num_mel_bins")),
    real("/clip.audio.attention.layer_norm_epsilon", lambda config: config.audio.get("layer_norm_eps", default=1e-5)),
)


def _whisper(models: tuple[str, ...], kind: str, *more: Row) -> Projector:
    return Projector(
        models=models,
        keys=(*audio_keys(), projector(kind), *HEARD, *more),
        transforms=(
            drop(r"^(lm_head|model)\."),
            rename((r"^(?=multi_modal_projector)", "audio.")),
            reshape(r"conv[12]\.bias", lambda tensor, config: (tensor.size, 1)),
        ),
        types={r"^a\.conv1d\.\d+\.weight": "F16", **CONVOLUTIONS},
        blocks=lambda config: config.audio.integer(*BLOCKS),
    )


def _renamed(base: Projector, *pairs: tuple[str, str], dropped: str = r"^(lm_head|model)\.") -> Projector:
    """With other names for what Qwen2-Audio's checkpoints have."""
    return replace(base, transforms=(drop(dropped), rename(*pairs), *base.transforms[1:]))


def _begin_and_end(tensors: Iterable[Tensor], config: Config) -> Iterator[Tensor]:
    """What stands around sound, two rows of one tensor."""
    import numpy as np

    for tensor in tensors:
        if tensor.name != "audio_encoder.audio_bos_eos_token.weight":
            yield tensor
        elif len(tensor.shape) != 2 or tensor.rows != 2:
            raise CheckpointError(f"{printable(tensor.name)} of shape {list(tensor.shape)} is not two rows")
        else:
            for row, name in enumerate(("v.boi", "v.eoi")):
                yield take_rows(tensor, np.array([row]), (tensor.cols,)).renamed(name)


def with_waves(tensors: Iterable[Tensor], config: Config) -> Iterator[Tensor]:
    """First the table of positions, which checkpoints leave out: sines and cosines.

    They are correctly rounded, as PyTorch's, on which the reference's depend, are not everywhere.
    """
    import numpy as np

    half = config.audio.integer("d_model") // 2
    if half < 2 or half > 1 << 15:
        raise ArchitectureError(f"config.json: 'd_model' of the encoder of sound cannot be {2 * half}")
    step = np.float32(np.log(10000) / (half - 1))
    rates = np.exp((-step * np.arange(half, dtype=np.float32)).astype(np.float64)).astype(np.float32)
    angles = (np.arange(_POSITIONS, dtype=np.float32)[:, None] * rates).astype(np.float64)
    yield matrix("a.position_embd.weight", np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32))
    yield from tensors


def _stacked(name: str, default: int | None = None) -> Row:
    return uint(
        "/clip.audio.projector.stack_factor",
        lambda config: config.integer(name) if default is None else config.get(name, default=default),
    )


_POSITIONS = 1500
_CONVOLUTION = r"^a\.conv1d\.\d+\.weight"
_STACK = uint("/clip.audio.projector.stack_factor", lambda config: 4)
_FLAMINGO = _whisper(("AudioFlamingo3ForConditionalGeneration",), "musicflamingo")

_GLM_ASR = _renamed(
    _whisper(("GlmasrModel",), "glma", _stacked("merge_factor")),
    (r"^audio_encoder\.whisper\.", "audio_tower."),
    (r"^audio_encoder\.layer_norm\.", "multi_modal_projector.ln_pre."),
    (r"^audio_encoder\.adapting\.0\.", "multi_modal_projector.linear_1."),
    (r"^audio_encoder\.adapting\.2\.", "multi_modal_projector.linear_2."),
)
_GLM_ASR = replace(_GLM_ASR, transforms=(*_GLM_ASR.transforms, _begin_and_end))

PROJECTORS = (
    _whisper(("Qwen2AudioForConditionalGeneration",), "qwen2a"),
    _whisper(("VoxtralForConditionalGeneration",), "voxtral", _STACK),
    replace(_FLAMINGO, types={**_FLAMINGO.types, _CONVOLUTION: "F32"}),  # trained in BF16
    _whisper(("UltravoxModel",), "ultravox", _stacked("stack_factor")),
    _GLM_ASR,
    _renamed(
        _whisper(("MERaLiON2ForConditionalGeneration",), "meralion", _stacked("speech_mlp_scale_factor", 15)),
        (r"^speech_encoder\.", "audio_tower."),
        (r"^ln_speech\.", "mm.a.norm_pre."),
        (r"^speech_audio_adapter\.mlp_adapter\.0\.", "mm.a.mlp.0."),
        (r"^speech_audio_adapter\.gate_proj\.", "mm.a.mlp.1."),
        (r"^speech_audio_adapter\.pool_proj\.", "mm.a.mlp.2."),
        (r"^speech_audio_adapter\.out_proj\.", "mm.a.mlp.3."),
        dropped=r"^text_decoder\.",
    ),
)

_NETWORK = Matrix("mm.a.mlp.1"), Activate("gelu_erf"), Matrix("mm.a.mlp.2")

EARS = {
    "qwen2a": Ear(project=(Matrix("mm.a.fc"),), pooled=True, begin="<|audio_bos|>", end="<|audio_eos|>"),
    "voxtral": Ear(project=(Join("rows"), *_NETWORK), begin="[BEGIN_AUDIO]"),
    "musicflamingo": Ear(project=_NETWORK, pooled=True, begin="<sound>"),
    "ultravox": Ear(
        project=(
            Join("rows"),
            Normalize("mm.a.norm_pre", "rms", 1e-6),
            Matrix("mm.a.mlp.1"),
            Halves(),
            Normalize("mm.a.norm_mid", "rms", 1e-6),
            Matrix("mm.a.mlp.2"),
        ),
    ),
    "glma": Ear(
        project=(Normalize("mm.a.norm_pre", "layer"), Join("rows"), *_NETWORK, Around("v.boi", "v.eoi")),
    ),
    "meralion": Ear(
        project=(
            Join("rows"),
            Normalize("mm.a.norm_pre", "layer"),
            Matrix("mm.a.mlp.0"),
            Activate("silu"),
            Gated("mm.a.mlp.1", "mm.a.mlp.2", "mm.a.mlp.3", "silu"),
        ),
    ),
}
