"""Whisper's encoder, in Qwen2-Audio, Ultravox, Voxtral and Audio Flamingo 3."""

from __future__ import annotations

from dataclasses import replace

from ggufkit.arch.metadata import Row, real, uint
from ggufkit.arch.projector import BLOCKS, CONVOLUTIONS, Projector, audio_keys, projector
from ggufkit.arch.tower import Activate, Around, Ear, Gated, Halves, Join, Matrix, Normalize
from ggufkit.arch.transforms import drop, rename, reshape

_WHISPER: tuple[Row, ...] = (
    uint("/clip.audio.num_mel_bins", lambda config: config.audio.integer("num_mel_bins")),
    real("/clip.audio.attention.layer_norm_epsilon", lambda config: config.audio.get("layer_norm_eps", default=1e-5)),
)


def _whisper(models: tuple[str, ...], kind: str, *more: Row) -> Projector:
    return Projector(
        models=models,
        keys=(*audio_keys(), projector(kind), *_WHISPER, *more),
        transforms=(
            drop(r"^(lm_head|model)\."),
            rename((r"^(?=multi_modal_projector)", "audio.")),
            reshape(r"conv[12]\.bias", lambda tensor, config: (tensor.size, 1)),
        ),
        types={r"^a\.conv1d\.\d+\.weight": "F16", **CONVOLUTIONS},
        blocks=lambda config: config.audio.integer(*BLOCKS),
    )


_CONVOLUTION = r"^a\.conv1d\.\d+\.weight"
_STACK = uint("/clip.audio.projector.stack_factor", lambda config: 4)
_FLAMINGO = _whisper(("AudioFlamingo3ForConditionalGeneration",), "musicflamingo")

PROJECTORS = (
    _whisper(("Qwen2AudioForConditionalGeneration",), "qwen2a"),
    _whisper(("VoxtralForConditionalGeneration",), "voxtral", _STACK),
    replace(_FLAMINGO, types={**_FLAMINGO.types, _CONVOLUTION: "F32"}),  # trained in BF16
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
