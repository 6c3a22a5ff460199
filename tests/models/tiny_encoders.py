"""Tiny checkpoints of models that see or hear, as far as `convert --mmproj` reads them: encoders without a text model.

`fixtures/encoders.json` says what llama.cpp's converter makes of each; tools/generate/make_encoder_goldens.py wrote it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path

from tiny_checkpoints import Shapes, Tiny, linear, norm
from tiny_sights import SIGHTS
from tiny_towers import INNER, PATCH, SIDE, TEXT, TOWERS, WIDTH, tiny

__all__ = ["COMPUTED", "ENCODERS", "WAVES", "digest"]

import ggufkit

LAYERS = 3


def glm4v(class_name: str, model_type: str, ocr: bool = False, more: dict[str, float] | None = None) -> Tiny:
    def shapes() -> Shapes:
        at = "model.visual"
        for i in range(LAYERS):
            for name in ("norm1", "norm2"):
                yield from norm(f"{at}.blocks.{i}.{name}")
            yield from linear(f"{at}.blocks.{i}.attn.qkv", 3 * WIDTH, WIDTH, ocr)
            yield from linear(f"{at}.blocks.{i}.attn.proj", WIDTH, WIDTH, ocr)
            for name, rows, columns in (("gate", INNER, WIDTH), ("up", INNER, WIDTH), ("down", WIDTH, INNER)):
                yield from linear(f"{at}.blocks.{i}.mlp.{name}_proj", rows, columns, ocr)
            if ocr:
                for name in ("q_norm", "k_norm"):
                    yield from norm(f"{at}.blocks.{i}.attn.{name}", WIDTH // 2)
        yield f"{at}.patch_embed.proj.weight", (WIDTH, 3, 2, PATCH, PATCH)
        yield f"{at}.patch_embed.proj.bias", (WIDTH,)
        yield f"{at}.downsample.weight", (WIDTH, WIDTH, 2, 2)
        yield f"{at}.downsample.bias", (WIDTH,)
        if not ocr:
            yield f"{at}.embeddings.position_embedding.weight", (SIDE * SIDE, WIDTH)
            yield from norm(f"{at}.post_conv_layernorm")
        yield from norm(f"{at}.post_layernorm")
        yield from linear(f"{at}.merger.proj", WIDTH, WIDTH)
        yield from norm(f"{at}.merger.post_projection_norm")
        yield f"{at}.merger.post_projection_norm.bias", (WIDTH,)
        for name, rows, columns in (("gate", INNER, WIDTH), ("up", INNER, WIDTH), ("down", WIDTH, INNER)):
            yield from linear(f"{at}.merger.{name}_proj", rows, columns)

    vision = {
        "model_type": f"{model_type}_vision",
        "depth": LAYERS,
        "hidden_size": WIDTH,
        "intermediate_size": INNER,
        "num_heads": 2,
        "image_size": PATCH * SIDE,
        "patch_size": PATCH,
        "out_hidden_size": WIDTH,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
    }
    text = {"model_type": f"{model_type}_text", **TEXT}
    vision |= more or {}
    pictures = {"patch_size": PATCH, "merge_size": 2, "min_image_tokens": 4, "max_image_tokens": 64}
    return tiny(class_name, model_type, {"vision_config": vision, "text_config": text}, shapes(), pictures=pictures)


def llama4() -> Tiny:
    def shapes() -> Shapes:
        at = "vision_model"
        for i in range(LAYERS):
            block = f"{at}.model.layers.{i}"
            for name in ("input_layernorm", "post_attention_layernorm"):
                yield from norm(f"{block}.{name}")
                yield f"{block}.{name}.bias", (WIDTH,)
            for name in "qkvo":
                yield from linear(f"{block}.self_attn.{name}_proj", WIDTH, WIDTH, True)
            yield from linear(f"{block}.mlp.fc1", INNER, WIDTH, True)
            yield from linear(f"{block}.mlp.fc2", WIDTH, INNER, True)
        for name in ("layernorm_pre", "layernorm_post"):
            yield from norm(f"{at}.{name}")
            yield f"{at}.{name}.bias", (WIDTH,)
        yield f"{at}.class_embedding", (WIDTH,)
        yield f"{at}.positional_embedding_vlm", (SIDE * SIDE + 1, WIDTH)
        yield from linear(f"{at}.patch_embedding.linear", WIDTH, 3 * PATCH * PATCH)
        yield from linear(f"{at}.vision_adapter.mlp.fc1", WIDTH, 4 * WIDTH)
        yield from linear(f"{at}.vision_adapter.mlp.fc2", WIDTH, WIDTH)
        yield from linear("multi_modal_projector.linear_1", WIDTH, WIDTH)

    vision = {
        "model_type": "llama4_vision_model",
        "hidden_size": WIDTH,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 2,
        "image_size": PATCH * SIDE,
        "patch_size": PATCH,
        "pixel_shuffle_ratio": 0.5,
        "norm_eps": 1e-5,
        "hidden_act": "gelu",
    }
    text = {"model_type": "llama4_text", **TEXT}
    return tiny("Llama4ForConditionalGeneration", "llama4", {"vision_config": vision, "text_config": text}, shapes())


def whisper(class_name: str, model_type: str, text: str, stack: int, bias: bool) -> Tiny:
    def shapes() -> Shapes:
        at = "audio_tower"
        for i in range(LAYERS):
            for name in ("self_attn_layer_norm", "final_layer_norm"):
                yield from norm(f"{at}.layers.{i}.{name}")
                yield f"{at}.layers.{i}.{name}.bias", (WIDTH,)
            for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
                yield from linear(f"{at}.layers.{i}.self_attn.{name}", WIDTH, WIDTH, name != "k_proj")
            yield from linear(f"{at}.layers.{i}.fc1", 4 * WIDTH, WIDTH, True)
            yield from linear(f"{at}.layers.{i}.fc2", WIDTH, 4 * WIDTH, True)
        yield f"{at}.conv1.weight", (WIDTH, 8, 3)
        yield f"{at}.conv1.bias", (WIDTH,)
        yield f"{at}.conv2.weight", (WIDTH, WIDTH, 3)
        yield f"{at}.conv2.bias", (WIDTH,)
        yield f"{at}.embed_positions.weight", (16, WIDTH)
        yield from norm(f"{at}.layer_norm")
        yield f"{at}.layer_norm.bias", (WIDTH,)
        yield from linear("multi_modal_projector.linear_1", WIDTH, stack * WIDTH, bias)
        yield from linear("multi_modal_projector.linear_2", WIDTH, WIDTH, bias)

    audio = {
        "model_type": f"{model_type}_encoder",
        "hidden_size": WIDTH,
        "intermediate_size": 4 * WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 2,
        "num_mel_bins": 8,
        "max_source_positions": 16,
    }
    parts = {"audio_config": audio, "text_config": {"model_type": text, **TEXT}}
    return tiny(class_name, model_type, parts, shapes())


ENCODERS: dict[str, Callable[[], Tiny]] = {
    "glm4v": lambda: glm4v("Glm4vForConditionalGeneration", "glm4v"),
    "glm4vmoe": lambda: glm4v("Glm4vMoeForConditionalGeneration", "glm4v_moe"),
    "glmocr": lambda: glm4v("GlmOcrForConditionalGeneration", "glm_ocr", ocr=True),
    "glm5next": lambda: glm4v("Glm5NextForConditionalGeneration", "glm5_next", ocr=True, more={"swiglu_limit": 10.0}),
    "llama4": llama4,
    "voxtral": lambda: whisper("VoxtralForConditionalGeneration", "voxtral", "llama", 4, False),
    "audioflamingo3": lambda: whisper("AudioFlamingo3ForConditionalGeneration", "audioflamingo3", "qwen2", 1, True),
    **TOWERS,
    **SIGHTS,
}


# What PyTorch computes, and does not round correctly everywhere: sines and cosines, square roots.
WAVES = r"^a\.position_embd\.weight$"
COMPUTED = {
    "qwen25omni": WAVES,
    "qwen3asr": WAVES,
    "qwen3omni": WAVES,
    "lfm2audio": r"\.conv_norm\.(weight|bias)$",
    "d1omni": r"\.conv_norm\.(weight|bias)$",
    "granitespeech": r"\.conv_norm_var\.(weight|bias)$",
    "granitespeechplus": r"\.conv_norm_var\.(weight|bias)$",
}


def digest(path: Path, name: str) -> str:
    """What `encoders.json` says of a file; without what is `COMPUTED`."""
    data = bytearray(path.read_bytes())
    if name in COMPUTED:
        with ggufkit.open(path) as gguf:
            for one in [one for one in gguf.tensors if re.search(COMPUTED[name], one)]:
                start = gguf.file_offset(one)
                data[start : start + 4 * gguf.tensors[one].size] = bytes(4 * gguf.tensors[one].size)
    return hashlib.sha256(data).hexdigest()
