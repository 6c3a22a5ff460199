"""Make `fixtures/heard.json`: what transformers hears with encoders of sound that llama.cpp's mtmd refuses to run.

    python tools/generate/make_heard.py

Its environment must have PyTorch and transformers. Of Voxtral mtmd expects other rows than it computes, and aborts.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), *(str(ROOT / place) for place in ("tests/models", "tests/oracles"))]

import numpy as np
import torch
from tiny_mmproj import FFN, HEADS, INNER, LAYERS, MEL, some_mel, write_mmproj
from transformers import VoxtralConfig, VoxtralEncoderConfig
from transformers.models.voxtral.modeling_voxtral import VoxtralEncoder

import ggufkit

_NAMES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_out": "self_attn.out_proj",
    "ln1": "self_attn_layer_norm",
    "ln2": "final_layer_norm",
    "ffn_up": "fc1",
    "ffn_down": "fc2",
}
_WHOLE = {"conv1d.1": "conv1", "conv1d.2": "conv2", "position_embd": "embed_positions", "post_ln": "layer_norm"}


def voxtral() -> np.ndarray:
    """Every 75th row: (5, WIDTH)."""
    with tempfile.TemporaryDirectory() as scratch:
        write_mmproj(Path(scratch) / "mmproj.gguf", "voxtral")
        with ggufkit.open(Path(scratch) / "mmproj.gguf") as gguf:
            weights = {name: tensor.floats().reshape(tensor.shape) for name, tensor in gguf.tensors.items()}
    config = VoxtralEncoderConfig(
        hidden_size=INNER,
        intermediate_size=FFN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_mel_bins=MEL,
        max_source_positions=1500,
    )
    assert VoxtralConfig().projector_hidden_act == "gelu"
    encoder, state = VoxtralEncoder(config).eval(), {}
    for name, values in weights.items():
        if not name.startswith("a."):
            continue
        stem, kind = name.removeprefix("a.").rsplit(".", 1)
        if stem.startswith("blk."):
            _, layer, part = stem.split(".")
            stem = f"layers.{layer}.{_NAMES[part]}"
        else:
            stem = _WHOLE[stem]
        state[f"{stem}.{kind}"] = torch.from_numpy(values.reshape(-1) if kind == "bias" else values.copy())
    encoder.load_state_dict(state)
    with torch.inference_mode():
        rows = encoder(torch.from_numpy(some_mel())[None]).last_hidden_state[0].reshape(-1, 4 * INNER)
        inner = torch.nn.functional.gelu(rows @ torch.from_numpy(weights["mm.a.mlp.1.weight"]).T)
        return (inner @ torch.from_numpy(weights["mm.a.mlp.2.weight"]).T).numpy()[::75]


def main() -> None:
    rounded = [[round(float(x), 6) for x in row] for row in voxtral()]
    (ROOT / "fixtures" / "heard.json").write_text(json.dumps({"voxtral": rounded}) + "\n")


if __name__ == "__main__":
    main()
