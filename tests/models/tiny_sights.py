"""Still more tiny checkpoints of models that see or hear; see `tiny_encoders`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from tiny_checkpoints import Shapes, Tiny, linear, norm
from tiny_towers import INNER, LAYERS, PATCH, SIDE, SIGLIP, SIGLIP_NAMES, TEXT, TOWERS, WIDTH, layer, siglip, tiny

__all__ = ["SIGHTS"]

_PIXELS = {"min_pixels": 256, "max_pixels": 4096}


def _table(at: str, rows: int = SIDE * SIDE) -> Shapes:
    yield f"{at}.weight", (rows, WIDTH)


def _patches(at: str, bias: bool = True, frames: int = 0) -> Shapes:
    yield f"{at}.weight", (WIDTH, 3, *([frames] if frames else []), PATCH, PATCH)
    if bias:
        yield f"{at}.bias", (WIDTH,)


def _fused(at: str, names: dict[str, str], bias: bool = True, norm_bias: bool = True) -> Shapes:
    """A block with fused queries, keys and values; `names` of its parts."""
    for part in ("norm1", "norm2"):
        yield from norm(f"{at}.{names[part]}", WIDTH, norm_bias)
    yield from linear(f"{at}.{names['qkv']}", 3 * WIDTH, WIDTH, bias)
    yield from linear(f"{at}.{names['o']}", WIDTH, WIDTH, bias)
    yield from linear(f"{at}.{names['up']}", INNER, WIDTH, bias)
    yield from linear(f"{at}.{names['down']}", WIDTH, INNER, bias)


_MOON = {"norm1": "norm0", "norm2": "norm1", "qkv": "wqkv", "o": "wo", "up": "mlp.fc0", "down": "mlp.fc1"}


def kimi_k25(class_name: str, model_type: str, projector: tuple[str, str]) -> Tiny:
    def shapes() -> Shapes:
        yield from _patches("vision_tower.patch_embed.proj")
        yield "vision_tower.patch_embed.pos_emb.weight", (SIDE, SIDE + 2, WIDTH)
        for i in range(LAYERS):
            yield from _fused(f"vision_tower.encoder.blocks.{i}", _MOON)
        yield from norm("vision_tower.encoder.final_layernorm", WIDTH, True)
        yield from norm("mm_projector.pre_norm", WIDTH, True)
        yield from linear(f"mm_projector.{projector[0]}", 4 * WIDTH, 4 * WIDTH, True)
        yield from linear(f"mm_projector.{projector[1]}", WIDTH, 4 * WIDTH, True)

    sizes = {"hidden_size": WIDTH, "intermediate_size": INNER, "num_hidden_layers": LAYERS, "num_attention_heads": 2}
    vision = {
        **sizes,  # as transformers call them
        **{f"vt_{name}": size for name, size in sizes.items()},
        "patch_size": PATCH,
        "init_pos_emb_height": SIDE,
        "init_pos_emb_width": SIDE + 2,
        "init_pos_emb_time": 4,
        "merge_kernel_size": [2, 2],
        "projector_hidden_act": "gelu",
        "projector_ln_eps": 1e-5,
    }
    return tiny(class_name, model_type, {"vision_config": vision, "text_config": TEXT}, shapes())


def hunyuan_vl() -> Tiny:
    def shapes() -> Shapes:
        at = "vit"
        yield from _patches(f"{at}.embeddings.patch_embedding")
        yield from _table(f"{at}.embeddings.position_embedding", SIDE * SIDE + 1)
        names = {"norm1": "input_layernorm", "norm2": "post_attention_layernorm"}
        names |= {part: f"self_attn.{part}_proj" for part in "qkvo"}
        names |= {"up": "mlp.dense_h_to_4h", "down": "mlp.dense_4h_to_h"}
        for i in range(LAYERS):
            yield from layer(f"{at}.layers.{i}", names)
        at = "vit.perceive"
        yield from norm(f"{at}.before_rms")
        yield from norm(f"{at}.after_rms")
        yield f"{at}.proj.0.weight", (2 * WIDTH, WIDTH, 2, 2)
        yield f"{at}.proj.0.bias", (2 * WIDTH,)
        yield f"{at}.proj.2.weight", (4 * WIDTH, 2 * WIDTH, 1, 1)
        yield f"{at}.proj.2.bias", (4 * WIDTH,)
        yield f"{at}.image_newline", (4 * WIDTH,)
        for part in ("image_begin", "image_end", "image_sep"):
            yield f"{at}.{part}", (WIDTH,)
        yield from linear(f"{at}.mlp", WIDTH, 4 * WIDTH, True)

    vision = {key: value for key, value in SIGLIP.items() if key not in ("image_size", "layer_norm_eps")}
    vision |= {"max_image_size": 16, "rms_norm_eps": 2e-5}
    parts = {"vision_config": {**vision, "spatial_merge_size": 2}, "text_config": TEXT}
    return tiny("HunYuanVLForConditionalGeneration", "hunyuan_vl", parts, shapes(), pictures=_PIXELS)


def youtu_vl() -> Tiny:
    def shapes() -> Shapes:
        at = "siglip2.vision_model"
        yield from linear(f"{at}.embeddings.patch_embedding", WIDTH, 3 * PATCH * PATCH, True)
        names = {"norm1": "layer_norm1", "norm2": "layer_norm2", "o": "self_attn.out_proj"}
        names |= {part: f"self_attn.{part}_proj" for part in "qkv"} | {"up": "mlp.fc1", "down": "mlp.fc2"}
        for i in range(LAYERS):
            yield from layer(f"{at}.encoder.layers.{i}", names)
        yield from norm(f"{at}.post_layernorm", WIDTH, True)
        yield from norm("merger.ln_q")
        yield from linear("merger.mlp.0", 4 * WIDTH, 4 * WIDTH, True)
        yield from linear("merger.mlp.2", WIDTH, 4 * WIDTH, True)
        yield "model.embed_tokens.weight", (260, WIDTH)
        yield "model.norm.weight", (WIDTH,)

    more = {"window_size": 16, "fullatt_block_indexes": [1, 3], "hidden_act": "gelu_pytorch_tanh"}
    parts = {"vision_config": {**SIGLIP, **more}, **TEXT}
    return tiny("YoutuVLForConditionalGeneration", "youtu_vl", parts, shapes())


def cogvlm() -> Tiny:
    def shapes() -> Shapes:
        at = "model.vision"
        yield f"{at}.patch_embedding.cls_embedding", (1, WIDTH)
        yield from _patches(f"{at}.patch_embedding.proj")
        yield from _table(f"{at}.patch_embedding.position_embedding", SIDE * SIDE + 1)
        names = {"norm1": "input_layernorm", "norm2": "post_attention_layernorm", "up": "mlp.fc1", "down": "mlp.fc2"}
        names |= {"qkv": "attention.query_key_value", "o": "attention.dense"}
        for i in range(LAYERS):
            yield from _fused(f"{at}.transformer.layers.{i}", names)
        at = "model.vision.linear_proj"
        yield from linear(f"{at}.linear_proj", WIDTH, WIDTH)
        yield from norm(f"{at}.norm1", WIDTH, True)
        for part, rows, columns in (("dense_h_to_4h", INNER, WIDTH), ("gate_proj", INNER, WIDTH)):
            yield from linear(f"{at}.{part}", rows, columns)
        yield from linear(f"{at}.dense_4h_to_h", WIDTH, INNER)
        for part in ("boi", "eoi"):
            yield f"model.vision.{part}", (1, 1, WIDTH)
        yield "model.layers.0.mlp.vision_mlp.up_proj.weight", (INNER, WIDTH)

    vision = {("num_heads" if key == "num_attention_heads" else key): value for key, value in SIGLIP.items()}
    return tiny("CogVLMForCausalLM", "cogvlm", {"vision_config": vision, **TEXT}, shapes())


_QWEN = {"norm1": "norm1", "norm2": "norm2", "qkv": "attn.qkv", "o": "attn.proj"}


def exaone45() -> Tiny:
    def shapes() -> Shapes:
        at = "model.visual"
        yield from _patches(f"{at}.patch_embed.proj", bias=False, frames=2)
        for i in range(LAYERS):
            block = f"{at}.blocks.{i}"
            for part in ("norm1", "norm2"):
                yield from norm(f"{block}.{part}")
            yield from linear(f"{block}.attn.qkv", 2 * WIDTH, WIDTH, True)  # four heads of queries, two of the others
            yield from linear(f"{block}.attn.proj", WIDTH, WIDTH, True)
            for part, rows, columns in (("gate", INNER, WIDTH), ("up", INNER, WIDTH), ("down", WIDTH, INNER)):
                yield from linear(f"{block}.mlp.{part}_proj", rows, columns, True)
        yield from norm(f"{at}.merger.ln_q")
        yield from linear(f"{at}.merger.mlp.0", 4 * WIDTH, 4 * WIDTH, True)
        yield from linear(f"{at}.merger.mlp.2", WIDTH, 4 * WIDTH, True)

    vision = {
        "depth": LAYERS,
        "hidden_size": WIDTH,
        "intermediate_size": INNER,
        "num_heads": 4,
        "num_key_value_heads": 2,
        "patch_size": PATCH,
        "window_size": 112,
        "fullatt_block_indexes": [1, 3],
    }
    parts = {"vision_config": vision, "text_config": TEXT}
    return tiny("Exaone4_5_ForConditionalGeneration", "exaone4_5", parts, shapes(), pictures=_PIXELS)


def _qwen3(at: str, bias: bool = True) -> Shapes:
    yield from _patches(f"{at}.patch_embed.proj", bias, frames=2)
    yield from _table(f"{at}.pos_embed")
    for i in range(LAYERS):
        yield from _fused(f"{at}.blocks.{i}", {**_QWEN, "up": "mlp.linear_fc1", "down": "mlp.linear_fc2"})


_QWEN3 = {
    "depth": LAYERS,
    "hidden_size": WIDTH,
    "intermediate_size": INNER,
    "num_heads": 2,
    "num_position_embeddings": SIDE * SIDE,
    "patch_size": PATCH,
    "spatial_merge_size": 2,
}


def qwen3(class_name: str, model_type: str) -> Tiny:
    """What decides with the eyes of Qwen3-VL."""

    def shapes() -> Shapes:
        yield from _qwen3("model.visual")
        yield from norm("model.visual.merger.norm", WIDTH, True)
        yield from linear("model.visual.merger.linear_fc1", 4 * WIDTH, 4 * WIDTH, True)
        yield from linear("model.visual.merger.linear_fc2", WIDTH, 4 * WIDTH, True)

    parts = {"vision_config": _QWEN3, "text_config": {**TEXT, "rms_norm_eps": 1e-5}}
    sizes = {"size": {"shortest_edge": 256, "longest_edge": 4096}}
    return tiny(class_name, model_type, parts, shapes(), pictures=sizes)


def ling3_vl() -> Tiny:
    def shapes() -> Shapes:
        yield from _qwen3("model.visual", bias=False)
        yield from norm("model.visual.merger.norm", WIDTH, True)
        yield from linear("linear_proj.0", WIDTH, 4 * WIDTH, True)
        yield from linear("linear_proj.2", WIDTH, WIDTH, True)

    vision = {**_QWEN3, "disable_merger_proj": True, "out_hidden_size": 4 * WIDTH}
    parts = {"vision_config": vision, "text_config": {**TEXT, "rms_norm_eps": 1e-5}}
    return tiny("BailingMoeV3VLForConditionalGeneration", "bailing_moe_v3_vl", parts, shapes())


def step3_vl(class_name: str) -> Tiny:
    """The sizes are those of Step3-VL-10B, the only ones that the reference takes; those of tensors are not."""

    def shapes() -> Shapes:
        at = "vision_model"
        yield from _patches(f"{at}.conv1", bias=False)
        yield f"{at}.positional_embedding", (SIDE * SIDE, WIDTH)
        yield from norm(f"{at}.ln_pre", WIDTH, True)
        for i in range(2):
            block = f"{at}.transformer.resblocks.{i}"
            for part in ("ln_1", "ln_2"):
                yield from norm(f"{block}.{part}", WIDTH, True)
            yield f"{block}.attn.in_proj_weight", (3 * WIDTH, WIDTH)
            yield f"{block}.attn.in_proj_bias", (3 * WIDTH,)
            yield from linear(f"{block}.attn.out_proj", WIDTH, WIDTH, True)
            yield from linear(f"{block}.mlp.c_fc", INNER, WIDTH, True)
            yield from linear(f"{block}.mlp.c_proj", WIDTH, INNER, True)
            for part in ("ls_1", "ls_2"):
                yield f"{block}.{part}.gamma", (WIDTH,)
        for i, (rows, channels) in enumerate(((2 * WIDTH, WIDTH), (4 * WIDTH, 2 * WIDTH))):
            yield f"{at}.vit_downsampler{i + 1}.weight", (rows, channels, 3, 3)
            yield f"{at}.vit_downsampler{i + 1}.bias", (rows,)
        yield "vit_large_projector.weight", (WIDTH, 4 * WIDTH)
        yield "model.norm.weight", (WIDTH,)

    vision = {"width": 1536, "layers": 47, "heads": 16, "image_size": 728, "patch_size": 14}
    parts = {"vision_config": vision, "text_config": TEXT}
    return tiny(class_name, "step3_vl", parts, shapes(), understand_projector_stride=2)


def minimax_m3() -> Tiny:
    width = 80  # one head, of the size that the reference takes

    def shapes() -> Shapes:
        at = "vision_tower.vision_model"
        yield f"{at}.embeddings.patch_embedding.weight", (width, 3, 2, PATCH, PATCH)
        yield from norm(f"{at}.pre_layrnorm", width, True)
        for i in range(3):
            block = f"{at}.encoder.layers.{i}"
            for part in ("layer_norm1", "layer_norm2"):
                yield from norm(f"{block}.{part}", width, True)
            for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
                yield from linear(f"{block}.self_attn.{part}", width, width, True)
            yield from linear(f"{block}.mlp.fc1", INNER, width, True)
            yield from linear(f"{block}.mlp.fc2", width, INNER, True)
        for i, columns in ((1, width), (2, WIDTH)):
            yield from linear(f"multi_modal_projector.linear_{i}", WIDTH, columns, True)
        for i, columns in ((1, 4 * WIDTH), (2, WIDTH)):
            yield from linear(f"patch_merge_mlp.linear_{i}", WIDTH, columns, True)

    vision = {**SIGLIP, "hidden_size": width, "num_attention_heads": 1, "num_hidden_layers": 3}
    vision["img_token_compression_config"] = {"spatial_merge_size": 2}
    parts = {"vision_config": vision, "text_config": TEXT}
    return tiny("MiniMaxM3SparseForConditionalGeneration", "minimax_m3", parts, shapes())


def muse_glimmer() -> Tiny:
    def shapes() -> Shapes:
        at = "model.vision_tower"
        yield f"{at}.patch_embedder.patch_embedding.weight", (WIDTH, 2 * 3 * PATCH * PATCH)
        yield from _table(f"{at}.patch_embedder.position_embedding_table")
        for part in ("ln_pre", "ln_post"):
            yield from norm(f"{at}.{part}", WIDTH, True)
        names = {"norm1": "norm1", "norm2": "norm2", "o": "attn.proj", "up": "mlp.fc1", "down": "mlp.fc2"}
        names |= {part: f"attn.{part}_proj" for part in "qkv"}
        for i in range(LAYERS):
            yield from layer(f"{at}.layers.{i}", names)
        yield from linear("model.vision_adapter.fc1", INNER, 4 * WIDTH)
        yield from linear("model.vision_adapter.fc2", INNER, INNER)
        yield from linear("model.vision_projection", WIDTH, INNER)

    vision = {**SIGLIP, "pos_emb_height": SIDE, "merge_size": 2, "patch_temporal": 2}
    del vision["image_size"]
    return tiny(
        "MuseGlimmerForConditionalGeneration", "muse_glimmer", {"vision_config": vision, "text_config": TEXT}, shapes()
    )


def _conformer_norms(at: str, names: tuple[str, ...], size: int = WIDTH) -> Shapes:
    for part in names:
        yield from norm(f"{at}.{part}", size, True)


def _batch_norm(at: str, size: int, counted: bool = True) -> Shapes:
    for part in ("weight", "bias", "running_mean", "running_var"):
        yield f"{at}.{part}", (size,)
    if counted:
        yield f"{at}.num_batches_tracked", ()


def granite_speech(plus: bool) -> Tiny:
    layers = 3

    def shapes() -> Shapes:
        yield from linear("encoder.input_linear", WIDTH, 8, True)
        yield from linear("encoder.out", 20, WIDTH, True)
        yield from linear("encoder.out_mid", WIDTH, 20, True)
        for i in range(layers):
            at = f"encoder.layers.{i}"
            for part in ("ff1", "ff2"):
                yield from norm(f"{at}.{part}.pre_norm", WIDTH, True)
                yield from linear(f"{at}.{part}.up_proj", 2 * WIDTH, WIDTH, True)
                yield from linear(f"{at}.{part}.down_proj", WIDTH, 2 * WIDTH, True)
            yield from norm(f"{at}.attn.pre_norm", WIDTH, True)
            yield from linear(f"{at}.attn.to_q", WIDTH, WIDTH)
            yield from linear(f"{at}.attn.to_kv", 2 * WIDTH, WIDTH)
            yield from linear(f"{at}.attn.to_out", WIDTH, WIDTH, True)
            yield f"{at}.attn.rel_pos_emb.weight", (17, WIDTH // 2)
            yield from norm(f"{at}.conv.norm", WIDTH, True)
            yield f"{at}.conv.up_conv.weight", (4 * WIDTH, WIDTH, 1)
            yield f"{at}.conv.up_conv.bias", (4 * WIDTH,)
            yield f"{at}.conv.depth_conv.conv.weight", (2 * WIDTH, 1, 5)
            yield from _batch_norm(f"{at}.conv.batch_norm", 2 * WIDTH)
            yield f"{at}.conv.down_conv.weight", (WIDTH, 2 * WIDTH, 1)
            yield f"{at}.conv.down_conv.bias", (WIDTH,)
            yield from norm(f"{at}.post_norm", WIDTH, True)
        yield "projector.query", (1, 3, WIDTH)
        yield from norm("projector.qformer.layernorm", WIDTH, True)
        for i in range(2):
            yield from _qformer(f"projector.qformer.encoder.layer.{i}", WIDTH, (2 if plus else 1) * WIDTH)
        yield from linear("projector.linear", WIDTH, WIDTH, True)
        yield "language_model.model.norm.weight", (WIDTH,)

    encoder = {
        "hidden_dim": WIDTH,
        "feedforward_mult": 2,
        "num_heads": 2,
        "dim_head": WIDTH // 2,
        "num_layers": layers,
        "input_dim": 8,
        "context_size": 8,
        "conv_kernel_size": 5,
        "conv_expansion_factor": 2,
        "max_pos_emb": 8,
        "output_dim": 20,
        **({"cat_hidden_layers": [1]} if plus else {}),
    }
    name = f"GraniteSpeech{'Plus' if plus else ''}ForConditionalGeneration"
    projector = {"num_attention_heads": 2, "encoder_hidden_size": (2 if plus else 1) * WIDTH, "hidden_size": WIDTH}
    parts = {"encoder_config": encoder, "projector_config": projector, "text_config": {"model_type": "granite", **TEXT}}
    kind = "granite_speech_plus" if plus else "granite_speech"
    return tiny(name, kind, parts, shapes(), window_size=15, downsample_rate=5)


def _qformer(at: str, width: int, seen: int) -> Shapes:
    for part, columns in (("attention", width), ("crossattention", seen)):
        yield from linear(f"{at}.{part}.attention.query", width, width, True)
        yield from linear(f"{at}.{part}.attention.key", width, columns, True)
        yield from linear(f"{at}.{part}.attention.value", width, columns, True)
        yield from linear(f"{at}.{part}.output.dense", width, width, True)
        yield from norm(f"{at}.{part}.output.LayerNorm", width, True)
    yield from linear(f"{at}.intermediate_query.dense", INNER, width, True)
    yield from linear(f"{at}.output_query.dense", width, INNER, True)
    yield from norm(f"{at}.output_query.LayerNorm", width, True)


def granite4_vision() -> Tiny:
    def shapes() -> Shapes:
        yield from siglip("model.vision_tower.vision_model", head=True)
        for kind, count in (("layerwise", 2), ("spatial", 2)):
            for i in range(count):
                at = f"model.{kind}_projectors.{i}"
                yield f"{at}.image_positions", (1, 16, WIDTH)
                yield f"{at}.query", (1, 4, WIDTH)
                yield from linear(f"{at}.out_linear", WIDTH, WIDTH, True)
                yield from norm(f"{at}.norm", WIDTH, True)
                yield from norm(f"{at}.qformer.layernorm", WIDTH, True)
                yield from _qformer(f"{at}.qformer.encoder.layer.0", WIDTH, WIDTH)
        yield "model.image_newline", (WIDTH,)
        yield "lm_head.weight", (260, WIDTH)

    text = {"model_type": "granitemoehybrid", **TEXT, "num_hidden_layers": 6}
    vision = {"model_type": "siglip_vision_model", **SIGLIP}
    more = {
        "deepstack_layer_map": [[-1, 3], [1, 0]],
        "spatial_target_layers": [4, 2],
        "spatial_vision_layer": -2,
        "downsample_rate": "2/4",
        "image_grid_pinpoints": [[16, 32], [32, 16]],
    }
    name = "Granite4VisionForConditionalGeneration"
    return tiny(name, "granite4_vision", {"vision_config": vision, "text_config": text}, shapes(), **more)


def _sam(at: str, layers: int = 2) -> Shapes:
    yield f"{at}.pos_embed", (1, SIDE, SIDE, WIDTH)
    yield f"{at}.patch_embed.proj.weight", (WIDTH, 3, 16, 16)
    yield f"{at}.patch_embed.proj.bias", (WIDTH,)
    for i in range(layers):
        block = f"{at}.blocks.{i}"
        for part in ("norm1", "norm2"):
            yield from norm(f"{block}.{part}", WIDTH, True)
        for part in ("rel_pos_h", "rel_pos_w"):
            yield f"{block}.attn.{part}", (7, WIDTH // 2)
        yield from linear(f"{block}.attn.qkv", 3 * WIDTH, WIDTH, True)
        yield from linear(f"{block}.attn.proj", WIDTH, WIDTH, True)
        yield from linear(f"{block}.mlp.lin1", INNER, WIDTH, True)
        yield from linear(f"{block}.mlp.lin2", WIDTH, INNER, True)
    yield f"{at}.neck.0.weight", (8, WIDTH, 1, 1)
    yield from norm(f"{at}.neck.1", 8, True)
    yield f"{at}.neck.2.weight", (8, 8, 3, 3)
    yield from norm(f"{at}.neck.3", 8, True)
    yield f"{at}.net_2.weight", (16, 8, 3, 3)
    yield f"{at}.net_3.weight", (WIDTH, 16, 3, 3)


_SAM = {"heads": 2, "layers": 2, "width": WIDTH}


def deepseek_ocr(class_name: str) -> Tiny:
    def shapes() -> Shapes:
        yield from _sam("model.sam_model")
        at = "model.vision_model"
        yield f"{at}.embeddings.class_embedding", (WIDTH,)
        yield f"{at}.embeddings.patch_embedding.weight", (WIDTH, 3, PATCH, PATCH)
        yield from _table(f"{at}.embeddings.position_embedding", SIDE * SIDE + 1)
        yield from norm(f"{at}.pre_layrnorm", WIDTH, True)
        names = {"norm1": "layer_norm1", "norm2": "layer_norm2", "up": "mlp.fc1", "down": "mlp.fc2"}
        names |= {"qkv": "self_attn.qkv_proj", "o": "self_attn.out_proj"}
        for i in range(LAYERS):
            yield from _fused(f"{at}.transformer.layers.{i}", names)
        yield from linear("model.projector.layers", WIDTH, 2 * WIDTH, True)
        yield "model.image_newline", (WIDTH,)
        yield "model.view_seperator", (WIDTH,)
        yield "model.norm.weight", (WIDTH,)

    clip = {"heads": 2, "image_size": PATCH * SIDE, "layers": LAYERS, "patch_size": PATCH, "width": WIDTH}
    vision = {"image_size": 1024, "width": {"clip-l-14-224": clip, "sam_vit_b": _SAM}}
    parts = {"vision_config": vision, "language_config": TEXT, **TEXT}
    return tiny(class_name, "deepseek_vl_v2", parts, shapes())


def deepseek_ocr2() -> Tiny:
    def shapes() -> Shapes:
        yield from _sam("model.sam_model")
        at = "model.qwen2_model"
        for size in (768, 1024):
            yield f"{at}.query_{size}.weight", (4, WIDTH)
        at = f"{at}.model.model"
        for i in range(LAYERS):
            block = f"{at}.layers.{i}"
            for part in ("input_layernorm", "post_attention_layernorm"):
                yield from norm(f"{block}.{part}")
            for part, rows in (("q", WIDTH), ("k", 16), ("v", 16)):
                yield from linear(f"{block}.self_attn.{part}_proj", rows, WIDTH, True)
            yield from linear(f"{block}.self_attn.o_proj", WIDTH, WIDTH)
            for part, rows, columns in (("gate", INNER, WIDTH), ("up", INNER, WIDTH), ("down", WIDTH, INNER)):
                yield from linear(f"{block}.mlp.{part}_proj", rows, columns)
        yield from norm(f"{at}.norm")
        yield from linear("model.projector.layers", WIDTH, WIDTH, True)
        yield "model.view_seperator", (WIDTH,)

    vision = {"image_size": 1024, "width": {"qwen2-0-5b": {"dim": WIDTH}, "sam_vit_b": _SAM}}
    vision |= {"layers": LAYERS, "num_attention_heads": 4, "intermediate_size": INNER}
    parts = {"vision_config": vision, "language_config": TEXT, **TEXT}
    return tiny("DeepseekOCR2ForCausalLM", "deepseek_vl_v2", parts, shapes())


def deepseek_v4() -> Tiny:
    def shapes() -> Shapes:
        at = "vision"
        yield from linear(f"{at}.patch_embed.proj", WIDTH, 3 * PATCH * PATCH)
        for i in range(LAYERS):
            block = f"{at}.blocks.{i}"
            for part in ("norm1", "norm2"):
                yield from norm(f"{block}.{part}")
            yield from linear(f"{block}.attn.wqkv", 3 * WIDTH, WIDTH)
            yield from linear(f"{block}.attn.wo", WIDTH, WIDTH)
            yield from linear(f"{block}.mlp.w1", 2 * INNER, WIDTH)
            yield from linear(f"{block}.mlp.w2", WIDTH, INNER)
        yield from norm(f"{at}.norm")
        yield from linear("aligner.w1", WIDTH, 4 * WIDTH, True)
        yield from linear("aligner.w2", WIDTH, WIDTH, True)
        for part in ("newline", "start", "end", "pad"):
            yield f"image_{part}", (WIDTH,)

    sizes = {"n_layers": LAYERS, "dim": WIDTH, "n_heads": 2, "inter_dim": INNER, "patch_size": PATCH}
    sizes |= {"downsample_ratio": 2, "min_pixels": 256, "max_n_token": 384, "max_wh_ratio": 8}
    parts = {**TEXT, **{f"vision_{name}": size for name, size in sizes.items()}}
    return tiny("DeepseekV4ForCausalLM", "deepseek_v4", parts, shapes())


def embedding_gemma2() -> Tiny:
    whole = TOWERS["gemma4"]()
    shapes = ((name.removeprefix("model."), shape) for name, shape in whole.shapes)
    values = {**whole.config, "architectures": ["EmbeddingGemma2Model"], "model_type": "embedding_gemma2"}
    return replace(whole, config=values, shapes=dict(shapes).items())


def gemma4_unified() -> Tiny:
    side = 3 * PATCH

    def shapes() -> Shapes:
        at = "model.vision_embedder"
        yield from norm(f"{at}.patch_ln1", 3 * side * side, True)
        yield from linear(f"{at}.patch_dense", WIDTH, 3 * side * side, True)
        yield from norm(f"{at}.patch_ln2", WIDTH, True)
        yield f"{at}.pos_embedding", (16, 2, WIDTH)
        yield from norm(f"{at}.pos_norm", WIDTH, True)
        yield from linear("model.embed_vision.embedding_projection", WIDTH, WIDTH)
        yield from linear("model.embed_audio.embedding_projection", WIDTH, 640)

    vision = {"mm_embed_dim": WIDTH, "patch_size": PATCH, "pooling_kernel_size": 3, "model_patch_size": side}
    parts = {"vision_config": vision, "audio_config": {"audio_embed_dim": 640}, "text_config": TEXT}
    return tiny("Gemma4UnifiedForConditionalGeneration", "gemma4_unified_tiny", parts, shapes())


def gemma3n() -> Tiny:
    def shapes() -> Shapes:
        at = "model.vision_tower.timm_model"
        yield f"{at}.conv_stem.conv.weight", (8, 3, 3, 3)
        yield f"{at}.conv_stem.conv.bias", (8,)
        yield f"{at}.conv_stem.bn.weight", (8,)
        edge = {"conv_exp": (16, 8, 3, 3), "bn1": (16,), "conv_pwl": (8, 16, 1, 1), "bn2": (8,)}
        inverted = {
            "dw_start.conv": (8, 1, 3, 3),
            "dw_start.bn": (8,),
            "pw_exp.conv": (16, 8, 1, 1),
            "pw_exp.bn": (16,),
        }
        inverted |= {"dw_mid.conv": (16, 1, 5, 5), "dw_mid.bn": (16,)}
        inverted |= {"pw_proj.conv": (8, 16, 1, 1), "pw_proj.bn": (8,)}
        attending = {f"attn.{part}.proj": (8, 8, 1, 1) for part in ("query", "key", "value", "output")}
        attending |= {f"attn.{part}.down_conv": (8, 1, 3, 3) for part in ("key", "value")}
        attending |= {f"attn.{part}.norm": (8,) for part in ("key", "value")} | {"norm": (8,)}
        for i, block in enumerate((edge, inverted, inverted, attending)):
            for part, shape in block.items():
                yield f"{at}.blocks.{i}.0.{part}.weight", shape
            if block is not edge:
                yield f"{at}.blocks.{i}.0.layer_scale.gamma", (8,)
        for part, shape in (("pw_exp", (16, 16, 1, 1)), ("pw_proj", (WIDTH, 16, 1, 1))):
            yield f"{at}.msfa.ffn.{part}.conv.weight", shape
            yield f"{at}.msfa.ffn.{part}.bn.weight", shape[:1]
        yield f"{at}.msfa.norm.weight", (WIDTH,)
        for kind in ("vision", "audio"):
            yield f"model.embed_{kind}.embedding.weight", (16, WIDTH)
            yield f"model.embed_{kind}.embedding_projection.weight", (WIDTH, WIDTH)
            for part in ("hard", "soft"):
                yield f"model.embed_{kind}.{part}_embedding_norm.weight", (WIDTH,)
        at = "model.audio_tower"
        for i, shape in enumerate(((6, 1, 3, 3), (4, 6, 3, 3))):
            yield f"{at}.subsample_conv_projection.conv_{i}.conv.weight", shape
        yield from linear(f"{at}.subsample_conv_projection.input_proj_linear", WIDTH, 8)
        for i in range(2):
            block = f"{at}.conformer.{i}"
            for part in ("start", "end"):
                yield from linear(f"{block}.ffw_layer_{part}.ffw_layer_1", 2 * WIDTH, WIDTH)
                yield from linear(f"{block}.ffw_layer_{part}.ffw_layer_2", WIDTH, 2 * WIDTH)
                for place in ("pre", "post"):
                    yield from norm(f"{block}.ffw_layer_{part}.{place}_layer_norm")
            yield f"{block}.attention.attn.per_dim_scale", (WIDTH // 2,)
            for part in "qkv":
                yield from linear(f"{block}.attention.attn.{part}_proj", WIDTH, WIDTH)
            yield from linear(f"{block}.attention.attn.relative_position_embedding.pos_proj", WIDTH, WIDTH)
            yield from linear(f"{block}.attention.post", WIDTH, WIDTH)
            for part in (
                "attention.pre_attn_norm",
                "attention.post_norm",
                "lconv1d.pre_layer_norm",
                "lconv1d.conv_norm",
            ):
                yield from norm(f"{block}.{part}")
            yield from linear(f"{block}.lconv1d.linear_start", 2 * WIDTH, WIDTH)
            yield from linear(f"{block}.lconv1d.linear_end", WIDTH, WIDTH)
            yield f"{block}.lconv1d.depthwise_conv1d.weight", (WIDTH, 1, 5)
            yield from norm(f"{block}.norm")

    vision = {
        "model_type": "gemma3n_vision",
        "hidden_size": WIDTH,
        "intermediate_size": INNER,
        "num_attention_heads": 2,
    }
    audio = {"model_type": "gemma3n_audio", "hidden_size": WIDTH, "intermediate_size": 64, "input_feat_size": 8}
    audio |= {"conf_num_hidden_layers": 2, "conf_num_attention_heads": 2}
    text = {"model_type": "gemma3n_text", **TEXT}
    parts = {"vision_config": vision, "audio_config": audio, "text_config": text}
    pictures = {"size": {"height": 768, "width": 768}}
    return tiny("Gemma3nForConditionalGeneration", "gemma3n_tiny", parts, shapes(), pictures=pictures)


def nemotron(class_name: str, hears: bool) -> Tiny:
    width = 1280  # RADIO's

    def shapes() -> Shapes:
        at = "vision_model.radio_model.model"
        yield f"{at}.patch_generator.cls_token.token", (3, width)
        yield f"{at}.patch_generator.pos_embed", (1, 49, width)
        yield from linear(f"{at}.patch_generator.embedder", width, 3 * 2 * 2)
        yield from linear(f"{at}.patch_generator.video_embedder", width, 6 * 2 * 2)
        for part in ("norm_mean", "norm_std"):
            yield f"vision_model.radio_model.input_conditioner.{part}", (3, 1, 1)
        for i in range(2):
            block = f"{at}.blocks.{i}"
            for part in ("norm1", "norm2"):
                yield from norm(f"{block}.{part}", 16, True)
            yield from linear(f"{block}.attn.qkv", 48, 16, True)
            yield from linear(f"{block}.attn.proj", 16, 16, True)
            yield from linear(f"{block}.mlp.fc1", 24, 16, True)
            yield from linear(f"{block}.mlp.fc2", 16, 24, True)
        yield "mlp1.0.weight", (64,)
        yield from linear("mlp1.1", INNER, 64)
        yield from linear("mlp1.3", WIDTH, INNER)
        if not hears:
            return
        at = "sound_encoder.encoder"
        yield f"{at}.feature_extractor.featurizer.fb", (1, 8, 17)
        yield f"{at}.feature_extractor.featurizer.window", (32,)
        for i in (0, 2, 3, 5, 6):
            yield f"{at}.subsampling.layers.{i}.weight", (6, 6, 1, 1) if i in (3, 6) else (6, 1, 3, 3)
            yield f"{at}.subsampling.layers.{i}.bias", (6,)
        yield from linear(f"{at}.subsampling.linear", WIDTH, 6, True)
        for i in range(2):
            block = f"{at}.layers.{i}"
            names = "norm_feed_forward1", "norm_self_att", "norm_conv", "norm_feed_forward2", "norm_out"
            yield from _conformer_norms(block, names)
            for part in ("feed_forward1", "feed_forward2"):
                yield from linear(f"{block}.{part}.linear1", INNER, WIDTH)
                yield from linear(f"{block}.{part}.linear2", WIDTH, INNER)
            for part in ("q_proj", "k_proj", "v_proj", "o_proj", "relative_k_proj"):
                yield from linear(f"{block}.self_attn.{part}", WIDTH, WIDTH)
            for part in ("bias_u", "bias_v"):
                yield f"{block}.self_attn.{part}", (2, WIDTH // 2)
            yield f"{block}.conv.pointwise_conv1.weight", (2 * WIDTH, WIDTH, 1)
            yield f"{block}.conv.pointwise_conv1.bias", (2 * WIDTH,)
            yield f"{block}.conv.depthwise_conv.weight", (WIDTH, 1, 9)
            yield from _batch_norm(f"{block}.conv.norm", WIDTH)
            yield f"{block}.conv.pointwise_conv2.weight", (WIDTH, WIDTH, 1)
        yield from norm("sound_projection.norm")
        yield from linear("sound_projection.linear1", INNER, WIDTH)
        yield from linear("sound_projection.linear2", WIDTH, INNER)

    vision = {"architectures": [class_name], "patch_size": 2}
    sound = {"hidden_size": WIDTH, "intermediate_size": INNER, "num_hidden_layers": 2, "num_attention_heads": 2}
    sound |= {"num_mel_bins": 8, "subsampling_factor": 8, "conv_kernel_size": 9}
    parts = {"vision_config": vision, "llm_config": TEXT, **({"sound_config": sound} if hears else {})}
    return tiny("NemotronH_Nano_VL_V2", "NemotronH_Nano_VL_V2", parts, shapes(), force_image_size=8)


def dots3_note(class_name: str) -> Tiny:
    experts = [0, 2, 3, -1]

    def shapes() -> Shapes:
        at = "vision_encoder"
        yield from _patches(f"{at}.patch_embed.proj")
        yield from norm(f"{at}.patch_embed.norm")
        for i, count in enumerate(experts):
            block = f"{at}.blocks.{i}"
            for part in ("norm_1", "norm_2"):
                yield from norm(f"{block}.{part}")
            yield from linear(f"{block}.attn.qkv", 3 * WIDTH, WIDTH)
            yield from linear(f"{block}.attn.proj", WIDTH, WIDTH)
            for part in ("q_norm", "k_norm"):
                yield from norm(f"{block}.attn.{part}", WIDTH // 2)
            for place in [f"experts.{e}." for e in range(count)] or [""]:
                for part, rows, columns in (("fc1", INNER, WIDTH), ("fc2", WIDTH, INNER), ("fc3", INNER, WIDTH)):
                    yield from linear(f"{block}.mlp.{place}{part}", rows, columns)
            if count > 0:
                yield f"{block}.mlp.gate_weight", (count, WIDTH)
                yield f"{block}.mlp.router_bias", (count,)
        yield from norm(f"{at}.post_trunk_norm")
        yield from norm(f"{at}.adapter.ln_q", WIDTH, True)
        yield from linear(f"{at}.adapter.mlp.0", 4 * WIDTH, 4 * WIDTH, True)
        yield from linear(f"{at}.adapter.mlp.2", WIDTH, 4 * WIDTH, True)
        at = "audio_encoder.dots_encoder.speech_encoder"
        for i, channels in enumerate((1, 6, 6)):
            yield f"{at}.conv2d{i + 1}.weight", (6, channels, 3, 3)
            yield f"{at}.conv2d{i + 1}.bias", (6,)
        yield from linear(f"{at}.conv_out", WIDTH, 6)
        for i in range(2):
            block = f"{at}.layers.{i}"
            for part in ("self_attn_layer_norm", "final_layer_norm"):
                yield from norm(f"{block}.{part}")
            for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
                yield from linear(f"{block}.self_attn.{part}", WIDTH, WIDTH, part != "k_proj")
            yield from linear(f"{block}.fc1", 2 * INNER, WIDTH, True)
            yield from linear(f"{block}.fc2", WIDTH, INNER, True)
        yield from norm(f"{at}.layer_norm")
        at = "audio_encoder.audio_adapter.proj"
        yield from norm(f"{at}.0", WIDTH, True)
        yield from linear(f"{at}.1", WIDTH, WIDTH, True)
        yield from linear(f"{at}.3", WIDTH, WIDTH, True)
        yield "model.norm.weight", (WIDTH,)

    vision = {
        "embed_dim": WIDTH,
        "hidden_size": WIDTH,
        "intermediate_size": INNER,
        "num_hidden_layers": len(experts),
        "num_attention_heads": 2,
        "patch_size": PATCH,
        "rms_norm_eps": 1e-5,
        "spatial_merge_size": 2,
        "pyramid_num_routed": experts,
        "capacity_factor": 2.0,
        "adapter_type": "patch_merger",
        "pre_pixel_shuffle": True,
        "use_qk_norm": True,
    }
    whisper = {"d_model": WIDTH, "encoder_ffn_dim": INNER, "encoder_attention_heads": 2, "encoder_layers": 2}
    whisper |= {"num_mel_bins": 8, "activation_function": "swiglu"}
    rope = {"partial_rotary_factor": 0.5, "rope_theta": 10000.0}
    audio = {"whisper_config": whisper, "rope_parameters": rope, "chunk_seconds": 60}
    audio |= {"use_conv2d_stem": True, "use_rope": True, "use_rms_norm": True, "use_causal": False}
    parts = {"vision_config": vision, "audio_config": audio, **TEXT}
    pictures = {"vision_config": {**_PIXELS, "image_mean": [0.5] * 3, "image_std": [0.25] * 3}}
    return tiny(class_name, "dots3_note_tiny", parts, shapes(), pictures=pictures)


def d1_omni() -> Tiny:
    layers = 8  # so that there are numbers for six convolutions

    def shapes() -> Shapes:
        at = "vision.tower.vision_model"
        yield f"{at}.embeddings.patch_embedding.weight", (WIDTH, 16 * 16 * 3)
        yield f"{at}.embeddings.patch_embedding.bias", (WIDTH,)
        yield from _table(f"{at}.embeddings.position_embedding")
        for i in range(2):
            yield from layer(f"{at}.encoder.layers.{i}", SIGLIP_NAMES)
        yield from norm(f"{at}.post_layernorm", WIDTH, True)
        yield from norm("vision.projector.layer_norm", 4 * WIDTH, True)
        yield from linear("vision.projector.linear_1", WIDTH, 4 * WIDTH, True)
        yield from linear("vision.projector.linear_2", WIDTH, WIDTH, True)
        for name, shape in TOWERS["lfm2audio"]().shapes:
            if name.startswith("conformer."):
                yield name.replace("conformer.", "audio.encoder."), shape
        yield from norm("audio.adapter.norm", WIDTH, True)
        yield from linear("audio.adapter.linear_1", INNER, WIDTH, True)
        yield from linear("audio.adapter.linear_2", WIDTH, INNER, True)
        yield from norm("audio.residual.ln", WIDTH, True)
        yield from linear("audio.residual.down", 16, WIDTH, True)
        yield from linear("audio.residual.up", WIDTH, 16, True)
        yield "encoder.norm.weight", (WIDTH,)
        yield "head.weight", (2, WIDTH)

    vision = {**SIGLIP, "patch_size": 16, "num_hidden_layers": 2}
    audio = {"d_model": WIDTH, "n_layers": layers, "n_heads": 2, "feat_in": 8, "ff_expansion_factor": 4}
    text = {**TEXT, "block_ffn_dim_multiplier": 1.0, "block_multiple_of": 8}
    parts = {"vision_config": vision, "audio_config": audio, "text_config": text, "head_layers": 1}
    return tiny("D1OmniModel", "d1_omni", parts, shapes())


SIGHTS: dict[str, Callable[[], Tiny]] = {
    "kimik25": lambda: kimi_k25("KimiK25ForConditionalGeneration", "kimi_k25", ("proj.0", "proj.2")),
    "glm5v": lambda: kimi_k25("Glm5vForConditionalGeneration", "glm5v", ("linear_1", "linear_2")),
    "hunyuanvl": hunyuan_vl,
    "youtuvl": youtu_vl,
    "cogvlm": cogvlm,
    "exaone45": exaone45,
    "clef": lambda: qwen3("ClefModel", "clef"),
    "openjev": lambda: qwen3("OpenJevModel", "openjev"),
    "pplxdecider": lambda: qwen3("PplxDeciderModel", "pplx_decider"),
    "ling3vl": ling3_vl,
    "step3vl": lambda: step3_vl("StepVLForConditionalGeneration"),
    "step3p7": lambda: step3_vl("Step3p7ForConditionalGeneration"),
    "minimaxm3": minimax_m3,
    "museglimmer": muse_glimmer,
    "granitespeech": lambda: granite_speech(False),
    "granitespeechplus": lambda: granite_speech(True),
    "granite4vision": granite4_vision,
    "deepseekocr": lambda: deepseek_ocr("DeepseekOCRForCausalLM"),
    "unlimitedocr": lambda: deepseek_ocr("UnlimitedOCRForCausalLM"),
    "deepseekocr2": deepseek_ocr2,
    "deepseekv4": deepseek_v4,
    "embeddinggemma2": embedding_gemma2,
    "gemma4unified": gemma4_unified,
    "gemma3n": gemma3n,
    "nemotron": lambda: nemotron("RADIOModel", False),
    "nemotronhears": lambda: nemotron("NemotronH_Nano_VL_V2", True),
    "dots3note": lambda: dots3_note("Dots3NoteForCausalLM"),
    "dots3notegeneration": lambda: dots3_note("Dots3NoteForConditionalGeneration"),
    "d1omni": d1_omni,
}
