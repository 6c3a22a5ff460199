"""More tiny checkpoints of models that see or hear; see `tiny_encoders`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tiny_checkpoints import Shapes, Tiny, linear, norm

__all__ = [
    "INNER",
    "LAYERS",
    "PATCH",
    "SIDE",
    "SIGLIP",
    "SIGLIP_NAMES",
    "TEXT",
    "TOWERS",
    "WIDTH",
    "layer",
    "siglip",
    "tiny",
]

WIDTH, INNER, LAYERS, PATCH, SIDE = 32, 48, 4, 4, 4

TEXT = {
    "hidden_size": WIDTH,
    "intermediate_size": INNER,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 260,
    "pad_token_id": 0,
}
_PICTURES = {"image_mean": [0.5, 0.25, 0.125], "image_std": [0.5, 0.5, 0.25], "size": {"height": 16, "width": 16}}
SIGLIP = {
    "hidden_size": WIDTH,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "image_size": PATCH * SIDE,
    "patch_size": PATCH,
    "layer_norm_eps": 1e-6,
    "hidden_act": "gelu",
}


def tiny(class_name: str, model_type: str, part: dict[str, Any], shapes: Shapes, **more: Any) -> Tiny:
    """A checkpoint of a class with a vision_config or audio_config; `pictures` goes into preprocessor_config.json."""
    pictures = {**_PICTURES, **more.pop("pictures", {})}
    values = {"architectures": [class_name], "model_type": model_type, **part, **more}
    return Tiny(values, dict(shapes).items(), files={"preprocessor_config.json": pictures})


def layer(at: str, names: dict[str, str], bias: bool = True, ffn: int = INNER) -> Shapes:
    """A block with separate queries, keys, values; `names` of its parts."""
    for part in ("norm1", "norm2"):
        yield from norm(f"{at}.{names[part]}", WIDTH, bias)
    for part in "qkvo":
        yield from linear(f"{at}.{names[part]}", WIDTH, WIDTH, bias)
    yield from linear(f"{at}.{names['up']}", ffn, WIDTH, bias)
    yield from linear(f"{at}.{names['down']}", WIDTH, ffn, bias)


SIGLIP_NAMES = {
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    **{part: f"self_attn.{part}_proj" for part in "qkv"},
    "o": "self_attn.out_proj",
    "up": "mlp.fc1",
    "down": "mlp.fc2",
}
_WHISPER_NAMES = {
    "norm1": "self_attn_layer_norm",
    "norm2": "final_layer_norm",
    **{part: f"self_attn.{part}_proj" for part in "qkv"},
    "o": "self_attn.out_proj",
    "up": "fc1",
    "down": "fc2",
}


def siglip(at: str, names: dict[str, str] = SIGLIP_NAMES, flat: bool = False, head: bool = False) -> Shapes:
    """SigLIP's tower under `at`; `flat` patches are stored as (out, height · width · 3)."""
    patch = (WIDTH, PATCH * PATCH * 3) if flat else (WIDTH, 3, PATCH, PATCH)
    yield f"{at}.embeddings.patch_embedding.weight", patch
    yield f"{at}.embeddings.patch_embedding.bias", (WIDTH,)
    yield f"{at}.embeddings.position_embedding.weight", (SIDE * SIDE, WIDTH)
    for i in range(LAYERS):
        yield from layer(f"{at}.encoder.layers.{i}", names)
    yield from norm(f"{at}.post_layernorm", WIDTH, True)
    if head:
        yield f"{at}.head.probe", (1, 1, WIDTH)


def internvl(transformers: bool) -> Tiny:
    def shapes() -> Shapes:
        at = "model.vision_tower" if transformers else "vision_model"
        patch = "patch_embeddings.projection" if transformers else "patch_embedding"
        yield f"{at}.embeddings.{'cls_token' if transformers else 'class_embedding'}", (1, 1, WIDTH)
        yield f"{at}.embeddings.{patch}.weight", (WIDTH, 3, PATCH, PATCH)
        yield f"{at}.embeddings.{patch}.bias", (WIDTH,)
        positions = "position_embeddings" if transformers else "position_embedding"
        yield f"{at}.embeddings.{positions}", (1, SIDE * SIDE + 1, WIDTH)
        for i in range(LAYERS):
            if transformers:
                block = f"{at}.encoder.layer.{i}"
                names = {"norm1": "layernorm_before", "norm2": "layernorm_after", "up": "mlp.fc1", "down": "mlp.fc2"}
                names |= {part: f"attention.{part}_proj" for part in "qkv"} | {"o": "attention.projection_layer"}
                yield from layer(block, names)
                for part in ("lambda_1", "lambda_2"):
                    yield f"{block}.{part}", (WIDTH,)
                continue
            block = f"{at}.encoder.layers.{i}"
            for part in ("norm1", "norm2"):
                yield from norm(f"{block}.{part}", WIDTH, True)
            for part in ("q_norm", "k_norm"):
                yield from norm(f"{block}.attn.{part}")
            yield from linear(f"{block}.attn.qkv", 3 * WIDTH, WIDTH, True)
            yield from linear(f"{block}.attn.proj", WIDTH, WIDTH, True)
            yield from linear(f"{block}.mlp.fc1", INNER, WIDTH, True)
            yield from linear(f"{block}.mlp.fc2", WIDTH, INNER, True)
            for part in ("ls1", "ls2"):
                yield f"{block}.{part}", (WIDTH,)
        joined = ("layer_norm", "linear_1", "linear_2") if transformers else ("0", "1", "3")
        at = "model.multi_modal_projector" if transformers else "mlp1"
        yield from norm(f"{at}.{joined[0]}", 4 * WIDTH, True)
        yield from linear(f"{at}.{joined[1]}", WIDTH, 4 * WIDTH, True)
        yield from linear(f"{at}.{joined[2]}", WIDTH, WIDTH, True)

    size = {"image_size": [16, 16], "patch_size": [4, 4]} if transformers else {}
    vision = {**SIGLIP, **size, "architectures": ["InternVisionModel"]}
    more = {} if transformers else {"min_dynamic_patch": 1, "max_dynamic_patch": 12}
    parts = {"vision_config": vision, "llm_config": TEXT, "text_config": TEXT}
    return tiny("InternVLChatModel", "internvl_chat", parts, shapes(), downsample_ratio=0.5, **more)


def kimivl() -> Tiny:
    def shapes() -> Shapes:
        at = "vision_tower"
        yield f"{at}.patch_embed.proj.weight", (WIDTH, 3, PATCH, PATCH)
        yield f"{at}.patch_embed.proj.bias", (WIDTH,)
        yield f"{at}.patch_embed.pos_emb.weight", (SIDE, SIDE, WIDTH)
        for i in range(LAYERS):
            block = f"{at}.encoder.blocks.{i}"
            for part in ("norm0", "norm1"):
                yield from norm(f"{block}.{part}", WIDTH, True)
            yield from linear(f"{block}.wqkv", 3 * WIDTH, WIDTH, True)
            yield from linear(f"{block}.wo", WIDTH, WIDTH, True)
            yield from linear(f"{block}.mlp.fc0", INNER, WIDTH, True)
            yield from linear(f"{block}.mlp.fc1", WIDTH, INNER, True)
        yield from norm(f"{at}.encoder.final_layernorm", WIDTH, True)
        yield from norm("multi_modal_projector.pre_norm", WIDTH, True)
        yield from linear("multi_modal_projector.linear_1", 4 * WIDTH, 4 * WIDTH, True)
        yield from linear("multi_modal_projector.linear_2", WIDTH, 4 * WIDTH, True)

    parts = {"vision_config": {**SIGLIP, "model_type": "moonvit"}, "text_config": TEXT}
    return tiny("KimiVLForConditionalGeneration", "kimi_vl", parts, shapes())


def dots_ocr() -> Tiny:
    def shapes() -> Shapes:
        at = "vision_tower"
        yield f"{at}.patch_embed.patchifier.proj.weight", (WIDTH, 3, PATCH, PATCH)
        yield f"{at}.patch_embed.patchifier.proj.bias", (WIDTH,)
        yield from norm(f"{at}.patch_embed.patchifier.norm")
        for i in range(LAYERS):
            block = f"{at}.blocks.{i}"
            for part in ("norm1", "norm2"):
                yield from norm(f"{block}.{part}")
            yield from linear(f"{block}.attn.qkv", 3 * WIDTH, WIDTH)
            yield from linear(f"{block}.attn.proj", WIDTH, WIDTH)
            yield from linear(f"{block}.mlp.fc1", INNER, WIDTH)
            yield from linear(f"{block}.mlp.fc2", WIDTH, INNER)
            yield from linear(f"{block}.mlp.fc3", INNER, WIDTH)
        yield from norm(f"{at}.post_trunk_norm")
        yield from norm(f"{at}.merger.ln_q", WIDTH, True)
        yield from linear(f"{at}.merger.mlp.0", 4 * WIDTH, 4 * WIDTH, True)
        yield from linear(f"{at}.merger.mlp.2", WIDTH, 4 * WIDTH, True)

    vision = {
        "embed_dim": WIDTH,
        "hidden_size": WIDTH,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 2,
        "patch_size": PATCH,
        "rms_norm_eps": 1e-5,
        "spatial_merge_size": 2,
    }
    pixels = {"min_pixels": 3136, "max_pixels": 11289600}
    return tiny("DotsOCRForCausalLM", "dots_ocr", {"vision_config": vision, **TEXT}, shapes(), pictures=pixels)


def paddle_ocr() -> Tiny:
    def shapes() -> Shapes:
        yield from siglip("visual.vision_model", head=True)
        yield "visual.vision_model.embeddings.packing_position_embedding.weight", (64, WIDTH)
        yield from norm("mlp_AR.pre_norm", WIDTH, True)
        yield from linear("mlp_AR.linear_1", 4 * WIDTH, 4 * WIDTH, True)
        yield from linear("mlp_AR.linear_2", WIDTH, 4 * WIDTH, True)

    vision = {**SIGLIP, "architectures": ["PaddleOCRVisionModel"]}
    pixels = {"min_pixels": 147384, "max_pixels": 2822400}
    parts = {"vision_config": vision, **TEXT}
    return tiny("PaddleOCRVLForConditionalGeneration", "paddleocr_vl", parts, shapes(), pictures=pixels)


def lighton_ocr() -> Tiny:
    def shapes() -> Shapes:
        at = "model.vision_encoder"
        yield f"{at}.patch_conv.weight", (WIDTH, 3, PATCH, PATCH)
        yield from norm(f"{at}.ln_pre")
        for i in range(LAYERS):
            block = f"{at}.transformer.layers.{i}"
            for part in ("attention_norm", "ffn_norm"):
                yield from norm(f"{block}.{part}")
            for part in "qkvo":
                yield from linear(f"{block}.attention.{part}_proj", WIDTH, WIDTH)
            for part, rows, columns in (("gate", INNER, WIDTH), ("up", INNER, WIDTH), ("down", WIDTH, INNER)):
                yield from linear(f"{block}.feed_forward.{part}_proj", rows, columns)
        at = "model.vision_projection"
        yield from norm(f"{at}.norm")
        yield from linear(f"{at}.patch_merger.merging_layer", WIDTH, 4 * WIDTH)
        yield from linear(f"{at}.linear_1", WIDTH, WIDTH)
        yield from linear(f"{at}.linear_2", WIDTH, WIDTH)
        yield "lm_head.weight", (260, WIDTH)

    vision = {**SIGLIP, "model_type": "pixtral", "hidden_act": "silu", "head_dim": WIDTH // 2}
    del vision["layer_norm_eps"]
    parts = {"vision_config": vision, "text_config": TEXT}
    return tiny("LightOnOCRForConditionalGeneration", "mistral3", parts, shapes(), spatial_merge_size=2)


def janus() -> Tiny:
    def shapes() -> Shapes:
        yield from siglip("model.vision_model", {**SIGLIP_NAMES, "o": "self_attn.projection_layer"})
        yield from linear("model.aligner.fc1", WIDTH, WIDTH, True)
        yield from linear("model.aligner.hidden_layers.0", WIDTH, WIDTH, True)
        yield "model.vqmodel.encoder.conv_in.weight", (4, 3, 3, 3)
        yield "model.generation_head.vision_head.weight", (16, WIDTH)

    vision = {**SIGLIP, "mlp_ratio": 1.5}
    del vision["intermediate_size"]
    return tiny("JanusForConditionalGeneration", "janus", {"vision_config": vision, "text_config": TEXT}, shapes())


def phi4v() -> Tiny:
    def shapes() -> Shapes:
        yield from siglip("model.vision_tower.vision_tower.vision_model", flat=True, head=True)
        yield from linear("model.mm_projector.0", WIDTH, WIDTH, True)
        yield from linear("model.mm_projector.2", WIDTH, WIDTH, True)

    vision = {key: value for key, value in SIGLIP.items() if key not in ("image_size", "patch_size")}
    patches = {"patch_size": PATCH, "min_num_patches": 16, "max_num_patches": 64}
    return tiny("Phi4ForCausalLMV", "phi4-siglip", {"vision_config": vision, **TEXT}, shapes(), pictures=patches)


def cohere2v() -> Tiny:
    def shapes() -> Shapes:
        yield from siglip("model.vision_tower")
        yield from linear("model.multi_modal_projector.linear_1", 2 * INNER, 4 * WIDTH, True)
        yield from linear("model.multi_modal_projector.linear_2", WIDTH, INNER, True)

    parts = {"vision_config": SIGLIP, "text_config": TEXT}
    tiles = {"max_patches": 12}
    name = "Cohere2VisionForConditionalGeneration"
    return tiny(name, "cohere2_vision", parts, shapes(), downsample_factor=2, pictures=tiles)


_WHISPER = {
    "d_model": WIDTH,
    "encoder_ffn_dim": INNER,
    "encoder_layers": LAYERS,
    "encoder_attention_heads": 2,
    "num_mel_bins": 8,
    "max_source_positions": 16,
}


def _whisper(at: str, positions: bool = True) -> Shapes:
    for i in range(LAYERS):
        for name, shape in layer(f"{at}.layers.{i}", _WHISPER_NAMES):
            if not name.endswith("k_proj.bias"):
                yield name, shape
    yield f"{at}.conv1.weight", (WIDTH, 8, 3)
    yield f"{at}.conv1.bias", (WIDTH,)
    yield f"{at}.conv2.weight", (WIDTH, WIDTH, 3)
    yield f"{at}.conv2.bias", (WIDTH,)
    if positions:
        yield f"{at}.embed_positions.weight", (16, WIDTH)


def ultravox() -> Tiny:
    def shapes() -> Shapes:
        yield from _whisper("audio_tower")
        yield from norm("audio_tower.layer_norm", WIDTH, True)
        yield from linear("multi_modal_projector.linear_1", 2 * INNER, 8 * WIDTH)
        yield from linear("multi_modal_projector.linear_2", WIDTH, INNER)
        yield from norm("multi_modal_projector.ln_pre", 8 * WIDTH)
        yield from norm("multi_modal_projector.ln_mid", INNER)

    return tiny("UltravoxModel", "ultravox", {"audio_config": _WHISPER, "text_config": TEXT}, shapes(), stack_factor=8)


def glm_asr() -> Tiny:
    def shapes() -> Shapes:
        at = "audio_encoder"
        yield from _whisper(f"{at}.whisper")
        yield from norm(f"{at}.layer_norm", WIDTH, True)
        yield from linear(f"{at}.adapting.0", INNER, 4 * WIDTH, True)
        yield from linear(f"{at}.adapting.2", WIDTH, INNER, True)
        yield f"{at}.audio_bos_eos_token.weight", (2, WIDTH)
        yield "model.embed_tokens.weight", (260, WIDTH)

    parts = {"whisper_config": _WHISPER, "lm_config": TEXT, **TEXT}
    return tiny("GlmasrModel", "glmasr", parts, shapes(), merge_factor=4)


def meralion() -> Tiny:
    def shapes() -> Shapes:
        yield from _whisper("speech_encoder")
        yield from norm("speech_encoder.layer_norm", WIDTH, True)
        yield from norm("ln_speech", 15 * WIDTH, True)
        for name, rows, columns in (
            ("mlp_adapter.0", INNER, 15 * WIDTH),
            ("gate_proj", INNER, INNER),
            ("pool_proj", INNER, INNER),
            ("out_proj", WIDTH, INNER),
        ):
            yield from linear(f"speech_audio_adapter.{name}", rows, columns, True)
        yield "text_decoder.model.norm.weight", (WIDTH,)

    parts = {"speech_config": _WHISPER, "text_config": TEXT}
    return tiny("MERaLiON2ForConditionalGeneration", "meralion2", parts, shapes(), speech_mlp_scale_factor=15)


def qwen25_omni() -> Tiny:
    def shapes() -> Shapes:
        at = "thinker.visual"
        yield f"{at}.patch_embed.proj.weight", (WIDTH, 3, 2, PATCH, PATCH)
        for i in range(LAYERS):
            block = f"{at}.blocks.{i}"
            for part in ("norm1", "norm2"):
                yield from norm(f"{block}.{part}")
            for part in "qkv":
                yield from linear(f"{block}.attn.{part}", WIDTH, WIDTH, True)
            yield from linear(f"{block}.attn.proj", WIDTH, WIDTH, True)
            for part, rows, columns in (("gate", INNER, WIDTH), ("up", INNER, WIDTH), ("down", WIDTH, INNER)):
                yield from linear(f"{block}.mlp.{part}_proj", rows, columns, True)
        yield from norm(f"{at}.merger.ln_q")
        yield from linear(f"{at}.merger.mlp.0", 4 * WIDTH, 4 * WIDTH, True)
        yield from linear(f"{at}.merger.mlp.2", WIDTH, 4 * WIDTH, True)
        at = "thinker.audio_tower"
        yield from _whisper(at, positions=False)
        yield from norm(f"{at}.ln_post", WIDTH, True)
        yield from linear(f"{at}.proj", WIDTH, WIDTH, True)
        yield f"{at}.audio_bos_eos_token.weight", (2, WIDTH)
        yield "thinker.model.norm.weight", (WIDTH,)
        yield "talker.model.norm.weight", (WIDTH,)

    vision = {
        "depth": LAYERS,
        "hidden_size": WIDTH,
        "intermediate_size": INNER,
        "num_heads": 2,
        "patch_size": PATCH,
        "fullatt_block_indexes": [1, 3],
    }
    parts = {"thinker_config": {"vision_config": vision, "audio_config": _WHISPER, "text_config": TEXT}}
    return tiny("Qwen2_5OmniModel", "qwen2_5_omni", parts, shapes())


def _chunked(at: str) -> Shapes:
    """What hears in Qwen3-ASR and Qwen3-Omni."""
    for i in range(LAYERS):
        yield from layer(f"{at}.layers.{i}", _WHISPER_NAMES)
    for i, channels in enumerate((1, 6, 6)):
        yield f"{at}.conv2d{i + 1}.weight", (6, channels, 3, 3)
        yield f"{at}.conv2d{i + 1}.bias", (6,)
    yield from linear(f"{at}.conv_out", WIDTH, 6)
    yield from norm(f"{at}.ln_post", WIDTH, True)
    yield from linear(f"{at}.proj1", WIDTH, WIDTH, True)
    yield from linear(f"{at}.proj2", WIDTH, WIDTH, True)


def qwen3_asr() -> Tiny:
    parts = {"thinker_config": {"audio_config": _WHISPER, "text_config": TEXT}}
    name = "Qwen3ASRForConditionalGeneration"
    return tiny(name, "qwen3_asr_thinker", parts, _chunked("thinker.audio_tower"))


def qwen3_omni() -> Tiny:
    def shapes() -> Shapes:
        at = "thinker.visual"
        yield f"{at}.patch_embed.proj.weight", (WIDTH, 3, 2, PATCH, PATCH)
        yield f"{at}.patch_embed.proj.bias", (WIDTH,)
        yield f"{at}.pos_embed.weight", (SIDE * SIDE, WIDTH)
        for i in range(LAYERS):
            block = f"{at}.blocks.{i}"
            for part in ("norm1", "norm2"):
                yield from norm(f"{block}.{part}", WIDTH, True)
            yield from linear(f"{block}.attn.qkv", 3 * WIDTH, WIDTH, True)
            yield from linear(f"{block}.attn.proj", WIDTH, WIDTH, True)
            yield from linear(f"{block}.mlp.linear_fc1", INNER, WIDTH, True)
            yield from linear(f"{block}.mlp.linear_fc2", WIDTH, INNER, True)
        for part, size in (("merger", WIDTH), ("merger_list.0", 4 * WIDTH)):
            yield from norm(f"{at}.{part}.ln_q", size, True)
            yield from linear(f"{at}.{part}.mlp.0", 4 * WIDTH, 4 * WIDTH, True)
            yield from linear(f"{at}.{part}.mlp.2", WIDTH, 4 * WIDTH, True)
        yield from _chunked("thinker.audio_tower")
        yield "talker.model.norm.weight", (WIDTH,)

    vision = {
        "depth": LAYERS,
        "hidden_size": WIDTH,
        "intermediate_size": INNER,
        "num_heads": 2,
        "num_position_embeddings": SIDE * SIDE,
        "patch_size": PATCH,
        "spatial_merge_size": 2,
        "deepstack_visual_indexes": [1],
    }
    parts = {"thinker_config": {"vision_config": vision, "audio_config": _WHISPER, "text_config": TEXT}}
    return tiny("Qwen3OmniMoeForConditionalGeneration", "qwen3_omni", parts, shapes())


def lfm2_audio() -> Tiny:
    layers = 8  # so that there are numbers for six convolutions

    def shapes() -> Shapes:
        at = "conformer.pre_encode"
        for i in (0, 2, 3, 5, 6):
            yield f"{at}.conv.{i}.weight", (6, 6, 1, 1) if i in (3, 6) else (6, 1, 3, 3)
            yield f"{at}.conv.{i}.bias", (6,)
        yield from linear(f"{at}.out", WIDTH, 6, True)
        for i in range(layers):
            block = f"conformer.layers.{i}"
            for part in ("norm_feed_forward1", "norm_self_att", "norm_conv", "norm_feed_forward2", "norm_out"):
                yield from norm(f"{block}.{part}", WIDTH, True)
            for part in ("feed_forward1", "feed_forward2"):
                yield from linear(f"{block}.{part}.linear1", INNER, WIDTH, True)
                yield from linear(f"{block}.{part}.linear2", WIDTH, INNER, True)
            for part in ("q", "k", "v", "out"):
                yield from linear(f"{block}.self_attn.linear_{part}", WIDTH, WIDTH, True)
            yield from linear(f"{block}.self_attn.linear_pos", WIDTH, WIDTH)
            for part in "uv":
                yield f"{block}.self_attn.pos_bias_{part}", (2, WIDTH // 2)
            yield f"{block}.conv.pointwise_conv1.weight", (2 * WIDTH, WIDTH, 1)
            yield f"{block}.conv.pointwise_conv1.bias", (2 * WIDTH,)
            yield f"{block}.conv.depthwise_conv.weight", (WIDTH, 1, 9)
            yield f"{block}.conv.depthwise_conv.bias", (WIDTH,)
            for part in ("weight", "bias", "running_mean", "running_var"):
                yield f"{block}.conv.batch_norm.{part}", (WIDTH,)
            yield f"{block}.conv.batch_norm.num_batches_tracked", ()
            yield f"{block}.conv.pointwise_conv2.weight", (WIDTH, WIDTH, 1)
            yield f"{block}.conv.pointwise_conv2.bias", (WIDTH,)
        yield from norm("audio_adapter.model.0", WIDTH, True)
        yield from linear("audio_adapter.model.1", INNER, WIDTH, True)
        yield from linear("audio_adapter.model.3", WIDTH, INNER, True)
        yield "audio_embedding.embedding.weight", (20, WIDTH)
        yield from norm("audio_embedding.embedding_norm")
        yield from linear("audio_embedding.to_logits", 20, WIDTH)
        yield "depthformer.layers.0.norm.weight", (WIDTH,)
        yield "lfm.embedding_norm.weight", (WIDTH,)

    encoder = {"d_model": WIDTH, "n_layers": layers, "n_heads": 2, "feat_in": 8}
    return tiny("Lfm2AudioForConditionalGeneration", "lfm2_audio", {"encoder": encoder, "lfm": TEXT}, shapes())


def _clipped(name: str, rows: int, columns: int) -> Shapes:
    """A matrix with limits."""
    yield f"{name}.linear.weight", (rows, columns)
    for limit in ("input_min", "input_max", "output_min", "output_max"):
        yield f"{name}.{limit}", ()


def gemma4() -> Tiny:
    """Of E2B and E4B, which see and hear."""

    def shapes() -> Shapes:
        at = "model.vision_tower"
        yield f"{at}.patch_embedder.input_proj.weight", (WIDTH, PATCH * PATCH * 3)
        yield f"{at}.patch_embedder.position_embedding_table", (2, 16, WIDTH)
        for i in range(LAYERS):
            block = f"{at}.encoder.layers.{i}"
            for part in "qkvo":
                yield from _clipped(f"{block}.self_attn.{part}_proj", WIDTH, WIDTH)
            for part in ("q_norm", "k_norm"):
                yield from norm(f"{block}.self_attn.{part}", WIDTH // 2)
            for part in ("input", "post_attention", "pre_feedforward", "post_feedforward"):
                yield from norm(f"{block}.{part}_layernorm")
            for part, rows, columns in (("gate", INNER, WIDTH), ("up", INNER, WIDTH), ("down", WIDTH, INNER)):
                yield from _clipped(f"{block}.mlp.{part}_proj", rows, columns)
        yield from linear("model.embed_vision.embedding_projection", WIDTH, WIDTH)
        at = "model.audio_tower"
        for i, (rows, channels) in enumerate(((12, 1), (6, 12))):
            yield f"{at}.subsample_conv_projection.layer{i}.conv.weight", (rows, channels, 3, 3)
            yield from norm(f"{at}.subsample_conv_projection.layer{i}.norm", rows)
        yield from linear(f"{at}.subsample_conv_projection.input_proj_linear", WIDTH, 2 * 6)
        for i in range(LAYERS):
            block = f"{at}.layers.{i}"
            for part in ("feed_forward1", "feed_forward2"):
                yield from _clipped(f"{block}.{part}.ffw_layer_1", 4 * WIDTH, WIDTH)
                yield from _clipped(f"{block}.{part}.ffw_layer_2", WIDTH, 4 * WIDTH)
                yield from norm(f"{block}.{part}.pre_layer_norm")
                yield from norm(f"{block}.{part}.post_layer_norm")
            yield f"{block}.self_attn.per_dim_scale", (WIDTH // 2,)
            for part in ("q_proj", "k_proj", "v_proj", "post"):
                yield from _clipped(f"{block}.self_attn.{part}", WIDTH, WIDTH)
            yield from linear(f"{block}.self_attn.relative_k_proj", WIDTH, WIDTH)
            yield from _clipped(f"{block}.lconv1d.linear_start", 2 * WIDTH, WIDTH)
            yield from _clipped(f"{block}.lconv1d.linear_end", WIDTH, WIDTH)
            yield f"{block}.lconv1d.depthwise_conv1d.weight", (WIDTH, 1, 5)
            for part in ("lconv1d.pre_layer_norm", "lconv1d.conv_norm", "norm_pre_attn", "norm_post_attn", "norm_out"):
                yield from norm(f"{block}.{part}")
        yield from linear(f"{at}.output_proj", INNER, WIDTH, True)
        yield from linear("model.embed_audio.embedding_projection", WIDTH, INNER)

    sizes = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": 2}
    vision = {**sizes, "intermediate_size": INNER, "patch_size": PATCH, "rms_norm_eps": 1e-6}
    audio = {**sizes, "rms_norm_eps": 1e-6, "input_feat_size": 8}
    parts = {"vision_config": vision, "audio_config": audio, "text_config": TEXT}
    return tiny("Gemma4ForConditionalGeneration", "gemma4_e", parts, shapes())


TOWERS: dict[str, Callable[[], Tiny]] = {
    "internvl": lambda: internvl(False),
    "interns1": lambda: internvl(True),
    "kimivl": kimivl,
    "dotsocr": dots_ocr,
    "paddleocr": paddle_ocr,
    "lightonocr": lighton_ocr,
    "janus": janus,
    "phi4v": phi4v,
    "cohere2v": cohere2v,
    "ultravox": ultravox,
    "glmasr": glm_asr,
    "meralion": meralion,
    "gemma4": gemma4,
    "lfm2audio": lfm2_audio,
    "qwen25omni": qwen25_omni,
    "qwen3asr": qwen3_asr,
    "qwen3omni": qwen3_omni,
}
