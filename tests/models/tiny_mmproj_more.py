"""More tiny encoders of images: see `tiny_mmproj`."""

from __future__ import annotations

from typing import Any

import numpy as np
from mmproj_parts import BIAS, FFN, HEADS, INNER, PATCH, PATCHES, SIDE, TABLE, block, merger
from recipe_parts import WIDTH, Shapes, linear, norms, real

from ggufkit.gguf.header import Value, ValueType

PIXELS = {"vision.image_min_pixels": 4 * 16 * 16, "vision.image_max_pixels": 64 * 16 * 16}
TWO: Shapes = {f"v.patch_embd.weight{end}": (INNER, 3, PATCH, PATCH) for end in ("", ".1")}

SAM_WIDTH, SAM_HEADS, SAM_LAYERS = 16, 2, 3
SAM: Shapes = {
    **norms("pre_ln", "post_ln", bias=True, size=SAM_WIDTH),
    **linear("attn.qkv", 3 * SAM_WIDTH, SAM_WIDTH, True),
    **linear("attn.out", SAM_WIDTH, SAM_WIDTH, True),
    "mlp.lin1.weight": (24, SAM_WIDTH),
    "mlp.lin1.bias": (24,),
    **linear("mlp.lin2", SAM_WIDTH, 24, True),
}


def _distances(layer: int) -> Shapes:
    """Of blocks with windows of 14 patches, and of those that see all."""
    count = 127 if layer == 2 else 27
    return {f"v.sam.blk.{layer}.attn.pos_{axis}.weight": (count, SAM_WIDTH // SAM_HEADS) for axis in "hw"}


_GROUPED = linear("attn_q", INNER, INNER, True) | linear("attn_k", INNER // HEADS, INNER, True)
_GROUPED |= linear("attn_v", INNER // HEADS, INNER, True)
SAM_KEYS = {
    "use_gelu": True,
    "vision.window_size": 14,
    "vision.sam.block_count": SAM_LAYERS,
    "vision.sam.embedding_length": SAM_WIDTH,
    "vision.sam.head_count": SAM_HEADS,
}
SAM_TENSORS: Shapes = (
    {"v.sam.patch_embd.weight": (16, 3, 16, 16), "v.sam.patch_embd.bias": (16,)}
    | {"v.sam.pos_embd.weight": (1, 64, 64, 16)}
    | {f"v.sam.blk.{i}.{name}": shape for i in range(SAM_LAYERS) for name, shape in SAM.items()}
    | {name: shape for i in range(SAM_LAYERS) for name, shape in _distances(i).items()}
    | {"v.sam.neck.0.weight": (8, 16, 1, 1), "v.sam.neck.2.weight": (8, 8, 3, 3)}
    | norms("v.sam.neck.1", "v.sam.neck.3", bias=True, size=8)
    | {"v.sam.net_2.weight": (12, 8, 3, 3), "v.sam.net_3.weight": (INNER, 12, 3, 3)}
)


def some_tiles() -> np.ndarray:
    """Two tiles of noise: (2, 3, 640, 640) float32."""
    pixels = np.random.default_rng(0).integers(0, 256, (2, 40, 40, 3), np.uint8).repeat(16, 1).repeat(16, 2)
    return np.ascontiguousarray(((pixels / np.float32(255) - 0.5) / 0.25).transpose(0, 3, 1, 2), np.float32)


def _edge(channels: int, inner: int) -> Shapes:
    found: Shapes = {"conv_exp.weight": (inner, channels, 3, 3), "conv_pwl.weight": (channels, inner, 1, 1)}
    return found | norms("bn1", size=inner) | norms("bn2", size=channels)


def _inverted(i: int, channels: int, out: int, side: int) -> Shapes:
    found: Shapes = {
        f"{i}.dw_start.conv.weight": (channels, 1, 5, 5),
        f"{i}.pw_exp.conv.weight": (2 * channels, channels, 1, 1),
        f"{i}.dw_mid.conv.weight": (2 * channels, 1, side, side),
        f"{i}.pw_proj.conv.weight": (out, 2 * channels, 1, 1),
        f"{i}.layer_scale.gamma": (1, out, 1, 1),
    }
    found |= norms(f"{i}.dw_start.bn", size=channels) | norms(f"{i}.pw_proj.bn", size=out)
    return found | norms(f"{i}.pw_exp.bn", f"{i}.dw_mid.bn", size=2 * channels)


def _looking(i: int, channels: int) -> Shapes:
    """Two heads of queries, one of keys and values."""
    found: Shapes = {f"{i}.attn.query.proj.weight": (16, channels, 1, 1), f"{i}.layer_scale.gamma": (1, channels, 1, 1)}
    found[f"{i}.attn.output.proj.weight"] = channels, 16, 1, 1
    for kind in ("key", "value"):
        found[f"{i}.attn.{kind}.down_conv.weight"] = channels, 1, 3, 3
        found[f"{i}.attn.{kind}.proj.weight"] = 8, channels, 1, 1
        found |= norms(f"{i}.attn.{kind}.norm", size=channels)
    return found | norms(f"{i}.norm", size=channels)


MORE: dict[str, tuple[dict[str, Any], Shapes, Shapes, str]] = {
    "kimik25": (
        {"use_gelu": True, "vision.projector.scale_factor": 2, **PIXELS},
        block(fused=3),
        PATCHES
        | BIAS
        | {"v.position_embd.weight": (SIDE, SIDE + 2, INNER)}
        | norms("v.post_ln", "mm.input_norm", bias=True, size=INNER)
        | linear("mm.1", FFN, 4 * INNER, True)
        | linear("mm.2", WIDTH, FFN, True),
        "llama",
    ),
    "ling3vl": (
        {"use_gelu": True, "vision.spatial_merge_size": 2},
        block(fused=3),
        TWO | TABLE | norms("v.post_ln", "mm.input_norm", bias=True, size=INNER) | merger("mm.0", "mm.2"),
        "qwen2vl",
    ),
    "exaone4_5": (
        {"use_silu": True, "vision.n_wa_pattern": 2, "vision.attention.head_count_kv": 1, **PIXELS},
        block(norm_bias=False, fused=2, gate=True),
        TWO | norms("v.post_ln", size=INNER) | merger("mm.0", "mm.2"),
        "llama",
    ),
    "hunyuanvl": (
        {"use_gelu": True, "vision.spatial_merge_size": 2, **PIXELS},
        block(),
        PATCHES
        | BIAS
        | TABLE
        | norms("mm.pre_norm", size=INNER)
        | norms("mm.post_norm")
        | {"mm.0.weight": (FFN, INNER, 2, 2), "mm.0.bias": (FFN,)}
        | {"mm.2.weight": (2 * FFN, FFN, 1, 1), "mm.2.bias": (2 * FFN,)}
        | linear("mm.model.fc", WIDTH, 2 * FFN, True)
        | {"v.image_newline": (2 * FFN,), "mm.image_begin": (WIDTH,), "mm.image_end": (WIDTH,)},
        "hunyuan_vl",
    ),
    "youtuvl": (
        {
            "use_gelu": True,
            "vision.spatial_merge_size": 2,
            "vision.window_size": 32,
            "vision.wa_layer_indexes": Value(ValueType.ARRAY, [1], ValueType.INT32),
        },
        block(),
        {"v.patch_embd.weight": (INNER, 3 * PATCH * PATCH)}
        | BIAS
        | norms("v.post_ln", bias=True, size=INNER)
        | norms("mm.input_norm", size=INNER)
        | merger("mm.0", "mm.2"),
        "qwen2vl",
    ),
    "cogvlm": (
        {},
        block(fused=3),
        PATCHES
        | BIAS
        | {"v.class_embd": (1, INNER), "v.position_embd.weight": (SIDE * SIDE + 1, INNER)}
        | linear("mm.model.fc", WIDTH, INNER)
        | norms("mm.post_fc_norm", bias=True)
        | linear("mm.up", FFN, WIDTH)
        | linear("mm.gate", FFN, WIDTH)
        | linear("mm.down", WIDTH, FFN)
        | {"v.boi": (1, 1, WIDTH), "v.eoi": (1, 1, WIDTH)},
        "llama",
    ),
    "glm5v": (
        {"use_silu": True, "vision.spatial_merge_size": 2, "vision.swiglu_clamp": real(0.25), **PIXELS},
        block(norm_bias=False, fused=3, gate=True) | norms("attn_q_norm", "attn_k_norm", size=INNER // HEADS),
        TWO
        | BIAS
        | norms("v.post_ln", size=INNER)
        | {"mm.patch_merger.weight": (WIDTH, INNER, 2, 2), "mm.patch_merger.bias": (WIDTH,)}
        | linear("mm.model.fc", WIDTH, WIDTH)
        | norms("mm.post_norm", bias=True)
        | linear("mm.gate", FFN, WIDTH)
        | linear("mm.up", FFN, WIDTH)
        | linear("mm.down", WIDTH, FFN),
        "qwen2vl",
    ),
    "muse-glimmer": (
        {"vision.spatial_merge_size": 2},
        block(),
        PATCHES
        | {"v.position_embd.weight": (16, INNER)}
        | norms("v.pre_ln", "v.post_ln", bias=True, size=INNER)
        | linear("mm.0", FFN, 4 * INNER)
        | linear("mm.1", FFN, FFN)
        | linear("mm.2", WIDTH, FFN),
        "llama",
    ),
    "minimax_m3": (
        {"use_gelu": True, "vision.spatial_merge_size": 2},
        block(),
        TWO
        | norms("v.pre_ln", bias=True, size=INNER)
        | linear("mm.1", FFN, INNER, True)
        | linear("mm.2", WIDTH, FFN, True)
        | linear("mm.merger.fc1", FFN, 4 * WIDTH, True)
        | linear("mm.merger.fc2", WIDTH, FFN, True),
        "llama",
    ),
    "nemotron_v2_vl": (
        {"use_gelu": True, "vision.projector.scale_factor": 2},
        block(fused=3),
        PATCHES
        | TABLE
        | {"v.class_embd": (3, INNER)}
        | norms("mm.model.mlp.0", size=4 * INNER)
        | linear("mm.model.mlp.1", FFN, 4 * INNER)
        | linear("mm.model.mlp.3", WIDTH, FFN),
        "llama",
    ),
    "gemma4uv": (
        {
            "vision.projector.scale_factor": 2,
            "vision.block_count": 0,
            "vision.attention.head_count": 0,
            "vision.feed_forward_length": 0,
        },
        {},
        {"v.patch_embd.weight": (INNER, 3 * (2 * PATCH) ** 2)}
        | BIAS
        | {"v.position_embd.weight": (2, 64, INNER)}
        | norms("v.patch_norm.1", bias=True, size=3 * (2 * PATCH) ** 2)
        | norms("v.patch_norm.2", "v.patch_norm.3", bias=True, size=INNER)
        | linear("mm.input_projection", WIDTH, INNER),
        "gemma3",
    ),
    "deepseekocr": (
        {
            "vision.feed_forward_length": 8,  # as converters have it, which does not use it
            **SAM_KEYS,
        },
        block(fused=3),
        SAM_TENSORS
        | {"v.class_embd": (INNER,), "v.position_embd.weight": (257, INNER)}
        | norms("v.pre_ln", bias=True, size=INNER)
        | linear("mm.model.fc", WIDTH, 2 * INNER, True)
        | {"v.image_newline": (WIDTH,), "v.view_seperator": (1, WIDTH)},
        "llama",
    ),
    "deepseekocr2": (
        {"vision.attention.head_count_kv": 1, **SAM_KEYS},
        block(norm_bias=False, gate=True, bias=False) | _GROUPED,
        SAM_TENSORS
        | {"v.resample_query_768.weight": (144, INNER), "v.resample_query_1024.weight": (256, INNER)}
        | norms("v.post_ln", size=INNER)
        | linear("mm.model.fc", WIDTH, INNER, True)
        | {"v.view_seperator": (1, WIDTH)},
        "llama",
    ),
    "step3vl": (
        {"vision.projector.scale_factor": 4, "vision.image_size": 224, "vision.patch_size": 14},
        block(fused=3) | {"ls1.weight": (INNER,), "ls2.weight": (INNER,)},
        {"v.patch_embd.weight": (INNER, 3, 14, 14)}
        | TABLE
        | norms("v.pre_ln", bias=True, size=INNER)
        | {"mm.0.weight": (FFN, INNER, 3, 3), "mm.0.bias": (FFN,)}
        | {"mm.1.weight": (2 * FFN, FFN, 3, 3), "mm.1.bias": (2 * FFN,)}
        | linear("mm.model.fc", WIDTH, 2 * FFN),
        "llama",
    ),
    "gemma3nv": (
        {"vision.image_size": 512, "vision.patch_size": 2, "vision.embedding_length": WIDTH},
        {},
        {"v.conv_stem.conv.weight": (8, 3, 3, 3), "v.conv_stem.conv.bias": (1, 8, 1, 1)}
        | norms("v.conv_stem.bn", size=8)
        | {f"v.blk.0.{i}.{name}": shape for i in (0, 1) for name, shape in _edge(8, 16).items()}
        | {f"v.blk.1.{name}": shape for name, shape in (_inverted(0, 8, 12, 3) | _inverted(1, 12, 12, 5)).items()}
        | {f"v.blk.2.{name}": shape for name, shape in (_inverted(0, 12, 16, 5) | _looking(1, 16)).items()}
        | {f"v.blk.3.{name}": shape for name, shape in (_inverted(0, 16, 20, 3) | _looking(1, 20)).items()}
        | {"v.msfa.ffn.pw_exp.conv.weight": (40, 36, 1, 1), "v.msfa.ffn.pw_proj.conv.weight": (WIDTH, 40, 1, 1)}
        | norms("v.msfa.ffn.pw_exp.bn", size=40)
        | norms("v.msfa.ffn.pw_proj.bn", "v.msfa.norm", "mm.soft_emb_norm")
        | linear("mm.input_projection", WIDTH, WIDTH),
        "llama",
    ),
}
