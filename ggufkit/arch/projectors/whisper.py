"""Whisper's encoder, in Qwen2-Audio, Ultravox, Voxtral and Audio Flamingo 3."""

from __future__ import annotations

from ggufkit.arch.metadata import Row, real, uint
from ggufkit.arch.projector import BLOCKS, CONVOLUTIONS, Projector, audio_keys, projector
from ggufkit.arch.tower import Ear, Matrix
from ggufkit.arch.transforms import drop, rename, reshape

_WHISPER: tuple[Row, ...] = (
    uint("/clip.audio.num_mel_bins", lambda config: config.audio.integer("num_mel_bins")),
    real("/clip.audio.attention.layer_norm_epsilon", lambda config: config.audio.get("layer_norm_eps", default=1e-5)),
)


def _whisper(models: tuple[str, ...], kind: str) -> Projector:
    return Projector(
        models=models,
        keys=(*audio_keys(), projector(kind), *_WHISPER),
        transforms=(
            drop(r"^(lm_head|model)\."),
            rename((r"^(?=multi_modal_projector)", "audio.")),
            reshape(r"conv[12]\.bias", lambda tensor, config: (tensor.size, 1)),
        ),
        types={r"^a\.conv1d\.\d+\.weight": "F16", **CONVOLUTIONS},
        blocks=lambda config: config.audio.integer(*BLOCKS),
    )


PROJECTORS = (_whisper(("Qwen2AudioForConditionalGeneration",), "qwen2a"),)

EARS = {
    "qwen2a": Ear(project=(Matrix("mm.a.fc"),), pooled=True, begin="<|audio_bos|>", end="<|audio_eos|>"),
}
