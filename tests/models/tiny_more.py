"""Tiny checkpoints of further families: mixtures of experts, and those whose code came with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tiny_checkpoints import (
    BPE_TOKENS,
    FFN,
    HEAD,
    HEADS,
    KV_HEADS,
    LAYERS,
    SPM_TOKENS,
    WIDTH,
    Shapes,
    Tiny,
    attention,
    decoder,
    gated,
    linear,
    llama_layer,
    norm,
)
from tiny_checkpoints import config as plain_config

__all__ = ["MORE"]

EXPERTS = 4


def config(architecture: str, model_type: str, vocab: int = BPE_TOKENS, **more: Any) -> dict[str, Any]:
    """As complete as those of remote code are."""
    more = {"max_position_embeddings": 512, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, **more}
    return plain_config(architecture, model_type, vocab, **more)


def norms(at: str) -> Shapes:
    yield from norm(f"{at}.input_layernorm")
    yield from norm(f"{at}.post_attention_layernorm")


def experts(at: str, count: int = EXPERTS, parts: tuple[str, ...] = ("gate_proj", "up_proj", "down_proj")) -> Shapes:
    for expert in range(count):
        for part in parts:
            rows, cols = (WIDTH, FFN) if part in ("down_proj", "down", "w2") else (FFN, WIDTH)
            yield from linear(f"{at}.{expert}.{part}", rows, cols)


def moe_layer(
    router: str = "mlp.gate", qk: bool = False, shared: str = "", bias: str = ""
) -> Callable[[str, int], Shapes]:
    """Attention and experts; the first layer is dense."""

    def layer(at: str, i: int) -> Shapes:
        yield from norms(at)
        yield from attention(f"{at}.self_attn")
        if qk:
            yield from norm(f"{at}.self_attn.q_norm", HEAD)
            yield from norm(f"{at}.self_attn.k_norm", HEAD)
        if i == 0:
            yield from gated(f"{at}.mlp")
            return
        yield from linear(f"{at}.{router}", EXPERTS, WIDTH)
        yield from experts(f"{at}.mlp.experts")
        if shared:
            yield from gated(f"{at}.mlp.{shared}")
        if bias:
            yield f"{at}.{bias}", (EXPERTS,)

    return layer


MOE: dict[str, Any] = {"num_experts": EXPERTS, "num_experts_per_tok": 2, "moe_intermediate_size": FFN}
KINDS = ["sliding_attention", "full_attention"]


def afmoe() -> Tiny:
    more = {
        "num_shared_experts": 1,
        "num_dense_layers": 1,
        "route_norm": True,
        "route_scale": 2.5,
        "sliding_window": 64,
    }
    layer = moe_layer("mlp.router.gate", qk=True, shared="shared_experts", bias="mlp.expert_bias")

    def whole(at: str, i: int) -> Shapes:
        yield from layer(at, i)
        yield from linear(f"{at}.self_attn.gate_proj", HEADS * HEAD, WIDTH)
        yield from norm(f"{at}.pre_mlp_layernorm")
        yield from norm(f"{at}.post_mlp_layernorm")

    return Tiny(config("AfmoeForCausalLM", "afmoe_tiny", head_dim=HEAD, **MOE, **more), decoder(whole, BPE_TOKENS))


def bailingmoe() -> Tiny:
    def layer(at: str, i: int) -> Shapes:
        yield from norms(at)
        yield from linear(f"{at}.attention.query_key_value", (HEADS + 2 * KV_HEADS) * HEAD, WIDTH)
        yield from linear(f"{at}.attention.dense", WIDTH, HEADS * HEAD)
        yield from linear(f"{at}.mlp.gate", EXPERTS, WIDTH)
        yield from experts(f"{at}.mlp.experts")
        yield from gated(f"{at}.mlp.shared_experts")

    more = {"first_k_dense_replace": 0, "num_shared_experts": 1, "norm_topk_prob": True, "head_dim": HEAD}
    shapes = {name.replace("embed_tokens", "word_embeddings"): shape for name, shape in decoder(layer, BPE_TOKENS)}
    return Tiny(config("BailingMoeForCausalLM", "bailing_tiny", **MOE, **more), shapes.items())


def bailingmoe2(name: str = "BailingMoeV2ForCausalLM") -> Tiny:
    def layer(at: str, i: int) -> Shapes:
        yield from norms(at)
        yield from linear(f"{at}.attention.query_key_value", (HEADS + 2 * KV_HEADS) * HEAD, WIDTH)
        yield from linear(f"{at}.attention.dense", WIDTH, HEADS * HEAD)
        yield from norm(f"{at}.attention.query_layernorm", HEAD)
        yield from norm(f"{at}.attention.key_layernorm", HEAD)
        yield from linear(f"{at}.mlp.gate", EXPERTS, WIDTH)
        yield f"{at}.mlp.gate.expert_bias", (EXPERTS,)
        yield from experts(f"{at}.mlp.experts")
        yield from gated(f"{at}.mlp.shared_experts")

    more = {"first_k_dense_replace": 0, "num_shared_experts": 1, "norm_topk_prob": True, "head_dim": HEAD}
    more |= {"routed_scaling_factor": 2.5, "score_function": "sigmoid", "n_group": 2, "topk_group": 1}
    shapes = {n.replace("embed_tokens", "word_embeddings"): shape for n, shape in decoder(layer, BPE_TOKENS)}
    return Tiny(config(name, "bailing2_tiny", **MOE, **more), shapes.items())


def sarvam() -> Tiny:
    return bailingmoe2("SarvamMoEForCausalLM")


def dots1() -> Tiny:
    more = {"first_k_dense_replace": 1, "n_shared_experts": 1, "routed_scaling_factor": 2.5, "norm_topk_prob": True}
    more |= {"n_routed_experts": EXPERTS, "num_experts_per_tok": 2, "moe_intermediate_size": FFN, "head_dim": HEAD}
    layer = moe_layer(qk=True, shared="shared_experts", bias="mlp.gate.e_score_correction_bias")
    return Tiny(config("Dots1ForCausalLM", "dots_tiny", **more), decoder(layer, BPE_TOKENS))


def smallthinker() -> Tiny:
    def layer(at: str, i: int) -> Shapes:
        yield from norms(at)
        yield from attention(f"{at}.self_attn")
        yield from linear(f"{at}.block_sparse_moe.primary_router", EXPERTS, WIDTH)
        yield from experts(f"{at}.block_sparse_moe.experts", parts=("gate", "up", "down"))

    more = {"moe_num_primary_experts": EXPERTS, "moe_num_active_primary_experts": 2, "moe_ffn_hidden_size": FFN}
    more |= {"sliding_window_layout": [0, 1], "sliding_window_size": 64, "head_dim": HEAD}
    values = config("SmallThinkerForCausalLM", "smallthinker_tiny", **more)
    del values["intermediate_size"]
    return Tiny(values, decoder(layer, BPE_TOKENS))


def grovemoe() -> Tiny:
    def layer(at: str, i: int) -> Shapes:
        yield from norms(at)
        yield from attention(f"{at}.self_attn")
        yield from linear(f"{at}.mlp.gate", EXPERTS, WIDTH)
        yield from experts(f"{at}.mlp.experts")
        yield from experts(f"{at}.mlp.chunk_experts", EXPERTS // 2)

    return Tiny(config("GroveMoeForCausalLM", "grove_tiny", head_dim=HEAD, **MOE), decoder(layer, BPE_TOKENS))


def maple() -> Tiny:
    more = {"sliding_window": 64, "layer_types": KINDS, "hidden_act": "silu", "nope_on_global_attention": True}

    def layer(at: str, i: int) -> Shapes:
        yield from norms(at)
        yield from attention(f"{at}.self_attn")
        yield from linear(f"{at}.mlp.gate", EXPERTS, WIDTH)
        yield from experts(f"{at}.mlp.experts")

    return Tiny(config("MapleForCausalLM", "maple_tiny", head_dim=HEAD, **MOE, **more), decoder(layer, BPE_TOKENS))


def cohere2moe() -> Tiny:
    more = {"logit_scale": 0.25, "sliding_window": 64, "layer_types": KINDS, "num_experts": EXPERTS, "head_dim": HEAD}
    more |= {"num_experts_per_tok": 2, "first_k_dense_replace": 1, "num_shared_experts": 1, "norm_topk_prob": True}

    def layer(at: str, i: int) -> Shapes:
        for name, shape in moe_layer(shared="shared_experts")(at, i):
            if "post_attention" not in name:
                yield name, shape

    return Tiny(config("Cohere2MoeForCausalLM", "cohere2moe_tiny", **more), decoder(layer, BPE_TOKENS, head=False))


def deepseek1() -> Tiny:
    more = {"first_k_dense_replace": 1, "n_shared_experts": 1, "n_routed_experts": EXPERTS, "num_experts_per_tok": 2}
    more |= {"moe_intermediate_size": FFN}
    return Tiny(
        config("DeepseekForCausalLM", "deepseek_tiny", **more), decoder(moe_layer(shared="shared_experts"), BPE_TOKENS)
    )


def kimi_linear() -> Tiny:
    latent, nope, rope, value = 16, 8, 4, 8

    def layer(at: str, i: int) -> Shapes:
        yield from norms(at)
        if i == 0:
            for part in "qkv":
                yield from linear(f"{at}.self_attn.{part}_proj", HEADS * HEAD, WIDTH)
                yield f"{at}.self_attn.{part}_conv1d.weight", (HEADS * HEAD, 1, 4)
            yield f"{at}.self_attn.A_log", (1, 1, HEADS, 1)
            yield f"{at}.self_attn.dt_bias", (HEADS * HEAD,)
            for part, rows, cols in (("f_a", HEAD, WIDTH), ("f_b", HEADS * HEAD, HEAD), ("b", HEADS, WIDTH)):
                yield from linear(f"{at}.self_attn.{part}_proj", rows, cols)
            for part, rows, cols in (("g_a", HEAD, WIDTH), ("g_b", HEADS * HEAD, HEAD)):
                yield from linear(f"{at}.self_attn.{part}_proj", rows, cols)
            yield from norm(f"{at}.self_attn.o_norm", HEAD)
            yield from linear(f"{at}.self_attn.o_proj", WIDTH, HEADS * HEAD)
            yield from gated(f"{at}.mlp")
            return
        yield from linear(f"{at}.self_attn.q_proj", HEADS * (nope + rope), WIDTH)
        yield from linear(f"{at}.self_attn.kv_a_proj_with_mqa", latent + rope, WIDTH)
        yield from norm(f"{at}.self_attn.kv_a_layernorm", latent)
        yield from linear(f"{at}.self_attn.kv_b_proj", HEADS * (nope + value), latent)
        yield from linear(f"{at}.self_attn.o_proj", WIDTH, HEADS * value)
        yield from linear(f"{at}.block_sparse_moe.gate", EXPERTS, WIDTH)
        yield f"{at}.block_sparse_moe.gate.e_score_correction_bias", (EXPERTS,)
        yield from experts(f"{at}.block_sparse_moe.experts", parts=("w1", "w2", "w3"))
        yield from gated(f"{at}.block_sparse_moe.shared_experts")

    more = {"num_experts": EXPERTS, "num_experts_per_token": 2, "moe_intermediate_size": FFN, "num_shared_experts": 1}
    more |= {"kv_lora_rank": latent, "qk_nope_head_dim": nope, "qk_rope_head_dim": rope, "v_head_dim": value}
    more |= {"first_k_dense_replace": 1, "routed_scaling_factor": 2.5, "moe_router_activation_func": "sigmoid"}
    more |= {"linear_attn_config": {"full_attn_layers": [2], "head_dim": HEAD, "short_conv_kernel_size": 4}}
    values = config("KimiLinearForCausalLM", "kimi_tiny", **more)
    values["num_key_value_heads"] = HEADS
    return Tiny(values, decoder(layer, BPE_TOKENS))


# ---- remote code ------------------------------------------------------------------------------------------------


def qwen2_layer(at: str, i: int) -> Shapes:
    yield from norms(at)
    for part, rows in (("q", HEADS), ("k", KV_HEADS), ("v", KV_HEADS)):
        yield from linear(f"{at}.self_attn.{part}_proj", rows * HEAD, WIDTH, True)
    yield from linear(f"{at}.self_attn.o_proj", WIDTH, HEADS * HEAD)
    yield from gated(f"{at}.mlp")


def like_llama(name: str, layer=llama_layer, tokenizer: str = "bpe", **more: Any) -> Callable[[], Tiny]:
    """A family of Llama's tensors."""

    def tiny() -> Tiny:
        tokens = SPM_TOKENS if tokenizer == "spm" else BPE_TOKENS
        values = config(name, "remote_tiny", tokens, **more)
        return Tiny(values, decoder(layer, tokens), tokenizer=tokenizer)

    return tiny


def normed_layer(at: str, i: int) -> Shapes:
    yield from llama_layer(at, i)
    yield from norm(f"{at}.self_attn.q_norm", HEAD)
    yield from norm(f"{at}.self_attn.k_norm", HEAD)


def orion_layer(at: str, i: int) -> Shapes:
    for name, shape in llama_layer(at, i):
        yield name, shape
        if "norm" in name:
            yield name.replace("weight", "bias"), shape


def glm() -> Tiny:
    def layer(at: str, i: int) -> Shapes:
        yield from norms(at)
        yield from linear(f"{at}.self_attention.query_key_value", (HEADS + 2 * KV_HEADS) * HEAD, WIDTH, True)
        yield from linear(f"{at}.self_attention.dense", WIDTH, WIDTH)
        yield from linear(f"{at}.mlp.dense_h_to_4h", 2 * FFN, WIDTH)
        yield from linear(f"{at}.mlp.dense_4h_to_h", WIDTH, FFN)

    shapes: dict[str, tuple[int, ...]] = {"transformer.embedding.word_embeddings.weight": (BPE_TOKENS, WIDTH)}
    for i in range(LAYERS):
        shapes |= dict(layer(f"transformer.encoder.layers.{i}", i))
    shapes |= dict(norm("transformer.encoder.final_layernorm"))
    shapes["transformer.output_layer.weight"] = (BPE_TOKENS, WIDTH)
    shapes["transformer.rotary_pos_emb.inv_freq"] = (HEAD // 4,)
    values = config("ChatGLMModel", "chatglm_tiny", ffn_hidden_size=FFN, multi_query_group_num=KV_HEADS)
    values |= {"seq_length": 512, "layernorm_epsilon": 1e-5, "rope_ratio": 50}
    return Tiny(values, shapes.items())


def refact() -> Tiny:
    length = 256
    shapes: dict[str, tuple[int, ...]] = {"transformer.wte.weight": (BPE_TOKENS, WIDTH)}
    for i in range(LAYERS):
        at = f"transformer.h.{i}"
        shapes |= dict(norm(f"{at}.ln_1")) | dict(norm(f"{at}.ln_2"))
        shapes |= dict(linear(f"{at}.attn.q", WIDTH, WIDTH)) | dict(linear(f"{at}.attn.kv", 2 * HEAD, WIDTH))
        shapes |= dict(linear(f"{at}.attn.c_proj", WIDTH, WIDTH))
        shapes |= dict(linear(f"{at}.mlp.gate_up_proj", 2 * length, WIDTH))
        shapes |= dict(linear(f"{at}.mlp.c_proj", WIDTH, length))
    shapes |= dict(norm("transformer.ln_f")) | {"lm_head.weight": (BPE_TOKENS, WIDTH)}
    values = {"architectures": ["GPTRefactForCausalLM"], "model_type": "refact_tiny", "n_embd": WIDTH, "n_head": HEADS}
    values |= {"n_layer": LAYERS, "n_positions": 512, "layer_norm_epsilon": 1e-5, "vocab_size": BPE_TOKENS}
    return Tiny(values, shapes.items())


def jais() -> Tiny:
    shapes: dict[str, tuple[int, ...]] = {"transformer.wte.weight": (BPE_TOKENS, WIDTH)}
    shapes["transformer.relative_pe.slopes"] = (HEADS,)
    for i in range(LAYERS):
        at = f"transformer.h.{i}"
        for name in ("ln_1", "ln_2"):
            shapes |= dict(norm(f"{at}.{name}", bias=True))
        for name, rows, cols in (
            ("attn.c_attn", WIDTH, 3 * WIDTH),
            ("attn.c_proj", WIDTH, WIDTH),
            ("mlp.c_fc", WIDTH, FFN),
            ("mlp.c_fc2", WIDTH, FFN),
            ("mlp.c_proj", FFN, WIDTH),
        ):
            shapes |= {f"{at}.{name}.weight": (rows, cols), f"{at}.{name}.bias": (cols,)}
    shapes |= dict(norm("transformer.ln_f", bias=True)) | {"lm_head.weight": (BPE_TOKENS, WIDTH)}
    values = {"architectures": ["JAISLMHeadModel"], "model_type": "jais_tiny", "n_embd": WIDTH, "n_head": HEADS}
    values |= {"n_layer": LAYERS, "n_positions": 512, "n_inner": FFN, "layer_norm_epsilon": 1e-5}
    values |= {"activation_function": "swiglu", "position_embedding_type": "alibi", "vocab_size": BPE_TOKENS}
    values |= {"mup_embeddings_scale": 14.6, "mup_output_alpha": 2.22, "mup_width_scale": 0.125}
    del shapes["transformer.relative_pe.slopes"]
    return Tiny(values, shapes.items())


def openelm() -> Tiny:
    lengths = (64, 96)
    shapes: dict[str, tuple[int, ...]] = {"transformer.token_embeddings.weight": (SPM_TOKENS, WIDTH)}
    for i, length in enumerate(lengths):
        at = f"transformer.layers.{i}"
        shapes |= dict(norm(f"{at}.attn_norm")) | dict(norm(f"{at}.ffn_norm"))
        shapes |= dict(linear(f"{at}.attn.qkv_proj", (HEADS + 2 * KV_HEADS) * HEAD, WIDTH))
        shapes |= dict(norm(f"{at}.attn.q_norm", HEAD)) | dict(norm(f"{at}.attn.k_norm", HEAD))
        shapes |= dict(linear(f"{at}.attn.out_proj", WIDTH, HEADS * HEAD))
        shapes |= dict(linear(f"{at}.ffn.proj_1", 2 * length, WIDTH)) | dict(linear(f"{at}.ffn.proj_2", WIDTH, length))
    shapes |= dict(norm("transformer.norm"))
    values = {"architectures": ["OpenELMForCausalLM"], "model_type": "openelm_tiny", "model_dim": WIDTH}
    values |= {"num_transformer_layers": 2, "max_context_length": 512, "head_dim": HEAD, "rope_freq_constant": 10000}
    values |= {"num_query_heads": [HEADS] * 2, "num_kv_heads": [KV_HEADS] * 2, "ffn_multipliers": [2.0, 3.0]}
    values |= {"ffn_dim_divisor": 32, "vocab_size": SPM_TOKENS}
    return Tiny(values, shapes.items(), tokenizer="spm")


def jamba() -> Tiny:
    def layer(at: str, i: int) -> Shapes:
        yield from norm(f"{at}.input_layernorm")
        yield from norm(f"{at}.pre_ff_layernorm")
        if i == 0:
            inner = 2 * WIDTH
            yield from linear(f"{at}.mamba.in_proj", 2 * inner, WIDTH)
            yield f"{at}.mamba.conv1d.weight", (inner, 1, 4)
            yield f"{at}.mamba.conv1d.bias", (inner,)
            yield from linear(f"{at}.mamba.x_proj", 2 + 2 * 16, inner)
            yield from linear(f"{at}.mamba.dt_proj", inner, 2, True)
            yield f"{at}.mamba.A_log", (inner, 16)
            yield f"{at}.mamba.D", (inner,)
            yield from norm(f"{at}.mamba.dt_layernorm", 2)
            yield from norm(f"{at}.mamba.b_layernorm", 16)
            yield from norm(f"{at}.mamba.c_layernorm", 16)
            yield from linear(f"{at}.mamba.out_proj", WIDTH, inner)
            yield from gated(f"{at}.feed_forward")
            return
        yield from attention(f"{at}.self_attn")
        yield from linear(f"{at}.feed_forward.router", EXPERTS, WIDTH)
        yield from experts(f"{at}.feed_forward.experts")

    more = {"num_experts": EXPERTS, "num_experts_per_tok": 2, "attn_layer_offset": 1, "attn_layer_period": 2}
    more |= {"expert_layer_offset": 1, "expert_layer_period": 2, "mamba_d_conv": 4, "mamba_expand": 2}
    more |= {"mamba_d_state": 16, "mamba_dt_rank": 2}
    shapes = {n.replace("model.norm", "model.final_layernorm"): s for n, s in decoder(layer, SPM_TOKENS)}
    return Tiny(config("JambaForCausalLM", "jamba_tiny", SPM_TOKENS, **more), shapes.items(), tokenizer="spm")


def plm() -> Tiny:
    latent, nope, rope, value = 16, 8, 4, 8

    def layer(at: str, i: int) -> Shapes:
        yield from norms(at)
        yield from linear(f"{at}.self_attn.q_proj", HEADS * (nope + rope), WIDTH)
        yield from linear(f"{at}.self_attn.kv_a_proj_with_mqa", latent + rope, WIDTH)
        yield from norm(f"{at}.self_attn.kv_a_layernorm", latent)
        yield from linear(f"{at}.self_attn.kv_b_proj", HEADS * (nope + value), latent)
        yield from linear(f"{at}.self_attn.o_proj", WIDTH, HEADS * value)
        yield from linear(f"{at}.mlp.up_proj", FFN, WIDTH)
        yield from linear(f"{at}.mlp.down_proj", WIDTH, FFN)

    more = {"kv_lora_rank": latent, "qk_nope_head_dim": nope, "qk_rope_head_dim": rope, "v_head_dim": value}
    return Tiny(config("PLMForCausalLM", "plm_tiny", **more), decoder(layer, BPE_TOKENS, head=False))


def dbrx() -> Tiny:
    shapes: dict[str, tuple[int, ...]] = {"transformer.wte.weight": (BPE_TOKENS, WIDTH)}
    for i in range(LAYERS):
        at = f"transformer.blocks.{i}"
        shapes |= dict(norm(f"{at}.norm_attn_norm.norm_1")) | dict(norm(f"{at}.norm_attn_norm.norm_2"))
        shapes |= dict(linear(f"{at}.norm_attn_norm.attn.Wqkv", (HEADS + 2 * KV_HEADS) * HEAD, WIDTH))
        shapes |= dict(linear(f"{at}.norm_attn_norm.attn.out_proj", WIDTH, WIDTH))
        shapes |= dict(linear(f"{at}.ffn.router.layer", EXPERTS, WIDTH))
        shapes |= {f"{at}.ffn.experts.mlp.{part}": (EXPERTS * FFN, WIDTH) for part in ("w1", "w2", "v1")}
    shapes |= dict(norm("transformer.norm_f")) | {"lm_head.weight": (BPE_TOKENS, WIDTH)}
    values: dict[str, Any] = {"architectures": ["DbrxForCausalLM"], "model_type": "dbrx_tiny", "d_model": WIDTH}
    values |= {"n_heads": HEADS, "n_layers": LAYERS, "max_seq_len": 512, "vocab_size": BPE_TOKENS}
    values |= {"attn_config": {"kv_n_heads": KV_HEADS, "rope_theta": 5e5, "clip_qkv": 8}}
    values |= {"ffn_config": {"ffn_hidden_size": FFN, "moe_num_experts": EXPERTS, "moe_top_k": 2}}
    return Tiny(values, shapes.items())


def janus() -> Tiny:
    text = {f"model.language_model.{n.removeprefix('model.')}": s for n, s in decoder(llama_layer, SPM_TOKENS)}
    text["lm_head.weight"] = text.pop("model.language_model.lm_head.weight")
    text["model.vision_model.embeddings.position_embedding.weight"] = (4, 16)
    values = config("LlamaForCausalLM", "llama", SPM_TOKENS)
    settings = {key: value for key, value in values.items() if key != "architectures"}
    return Tiny(
        {"architectures": ["JanusForConditionalGeneration"], "model_type": "janus_tiny", "text_config": settings},
        text.items(),
        tokenizer="spm",
    )


MORE: dict[str, Callable[[], Tiny]] = {
    function.__name__: function
    for function in (
        afmoe,
        bailingmoe,
        bailingmoe2,
        cohere2moe,
        dbrx,
        deepseek1,
        dots1,
        glm,
        grovemoe,
        jais,
        jamba,
        janus,
        kimi_linear,
        maple,
        openelm,
        plm,
        refact,
        sarvam,
        smallthinker,
    )
} | {
    "dream": like_llama("DreamModel", qwen2_layer, mask_token_id=5),
    "maincoder": like_llama("MaincoderForCausalLM", normed_layer, head_dim=HEAD),
    "nanbeige": like_llama("NanbeigeForCausalLM", tokenizer="spm", num_loops=2),
    "orion": like_llama("OrionForCausalLM", orion_layer, tokenizer="spm"),
    "pangu": like_llama("PanguEmbeddedForCausalLM", qwen2_layer, tokenizer="spm", tie_word_embeddings=False),
}
