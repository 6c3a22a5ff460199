"""Tiny encoders of images and sound: random weights under the names and shapes that llama.cpp expects, and a model.

write_mmproj("mmproj.gguf", "gemma3")         # a projector of PROJECTORS
write_reader("model.gguf", "gemma3")          # a language model with a vocabulary of characters, that goes with it
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from mmproj_parts import (
    BIAS,
    FFN,
    HEADS,
    INNER,
    LAYERS,
    LIMITS,
    PATCH,
    PATCHES,
    SIDE,
    SIZE,
    TABLE,
    block,
    merger,
)
from recipe_parts import VOCAB, WIDTH, Shapes, linear, norms, real
from tiny_mmproj_more import MORE
from tiny_models import write_tiny

from ggufkit.formats.codec import encode
from ggufkit.formats.table import FORMATS
from ggufkit.gguf.header import Value, ValueType
from ggufkit.gguf.writer import Writer

__all__ = ["EARS", "PROJECTORS", "some_mel", "write_mmproj", "write_reader"]

# Of each: metadata behind "clip.", the tensors of a block, the others, the language model that it goes with.
PROJECTORS: dict[str, tuple[dict[str, Any], Shapes, Shapes, str]] = {
    "gemma3": (
        {"use_gelu": True},
        block(),
        PATCHES
        | BIAS
        | TABLE
        | norms("v.post_ln", bias=True, size=INNER)
        | norms("mm.soft_emb_norm", size=INNER)
        | {"mm.input_projection.weight": (INNER, WIDTH)},
        "gemma3",
    ),
    "idefics3": (
        {"use_gelu": True, "vision.projector.scale_factor": 2, "vision.preproc_image_size": 2 * SIZE},
        block(),
        PATCHES | BIAS | TABLE | norms("v.post_ln", bias=True, size=INNER) | linear("mm.model.fc", WIDTH, 4 * INNER),
        "llama",
    ),
    "qwen2vl_merger": (
        {},
        block(),
        PATCHES
        | {"v.patch_embd.weight.1": (INNER, 3, PATCH, PATCH)}
        | norms("v.post_ln", bias=True, size=INNER)
        | merger("mm.0", "mm.2"),
        "qwen2vl",
    ),
    "qwen2.5vl_merger": (
        {"use_silu": True, "vision.n_wa_pattern": 2},
        block(norm_bias=False, gate=True),
        PATCHES
        | {"v.patch_embd.weight.1": (INNER, 3, PATCH, PATCH)}
        | norms("v.post_ln", size=INNER)
        | merger("mm.0", "mm.2"),
        "qwen2vl",
    ),
    "qwen3vl_merger": (
        {
            "use_gelu": True,
            "vision.spatial_merge_size": 2,
            "vision.is_deepstack_layers": Value(ValueType.ARRAY, [True, False], ValueType.BOOL),
        },
        block(fused=3),
        PATCHES
        | {"v.patch_embd.weight.1": (INNER, 3, PATCH, PATCH)}
        | BIAS
        | TABLE
        | norms("v.post_ln", bias=True, size=INNER)
        | norms("v.deepstack.0.norm", bias=True, size=4 * INNER)
        | merger("v.deepstack.0.fc1", "v.deepstack.0.fc2")
        | merger("mm.0", "mm.2"),
        "qwen3vl",
    ),
    "pixtral": (
        {"use_silu": True, "vision.spatial_merge_size": 2},
        block(norm_bias=False, gate=True, bias=False),
        PATCHES
        | norms("v.pre_ln", size=INNER)
        | norms("mm.input_norm", size=INNER)
        | linear("mm.patch_merger", INNER, 4 * INNER)
        | linear("mm.1", WIDTH, INNER)
        | linear("mm.2", WIDTH, WIDTH)
        | {"v.token_embd.img_break": (WIDTH,)},
        "llama",
    ),
    "glm4v": (
        {"use_silu": True},
        block(norm_bias=False, fused=3, gate=True, bias=False),
        PATCHES
        | {"v.patch_embd.weight.1": (INNER, 3, PATCH, PATCH)}
        | BIAS
        | TABLE
        | norms("v.norm_embd", "v.post_ln", size=INNER)
        | {"mm.patch_merger.weight": (WIDTH, INNER, 2, 2), "mm.patch_merger.bias": (WIDTH,)}
        | linear("mm.model.fc", WIDTH, WIDTH)
        | norms("mm.post_norm", bias=True)
        | linear("mm.gate", FFN, WIDTH)
        | linear("mm.up", FFN, WIDTH)
        | linear("mm.down", WIDTH, FFN),
        "qwen2vl",
    ),
    "lfm2": (
        {"use_gelu": True, "vision.projector.scale_factor": 2, "vision.image_size": 256},
        block(),
        PATCHES
        | BIAS
        | TABLE
        | norms("v.post_ln", bias=True, size=INNER)
        | norms("mm.input_norm", bias=True, size=4 * INNER)
        | linear("mm.1", WIDTH, 4 * INNER, True)
        | linear("mm.2", WIDTH, WIDTH, True),
        "llama",
    ),
    "minicpmv4_6": (
        {
            "use_gelu": True,
            "vision.projector.scale_factor": 4,
            "vision.wa_layer_indexes": Value(ValueType.ARRAY, [0], ValueType.INT32),
        },
        block(),
        PATCHES
        | BIAS
        | {"v.position_embd.weight": (70 * 70, INNER)}
        | norms("v.post_ln", "v.vit_merger.ln1", bias=True, size=INNER)
        | norms("v.vit_merger.ds_ln", "mm.input_norm", bias=True, size=4 * INNER)
        | linear("v.vit_merger.attn_q", INNER, INNER, True)
        | linear("v.vit_merger.attn_k", INNER, INNER, True)
        | linear("v.vit_merger.attn_v", INNER, INNER, True)
        | linear("v.vit_merger.attn_out", INNER, INNER, True)
        | linear("v.vit_merger.ds_ffn_up", FFN, 4 * INNER, True)
        | linear("v.vit_merger.ds_ffn_down", INNER, FFN, True)
        | linear("mm.up", FFN, 4 * INNER, True)
        | linear("mm.down", WIDTH, FFN, True),
        "llama",
    ),
    "gemma4v": (
        {},
        block(norm_bias=False, gate=True, bias=False)
        | norms("attn_q_norm", "attn_k_norm", size=INNER // HEADS)
        | norms("attn_post_norm", "ffn_post_norm", size=INNER)
        | {f"{name}.{limit}": (1,) for name in ("attn_q", "ffn_down") for limit in LIMITS},
        PATCHES
        | {"v.position_embd.weight": (2, 64, INNER), "v.std_bias": (INNER,), "v.std_scale": (INNER,)}
        | linear("mm.input_projection", WIDTH, INNER),
        "llama",
    ),
}
EXTRA: Shapes = {"v.class_embd": (INNER,), "v.position_embd.weight": (SIDE * SIDE + 1, INNER)}
PIXELS = {"vision.image_min_pixels": 4 * 16 * 16, "vision.image_max_pixels": 64 * 16 * 16}
PROJECTORS |= {
    "llama4": (
        {"use_gelu": True, "vision.projector.scale_factor": 2},
        block(),
        {"v.patch_embd.weight": (INNER, 3 * PATCH * PATCH)}
        | EXTRA
        | norms("v.pre_ln", "v.post_ln", bias=True, size=INNER)
        | linear("mm.model.mlp.1", FFN, 4 * INNER)
        | linear("mm.model.mlp.2", FFN, FFN)
        | linear("mm.model.fc", WIDTH, FFN),
        "llama",
    ),
    "internvl": (
        {"use_gelu": True, "vision.projector.scale_factor": 2},
        block() | {"ls1.weight": (INNER,), "ls2.weight": (INNER,)},
        PATCHES
        | BIAS
        | EXTRA
        | norms("mm.model.mlp.0", bias=True, size=4 * INNER)
        | linear("mm.model.mlp.1", WIDTH, 4 * INNER, True)
        | linear("mm.model.mlp.3", WIDTH, WIDTH, True),
        "llama",
    ),
    "kimivl": (
        {"use_gelu": True, "vision.projector.scale_factor": 2},
        block(),
        PATCHES
        | BIAS
        | TABLE
        | norms("v.post_ln", "mm.input_norm", bias=True, size=INNER)
        | linear("mm.1", FFN, 4 * INNER, True)
        | linear("mm.2", WIDTH, FFN, True),
        "llama",
    ),
    "dots_ocr": (
        {"use_silu": True, "vision.projector.scale_factor": 2, "vision.image_size": 0, **PIXELS},
        block(norm_bias=False, fused=3, gate=True, bias=False),
        PATCHES
        | BIAS
        | norms("v.pre_ln", "mm.post_norm", size=INNER)
        | norms("mm.input_norm", bias=True, size=INNER)
        | linear("mm.0", FFN, 4 * INNER, True)
        | linear("mm.2", WIDTH, FFN, True),
        "llama",
    ),
    "paddleocr": (
        {"use_gelu": True, **PIXELS},
        block(),
        PATCHES
        | BIAS
        | TABLE
        | norms("v.post_ln", "mm.input_norm", bias=True, size=INNER)
        | linear("mm.1", FFN, 4 * INNER, True)
        | linear("mm.2", WIDTH, FFN, True),
        "qwen2vl",
    ),
    "lightonocr": (
        {"use_silu": True, "vision.spatial_merge_size": 2},
        block(norm_bias=False, gate=True, bias=False),
        PATCHES
        | norms("v.pre_ln", size=INNER)
        | norms("mm.input_norm", size=INNER)
        | linear("mm.patch_merger", INNER, 4 * INNER)
        | linear("mm.1", WIDTH, INNER)
        | linear("mm.2", WIDTH, WIDTH),
        "llama",
    ),
    "janus_pro": (
        {"use_gelu": True},
        block(),
        PATCHES
        | BIAS
        | TABLE
        | norms("v.post_ln", bias=True, size=INNER)
        | linear("mm.0", WIDTH, INNER, True)
        | linear("mm.1", WIDTH, WIDTH, True),
        "llama",
    ),
    "phi4": (
        {"use_gelu": True, **PIXELS},
        block(),
        PATCHES | BIAS | TABLE | linear("mm.0", WIDTH, INNER, True) | linear("mm.2", WIDTH, WIDTH, True),
        "llama",
    ),
    "cohere2v": (
        {"use_gelu": True, "vision.projector.scale_factor": 2, "vision.preproc_max_tiles": 6},
        block(),
        PATCHES
        | BIAS
        | TABLE
        | norms("v.post_ln", bias=True, size=INNER)
        | linear("mm.1", 2 * FFN, 4 * INNER, True)
        | linear("mm.2", WIDTH, FFN, True),
        "llama",
    ),
}
PROJECTORS |= MORE
RESAMPLED = 256  # numbers of a row: heads have 128
RESAMPLER: tuple[dict[str, Any], Shapes, Shapes, str] = (
    {
        "use_gelu": True,
        "minicpmv_version": Value(ValueType.INT32, 3),
        "minicpmv_query_num": 64,
        "vision.projection_dim": RESAMPLED,
    },
    block(),
    PATCHES
    | BIAS
    | {"v.position_embd.weight": (70 * 70, INNER), "resampler.query": (64, RESAMPLED)}
    | {"resampler.pos_embed_k": (SIDE * SIDE, RESAMPLED)}
    | norms("v.post_ln", bias=True, size=INNER)
    | norms("resampler.ln_q", "resampler.ln_kv", "resampler.ln_post", bias=True, size=RESAMPLED)
    | linear("resampler.kv", RESAMPLED, INNER)
    | linear("resampler.attn.q", RESAMPLED, RESAMPLED, True)
    | linear("resampler.attn.k", RESAMPLED, RESAMPLED, True)
    | linear("resampler.attn.v", RESAMPLED, RESAMPLED, True)
    | linear("resampler.attn.out", RESAMPLED, RESAMPLED, True)
    | linear("resampler.proj", RESAMPLED, RESAMPLED),
    "",
)
NETWORK = linear("mm.a.mlp.1", FFN, INNER, True) | linear("mm.a.mlp.2", WIDTH, FFN, True)
STACK = {"audio.projector.stack_factor": 4}
EARS: dict[str, tuple[dict[str, Any], Shapes]] = {
    "qwen2a": ({}, linear("mm.a.fc", WIDTH, INNER, True)),
    "voxtral": (STACK, linear("mm.a.mlp.1", FFN, 4 * INNER) | linear("mm.a.mlp.2", WIDTH, FFN)),
    "musicflamingo": ({}, NETWORK),
    "ultravox": (
        STACK,
        linear("mm.a.mlp.1", 2 * FFN, 4 * INNER)
        | linear("mm.a.mlp.2", WIDTH, FFN)
        | norms("mm.a.norm_pre", size=4 * INNER)
        | norms("mm.a.norm_mid", size=FFN),
    ),
    "glma": (
        STACK,
        linear("mm.a.mlp.1", FFN, 4 * INNER, True)
        | linear("mm.a.mlp.2", WIDTH, FFN, True)
        | norms("mm.a.norm_pre", bias=True, size=INNER)
        | {"v.boi": (WIDTH,), "v.eoi": (WIDTH,)},
    ),
    "meralion": (
        {"audio.projector.stack_factor": 15},
        norms("mm.a.norm_pre", bias=True, size=15 * INNER)
        | linear("mm.a.mlp.0", FFN, 15 * INNER, True)
        | linear("mm.a.mlp.1", FFN, FFN, True)
        | linear("mm.a.mlp.2", FFN, FFN, True)
        | linear("mm.a.mlp.3", WIDTH, FFN, True),
    ),
}
MEL = 80
HEARD: Shapes = {
    "a.conv1d.1.weight": (INNER, MEL, 3),
    "a.conv1d.1.bias": (INNER, 1),
    "a.conv1d.2.weight": (INNER, INNER, 3),
    "a.conv1d.2.bias": (INNER, 1),
    "a.position_embd.weight": (1500, INNER),
    **norms("a.post_ln", bias=True, size=INNER),
}
for _kind, (_keys, _shapes) in EARS.items():
    _block = {name: shape for name, shape in block().items() if name != "attn_k.bias"}
    PROJECTORS[_kind] = _keys, _block, HEARD | _shapes, "llama"
CONFORMER: Shapes = {
    **norms(
        "ffn_norm", "ffn_post_norm", "ffn_norm_1", "ffn_post_norm_1", "attn_pre_norm", "attn_post_norm", size=INNER
    ),
    **norms("conv_norm", "norm_conv", "ln2", size=INNER),
    **linear("ffn_up", FFN, INNER),
    **linear("ffn_down", INNER, FFN),
    **linear("ffn_up_1", FFN, INNER),
    **linear("ffn_down_1", INNER, FFN),
    **{f"attn_{name}.weight": (INNER, INNER) for name in ("q", "k", "v", "out", "k_rel")},
    "per_dim_scale.weight": (INNER // HEADS,),
    "conv_pw1.weight": (2 * INNER, INNER),
    "conv_pw2.weight": (INNER, INNER),
    "conv_dw.weight": (INNER, 5),
    **{f"{name}.{limit}": (1,) for name in ("attn_q", "ffn_down_1", "conv_pw1") for limit in LIMITS},
}
EARS["gemma4a"] = EARS["qwen3a"] = EARS["gemma4ua"] = {}, {}
PROJECTORS["gemma4ua"] = (
    {"audio.block_count": 0, "audio.attention.head_count": 0, "audio.feed_forward_length": 0},
    {},
    linear("mm.a.input_projection", WIDTH, 640),
    "llama",
)
PROJECTORS["qwen3a"] = (
    {},
    block(),
    {f"a.conv2d.{i}.weight": (6, 1 if i == 1 else 6, 3, 3) for i in (1, 2, 3)}
    | {f"a.conv2d.{i}.bias": (6, 1, 1) for i in (1, 2, 3)}
    | linear("a.conv_out", INNER, MEL // 8 * 6)
    | {"a.position_embd.weight": (1500, INNER)}
    | norms("a.post_ln", bias=True, size=INNER)
    | NETWORK,
    "llama",
)
PROJECTORS["gemma4a"] = (
    {},
    CONFORMER,
    {"a.conv1d.0.weight": (12, 1, 3, 3), "a.conv1d.1.weight": (6, 12, 3, 3)}
    | norms("a.conv1d.0.norm", size=12)
    | norms("a.conv1d.1.norm", size=6)
    | linear("a.input_projection", INNER, MEL // 4 * 6)
    | linear("a.pre_encode.out", FFN, INNER, True)
    | linear("mm.a.input_projection", WIDTH, FFN),
    "llama",
)
FAST = 512  # llama.cpp has waves of so many numbers
EARS["lfm2a"] = {}, {}
PROJECTORS["lfm2a"] = (
    {"audio.embedding_length": FAST, "audio.block_count": 1},
    {
        **norms("ffn_norm", "ffn_norm_1", "ln1", "ln2", "norm_conv", "conv_norm", bias=True, size=FAST),
        **linear("ffn_up", FFN, FAST, True),
        **linear("ffn_down", FAST, FFN, True),
        **linear("ffn_up_1", FFN, FAST, True),
        **linear("ffn_down_1", FAST, FFN, True),
        **linear("attn_q", FAST, FAST, True),
        **linear("attn_k", FAST, FAST, True),
        **linear("attn_v", FAST, FAST, True),
        **linear("attn_out", FAST, FAST, True),
        "pos_bias_u": (HEADS, FAST // HEADS),
        "pos_bias_v": (HEADS, FAST // HEADS),
        **linear("linear_pos", FAST, FAST),
        **linear("conv_pw1", 2 * FAST, FAST, True),
        **linear("conv_pw2", FAST, FAST, True),
        **linear("conv_dw", FAST, 9),
        "conv_dw.bias": (FAST,),
    },
    {f"a.conv1d.{i}.weight": (6, 1, 3, 3) for i in (0, 2, 5)}
    | {f"a.conv1d.{i}.weight": (6, 6, 1, 1) for i in (3, 6)}
    | {f"a.conv1d.{i}.bias": (6, 1, 1) for i in (0, 2, 3, 5, 6)}
    | linear("a.pre_encode.out", FAST, MEL // 8 * 6, True)
    | {"a.position_embd.weight": (1500, WIDTH)}
    | norms("mm.a.mlp.0", bias=True, size=FAST)
    | linear("mm.a.mlp.1", FFN, FAST, True)
    | linear("mm.a.mlp.3", WIDTH, FFN, True),
    "llama",
)


def some_mel() -> np.ndarray:
    """Half a minute's spectrogram of nothing: (MEL, 3000) float32."""
    return np.random.default_rng(0).standard_normal((MEL, 3000)).astype(np.float32) / 2


def write_mmproj(
    path: str | os.PathLike[str],
    kind: str,
    format: str = "F32",
    metadata: Mapping[str, Any] | None = None,
    tensors: Mapping[str, tuple[int, ...] | None] | None = None,
) -> None:
    """Write the encoder of a projector; `metadata` and `tensors` change it, None for what is to be missing."""
    keys, layer, whole, _ = RESAMPLER if kind == "resampler" else PROJECTORS[kind]
    three = [Value(ValueType.ARRAY, [x] * 3, ValueType.FLOAT32) for x in (0.5, 0.25)]
    sense, at = ("audio", "a") if kind in EARS else ("vision", "v")
    own: dict[str, Any] = {"num_mel_bins": MEL} if kind in EARS else {"image_size": SIZE, "patch_size": PATCH}
    if kind not in EARS:
        own |= {"image_mean": three[0], "image_std": three[1]}
    own |= {"embedding_length": INNER, "feed_forward_length": FFN, "block_count": LAYERS, "projection_dim": WIDTH}
    own |= {"attention.head_count": HEADS, "attention.layer_norm_epsilon": real(1e-6)}
    pairs = {
        "general.architecture": "clip",
        "general.type": "mmproj",
        f"clip.has_{sense}_encoder": True,
        "clip.projector_type": kind,
        **{f"clip.{sense}.{key}": value for key, value in own.items()},
        **{f"clip.{key}": value for key, value in keys.items()},
        **(metadata or {}),
    }
    layers = keys.get(f"{sense}.block_count", LAYERS)
    shapes = {f"{at}.blk.{i}.{name}": shape for i in range(layers) for name, shape in layer.items()} | whole
    shapes = {name: shape for name, shape in (shapes | dict(tensors or {})).items() if shape is not None}
    rng = np.random.default_rng(sum(map(ord, kind)))

    def format_of(name: str) -> str:
        small = any(part in name for part in ("embd", "norm", "bias", "gamma"))
        if small or len(shapes[name]) < 2:
            return "F32"
        half = kind == "gemma3nv" or ("conv1d" in name and kind not in ("gemma4a", "lfm2a"))
        return "F16" if half else format

    infos = [(name, shape, FORMATS[format_of(name)]) for name, shape in shapes.items()]
    with Writer(path, {k: v for k, v in pairs.items() if v is not None}, infos, force=True) as writer:
        for name, shape in shapes.items():
            values = rng.standard_normal(shape) / np.sqrt(max(1, np.prod(shape[1:]) if len(shape) > 1 else 4))
            values = values + 1 if "norm" in name or "ln" in name else values
            if name.endswith(LIMITS):
                values = np.full(shape, 0.7 if name.endswith("max") else -0.9)
            writer.write(name, 0, encode(values.astype(np.float32).reshape(-1, shape[-1]), format_of(name)))


_SPECIALS = ["<unk>", "<s>", "</s>", "\n", "\n\n", "<fake_token_around_image>", "<global-img>", "<|img_thumbnail|>"]
_SPECIALS += ["<image>", "</image>", "<slice>", "</slice>"]
_LEFT_OUT = "$%&*ABCFHJKLOPQRTUVXYZ"  # so that the others fit
# What some put around images and sound, as one token, instead of those of others.
_OWN_SPECIALS = {
    "voxtral": ["[BEGIN_AUDIO]"],
    "paddleocr": ["<|IMAGE_START|>", "<|IMAGE_END|>"],
    "cohere2v": ["<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_LINE_BREAK|>"],
    "step3vl": ["<im_start>", "<im_end>", "<patch_start>", "<patch_end>", "<patch_newline>"],
    "hunyuanvl": ["<｜hy_place▁holder▁no▁100｜>", "<｜hy_place▁holder▁no▁101｜>"],
    "kimik25": ["<|begin_of_image|>", "<|end_of_image|>"],
}


def write_reader(path: str | os.PathLike[str], kind: str, template: str | None = None) -> None:
    """Write the language model that goes with a projector, with a chat template or none."""
    architecture = PROJECTORS[kind][3]
    own = _OWN_SPECIALS.get(kind, [])
    tokens = [
        *_SPECIALS[: len(_SPECIALS) - len(own)],
        *own,
        "▁",
        *(chr(c) for c in range(33, 127) if chr(c) not in _LEFT_OUT),
    ]
    tokens += [f"<{i}>" for i in range(len(tokens), VOCAB)]
    types = [2, 3, 3, *[4] * (len(_SPECIALS) - 3), *[1] * (len(tokens) - len(_SPECIALS))]
    more = {"qwen3vl.n_deepstack_layers": 1} if architecture == "qwen3vl" else {}
    write_tiny(
        path,
        architecture,
        metadata={
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.tokens": Value(ValueType.ARRAY, tokens, ValueType.STRING),
            "tokenizer.ggml.scores": Value(ValueType.ARRAY, [0.0] * len(tokens), ValueType.FLOAT32),
            "tokenizer.ggml.token_type": Value(ValueType.ARRAY, types, ValueType.INT32),
            "tokenizer.ggml.bos_token_id": 1,
            "tokenizer.ggml.eos_token_id": 2,
            "tokenizer.chat_template": template,
            f"{architecture}.context_length": 512,
            **more,
        },
    )
