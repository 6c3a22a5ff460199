"""A tiny checkpoint of each architecture that the reference data beside the repository has none of.

Where transformers knows a config its defaults are left out, as public checkpoints do; where it does not, the config is
as complete as the real ones are.
"""

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
    UNIGRAM_TOKENS,
    WIDTH,
    WORDS,
    Shapes,
    Tiny,
    attention,
    config,
    decoder,
    gated,
    linear,
    llama_layer,
    norm,
)
from tiny_more import MORE
from tiny_remote import REMOTE

__all__ = ["FAMILIES"]

EXPERTS = 4


def normed_attention(at: str, head: int = HEAD, q: int | None = None, k: int | None = None) -> Shapes:
    yield from attention(f"{at}.self_attn", head=head)
    yield from norm(f"{at}.self_attn.q_norm", q or head)
    yield from norm(f"{at}.self_attn.k_norm", k or head)


# ---- Gemma, Phi, StarCoder --------------------------------------------------------------------------------------


def gemma3(**more: Any) -> Tiny:
    def layer(at: str, i: int) -> Shapes:
        for name in ("input", "post_attention", "pre_feedforward", "post_feedforward"):
            yield from norm(f"{at}.{name}_layernorm")
        yield from normed_attention(at, 16)
        yield from gated(f"{at}.mlp")

    shapes = dict(decoder(layer, SPM_TOKENS + 8, head=False))  # eight rows without a token
    return Tiny(
        config("Gemma3ForCausalLM", "gemma3_text", SPM_TOKENS, head_dim=16, **more), shapes.items(), tokenizer="spm"
    )


def gemma3_vision() -> Tiny:
    """A Gemma 3 that sees: of its file only the text model matters here."""
    text = gemma3()
    shapes = {f"language_model.{name}": shape for name, shape in text.shapes}
    shapes |= dict(linear("vision_tower.vision_model.encoder.layers.0.mlp.fc1", 16, 16, True))
    shapes["multi_modal_projector.mm_input_projection_weight"] = (16, WIDTH)
    settings = {key: value for key, value in text.config.items() if key != "architectures"}
    values = {"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "text_config": settings}
    return Tiny(values, shapes.items(), tokenizer="spm")


# What sentence-transformers writes beside a model of embeddings.
def pooling(kind: str) -> dict[str, Any]:
    module = "sentence_transformers.models"
    modules = [{"idx": 0, "path": "", "type": f"{module}.Transformer"}]
    modules.append({"idx": 1, "path": "1_Pooling", "type": f"{module}.Pooling"})
    kinds = ("cls_token", "mean_tokens", "max_tokens", "lasttoken")
    return {
        "modules.json": modules,
        "1_Pooling/config.json": {f"pooling_mode_{name}": name == kind for name in kinds},
    }


def gemma_embedding() -> Tiny:
    tiny = gemma3(use_bidirectional_attention=True, sliding_window=512)
    shapes = {name.removeprefix("model."): shape for name, shape in tiny.shapes}
    tiny.config["architectures"] = ["Gemma3TextModel"]
    return Tiny(tiny.config, shapes.items(), tokenizer="spm", files=pooling("mean_tokens"))


def qwen3_embedding() -> Tiny:
    def layer(at: str, i: int) -> Shapes:
        yield from norm(f"{at}.input_layernorm")
        yield from norm(f"{at}.post_attention_layernorm")
        yield from normed_attention(at)
        yield from gated(f"{at}.mlp")

    shapes = {name.removeprefix("model."): shape for name, shape in decoder(layer, BPE_TOKENS, head=False)}
    return Tiny(config("Qwen3Model", "qwen3", head_dim=HEAD), shapes.items(), files=pooling("lasttoken"))


def falcon_40b() -> Tiny:
    shapes: dict[str, tuple[int, ...]] = {"transformer.word_embeddings.weight": (BPE_TOKENS, WIDTH)}
    for i in range(LAYERS):
        at = f"transformer.h.{i}"
        shapes |= dict(norm(f"{at}.ln_attn", bias=True)) | dict(norm(f"{at}.ln_mlp", bias=True))
        shapes |= dict(linear(f"{at}.self_attention.query_key_value", (HEADS + 2 * KV_HEADS) * HEAD, WIDTH))
        shapes |= dict(linear(f"{at}.self_attention.dense", WIDTH, WIDTH))
        shapes |= dict(linear(f"{at}.mlp.dense_h_to_4h", 4 * WIDTH, WIDTH))
        shapes |= dict(linear(f"{at}.mlp.dense_4h_to_h", WIDTH, 4 * WIDTH))
    shapes |= dict(norm("transformer.ln_f", bias=True)) | {"lm_head.weight": (BPE_TOKENS, WIDTH)}
    values = config("FalconForCausalLM", "falcon", num_kv_heads=KV_HEADS, new_decoder_architecture=True)
    del values["num_key_value_heads"], values["intermediate_size"]
    return Tiny(values, shapes.items())


def phi2() -> Tiny:
    def layer(at: str, i: int) -> Shapes:
        yield from norm(f"{at}.input_layernorm", bias=True)
        yield from linear(f"{at}.self_attn.q_proj", WIDTH, WIDTH, True)
        yield from linear(f"{at}.self_attn.k_proj", WIDTH, WIDTH, True)
        yield from linear(f"{at}.self_attn.v_proj", WIDTH, WIDTH, True)
        yield from linear(f"{at}.self_attn.dense", WIDTH, WIDTH, True)
        yield from linear(f"{at}.mlp.fc1", 4 * WIDTH, WIDTH, True)
        yield from linear(f"{at}.mlp.fc2", WIDTH, 4 * WIDTH, True)

    shapes = dict(decoder(layer, BPE_TOKENS, end="model.final_layernorm"))
    shapes |= {"model.final_layernorm.bias": (WIDTH,), "lm_head.bias": (BPE_TOKENS,)}
    return Tiny(config("PhiForCausalLM", "phi", num_key_value_heads=None), shapes.items(), dtype="F16")


def phi_layer(at: str, i: int) -> Shapes:
    yield from norm(f"{at}.input_layernorm")
    yield from norm(f"{at}.post_attention_layernorm")
    yield from linear(f"{at}.self_attn.qkv_proj", (HEADS + 2 * KV_HEADS) * HEAD, WIDTH)
    yield from linear(f"{at}.self_attn.o_proj", WIDTH, WIDTH)
    yield from linear(f"{at}.mlp.gate_up_proj", 2 * FFN, WIDTH)
    yield from linear(f"{at}.mlp.down_proj", WIDTH, FFN)


def phi4_mini() -> Tiny:
    factors = [1.0, 1.5, 2.0]  # for the 6 of a head's 8 rows that are rotated
    scaling = {"type": "longrope", "long_factor": [8.0, *factors[1:]], "short_factor": factors}
    more = {"partial_rotary_factor": 0.75, "rope_scaling": scaling, "max_position_embeddings": 131072}
    return Tiny(
        config("Phi3ForCausalLM", "phi3", original_max_position_embeddings=4096, pad_token_id=257, **more),
        decoder(phi_layer, BPE_TOKENS, head=False),
        settings={"tokenizer_class": "GPT2Tokenizer"},
    )


def phimoe() -> Tiny:
    def layer(at: str, i: int) -> Shapes:
        yield from norm(f"{at}.input_layernorm", bias=True)
        yield from norm(f"{at}.post_attention_layernorm", bias=True)
        yield from attention(f"{at}.self_attn", bias=True)
        yield f"{at}.self_attn.o_proj.bias", (WIDTH,)
        yield from linear(f"{at}.block_sparse_moe.gate", EXPERTS, WIDTH)
        for expert in range(EXPERTS):
            for part, out, into in (("w1", FFN, WIDTH), ("w2", WIDTH, FFN), ("w3", FFN, WIDTH)):
                yield from linear(f"{at}.block_sparse_moe.experts.{expert}.{part}", out, into)

    shapes = dict(decoder(layer, SPM_TOKENS)) | {"model.norm.bias": (WIDTH,), "lm_head.bias": (SPM_TOKENS,)}
    more = {"num_local_experts": EXPERTS, "original_max_position_embeddings": 4096}
    return Tiny(config("PhiMoEForCausalLM", "phimoe", SPM_TOKENS, **more), shapes.items(), tokenizer="spm")


def starcoder() -> Tiny:
    at = "transformer"
    shapes: dict[str, tuple[int, ...]] = {f"{at}.wte.weight": (BPE_TOKENS, WIDTH), f"{at}.wpe.weight": (64, WIDTH)}
    for i in range(LAYERS):
        for name in ("ln_1", "ln_2"):
            shapes |= dict(norm(f"{at}.h.{i}.{name}", bias=True))
        shapes |= dict(linear(f"{at}.h.{i}.attn.c_attn", WIDTH + 2 * HEAD, WIDTH, True))
        shapes |= dict(linear(f"{at}.h.{i}.attn.c_proj", WIDTH, WIDTH, True))
        shapes |= dict(linear(f"{at}.h.{i}.mlp.c_fc", 4 * WIDTH, WIDTH, True))
        shapes |= dict(linear(f"{at}.h.{i}.mlp.c_proj", WIDTH, 4 * WIDTH, True))
    shapes |= dict(norm(f"{at}.ln_f", bias=True))
    shape = {"n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS, "n_positions": 64, "vocab_size": BPE_TOKENS}
    values = {"architectures": ["GPTBigCodeForCausalLM"], "model_type": "gpt_bigcode", **shape}
    return Tiny(values, shapes.items())


def starcoder2() -> Tiny:
    def layer(at: str, i: int) -> Shapes:
        yield from norm(f"{at}.input_layernorm", bias=True)
        yield from norm(f"{at}.post_attention_layernorm", bias=True)
        yield from attention(f"{at}.self_attn", bias=True)
        yield f"{at}.self_attn.o_proj.bias", (WIDTH,)
        yield from linear(f"{at}.mlp.c_fc", FFN, WIDTH, True)
        yield from linear(f"{at}.mlp.c_proj", WIDTH, FFN, True)

    shapes = dict(decoder(layer, BPE_TOKENS, head=False)) | {"model.norm.bias": (WIDTH,)}
    return Tiny(config("Starcoder2ForCausalLM", "starcoder2", num_key_value_heads=2), shapes.items(), dtype="F32")


# ---- Llama's relatives ------------------------------------------------------------------------------------------


def like_llama(architecture: str, model_type: str, vocab: int = BPE_TOKENS, head: bool = True, **more: Any) -> Tiny:
    tokenizer = "spm" if vocab == SPM_TOKENS else "bpe"
    values = config(architecture, model_type, vocab, **more)
    return Tiny(values, decoder(llama_layer, vocab, head=head), tokenizer=tokenizer)


def llama_yarn() -> Tiny:
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048, "attention_factor": 1.5}
    return like_llama("LlamaForCausalLM", "llama", SPM_TOKENS, rope_scaling=scaling)


def llama_linear() -> Tiny:
    return like_llama("LlamaForCausalLM", "llama", SPM_TOKENS, rope_scaling={"type": "linear", "factor": 2.0})


def smollm3() -> Tiny:
    return like_llama("SmolLM3ForCausalLM", "smollm3", head=False, pad_token_id=257)


def internlm2() -> Tiny:
    def layer(at: str, i: int) -> Shapes:
        yield from norm(f"{at}.attention_norm")
        yield from norm(f"{at}.ffn_norm")
        yield from linear(f"{at}.attention.wqkv", (HEADS + 2 * KV_HEADS) * HEAD, WIDTH)
        yield from linear(f"{at}.attention.wo", WIDTH, WIDTH)
        yield from linear(f"{at}.feed_forward.w1", FFN, WIDTH)
        yield from linear(f"{at}.feed_forward.w2", WIDTH, FFN)
        yield from linear(f"{at}.feed_forward.w3", FFN, WIDTH)

    shapes = dict(decoder(layer, SPM_TOKENS, head=False))
    shapes["model.tok_embeddings.weight"] = shapes.pop("model.embed_tokens.weight")
    shapes["output.weight"] = (SPM_TOKENS, WIDTH)
    more = {"max_position_embeddings": 32768, "rms_norm_eps": 1e-5, "rope_theta": 1000000, "eos_token_id": 2}
    more["rope_scaling"] = {"type": "dynamic", "factor": 2.0}
    return Tiny(config("InternLM2ForCausalLM", "internlm2", SPM_TOKENS, **more), shapes.items(), tokenizer="spm")


def internlm3() -> Tiny:
    more = {"max_position_embeddings": 32768, "rms_norm_eps": 1e-5, "rope_theta": 50000000, "head_dim": HEAD}
    return like_llama("InternLM3ForCausalLM", "internlm3", SPM_TOKENS, **more)


def minicpm() -> Tiny:
    more = {"max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "scale_emb": 12, "dim_model_base": 16}
    return like_llama("MiniCPMForCausalLM", "minicpm", SPM_TOKENS, head=False, scale_depth=1.4, **more)


def minicpm3() -> Tiny:
    nope, rope, v, latent = 4, 4, 8, 16

    def layer(at: str, i: int) -> Shapes:
        yield from norm(f"{at}.input_layernorm")
        yield from norm(f"{at}.post_attention_layernorm")
        yield from mla(at, latent, nope, rope, v, q_latent=24)
        yield from gated(f"{at}.mlp")

    scaling = {"type": "longrope", "long_factor": [1.0, 2.0], "short_factor": [1.0, 1.0]}
    more = {"kv_lora_rank": latent, "q_lora_rank": 24, "qk_nope_head_dim": nope, "qk_rope_head_dim": rope}
    more |= {"max_position_embeddings": 32768, "rms_norm_eps": 1e-5, "rope_scaling": scaling, "scale_emb": 12}
    more |= {"dim_model_base": 16, "scale_depth": 1.4, "num_key_value_heads": HEADS}
    return Tiny(
        config("MiniCPM3ForCausalLM", "minicpm3", SPM_TOKENS, **more),
        decoder(layer, SPM_TOKENS, head=False),
        tokenizer="spm",
    )


def exaone() -> Tiny:
    at = "transformer"
    shapes: dict[str, tuple[int, ...]] = {f"{at}.wte.weight": (BPE_TOKENS, WIDTH)}
    for i in range(LAYERS):
        shapes |= dict(norm(f"{at}.h.{i}.ln_1")) | dict(norm(f"{at}.h.{i}.ln_2"))
        shapes |= dict(attention(f"{at}.h.{i}.attn.attention", out="out_proj"))
        shapes |= dict(linear(f"{at}.h.{i}.mlp.c_fc_0", FFN, WIDTH)) | dict(
            linear(f"{at}.h.{i}.mlp.c_fc_1", FFN, WIDTH)
        )
        shapes |= dict(linear(f"{at}.h.{i}.mlp.c_proj", WIDTH, FFN))
    shapes |= dict(norm(f"{at}.ln_f")) | {"lm_head.weight": (BPE_TOKENS, WIDTH)}
    values = config("ExaoneForCausalLM", "exaone", num_layers=LAYERS, activation_function="silu", head_dim=HEAD)
    del values["num_hidden_layers"]
    values |= {"max_position_embeddings": 32768, "rms_norm_eps": 1e-5, "rope_theta": 1000000}
    values["rope_scaling"] = {"factor": 8.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0, "rope_type": "llama3"}
    values["rope_scaling"]["original_max_position_embeddings"] = 8192
    return Tiny(values, shapes.items())


def exaone4() -> Tiny:
    def layer(at: str, i: int) -> Shapes:
        yield from normed_attention(at)
        yield from norm(f"{at}.post_attention_layernorm")
        yield from norm(f"{at}.post_feedforward_layernorm")
        yield from gated(f"{at}.mlp")

    return Tiny(config("Exaone4ForCausalLM", "exaone4", head_dim=HEAD), decoder(layer, BPE_TOKENS))


def glm4() -> Tiny:
    def layer(at: str, i: int) -> Shapes:
        for name in ("input", "post_attention", "post_self_attn", "post_mlp"):
            yield from norm(f"{at}.{name}_layernorm")
        yield from attention(f"{at}.self_attn", bias=True)
        yield from linear(f"{at}.mlp.gate_up_proj", 2 * FFN, WIDTH)
        yield from linear(f"{at}.mlp.down_proj", WIDTH, FFN)

    more = {"head_dim": HEAD, "num_key_value_heads": KV_HEADS, "pad_token_id": 258}
    return Tiny(config("Glm4ForCausalLM", "glm4", **more), decoder(layer, BPE_TOKENS))


def qwen3moe() -> Tiny:
    def layer(at: str, i: int) -> Shapes:
        yield from norm(f"{at}.input_layernorm")
        yield from norm(f"{at}.post_attention_layernorm")
        yield from normed_attention(at)
        yield from linear(f"{at}.mlp.gate", EXPERTS, WIDTH)
        for expert in range(EXPERTS):
            yield from gated(f"{at}.mlp.experts.{expert}", FFN // 2)

    more = {"num_experts": EXPERTS, "num_experts_per_tok": 2, "moe_intermediate_size": FFN // 2, "head_dim": HEAD}
    return Tiny(config("Qwen3MoeForCausalLM", "qwen3_moe", **more), decoder(layer, BPE_TOKENS))


def olmo3() -> Tiny:
    def layer(at: str, i: int) -> Shapes:
        yield from normed_attention(at, HEAD, HEADS * HEAD, KV_HEADS * HEAD)
        yield from norm(f"{at}.post_attention_layernorm")
        yield from norm(f"{at}.post_feedforward_layernorm")
        yield from gated(f"{at}.mlp")

    return Tiny(config("Olmo3ForCausalLM", "olmo3", pad_token_id=258), decoder(layer, BPE_TOKENS))


def granitemoe() -> Tiny:
    def layer(at: str, i: int) -> Shapes:
        yield from norm(f"{at}.input_layernorm")
        yield from norm(f"{at}.post_attention_layernorm")
        yield from attention(f"{at}.self_attn")
        yield f"{at}.block_sparse_moe.input_linear.weight", (EXPERTS, 2 * FFN, WIDTH)
        yield f"{at}.block_sparse_moe.output_linear.weight", (EXPERTS, WIDTH, FFN)
        yield from linear(f"{at}.block_sparse_moe.router.layer", EXPERTS, WIDTH)
        yield from linear(f"{at}.shared_mlp.input_linear", 2 * FFN, WIDTH)
        yield from linear(f"{at}.shared_mlp.output_linear", WIDTH, FFN)

    more = {"num_local_experts": EXPERTS, "shared_intermediate_size": FFN}
    values = config("GraniteMoeSharedForCausalLM", "granitemoeshared", **more)
    return Tiny(values, decoder(layer, BPE_TOKENS, head=False))


# ---- Cohere, Nemotron, DeepSeek ---------------------------------------------------------------------------------


def parallel(at: str, i: int) -> Shapes:
    yield from norm(f"{at}.input_layernorm")
    yield from attention(f"{at}.self_attn")
    yield from gated(f"{at}.mlp")


def command_r() -> Tiny:
    values = config("CohereForCausalLM", "cohere", model_max_length=131072)
    return Tiny(values, decoder(parallel, BPE_TOKENS, head=False), dtype="F16")


def cohere2() -> Tiny:
    values = config("Cohere2ForCausalLM", "cohere2", rotary_pct=1.0)
    return Tiny(values, decoder(parallel, BPE_TOKENS, head=False))


def nemotron() -> Tiny:
    def layer(at: str, i: int) -> Shapes:
        yield from norm(f"{at}.input_layernorm", bias=True)
        yield from norm(f"{at}.post_attention_layernorm", bias=True)
        yield from attention(f"{at}.self_attn")
        yield from linear(f"{at}.mlp.up_proj", FFN, WIDTH)
        yield from linear(f"{at}.mlp.down_proj", WIDTH, FFN)

    shapes = dict(decoder(layer, SPM_TOKENS)) | {"model.norm.bias": (WIDTH,)}
    return Tiny(config("NemotronForCausalLM", "nemotron", SPM_TOKENS), shapes.items(), tokenizer="spm")


def mla(at: str, latent: int, nope: int, rope: int, v: int, q_latent: int) -> Shapes:
    """Attention with latent queries, keys and values."""
    at += ".self_attn"
    yield from linear(f"{at}.q_a_proj", q_latent, WIDTH)
    yield from norm(f"{at}.q_a_layernorm", q_latent)
    yield from linear(f"{at}.q_b_proj", HEADS * (nope + rope), q_latent)
    yield from linear(f"{at}.kv_a_proj_with_mqa", latent + rope, WIDTH)
    yield from norm(f"{at}.kv_a_layernorm", latent)
    yield from linear(f"{at}.kv_b_proj", HEADS * (nope + v), latent)
    yield from linear(f"{at}.o_proj", WIDTH, HEADS * v)


def deepseek2(version: int) -> Tiny:
    latent, nope, rope, v, expert_ffn = 16, 4, 8, 4, 24

    def layer(at: str, i: int) -> Shapes:
        yield from norm(f"{at}.input_layernorm")
        yield from norm(f"{at}.post_attention_layernorm")
        yield from mla(at, latent, nope, rope, v, q_latent=24)
        if i < 1:
            yield from gated(f"{at}.mlp")
            return
        yield from linear(f"{at}.mlp.gate", EXPERTS, WIDTH)
        if version == 3:
            yield f"{at}.mlp.gate.e_score_correction_bias", (EXPERTS,)
        yield from gated(f"{at}.mlp.shared_experts", expert_ffn)
        for expert in range(EXPERTS):
            yield from gated(f"{at}.mlp.experts.{expert}", expert_ffn)

    shapes = dict(decoder(layer, BPE_TOKENS))
    scaling = {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096, "mscale": 0.707}
    scaling |= {"mscale_all_dim": 0.707, "beta_fast": 32, "beta_slow": 1}
    more = {"kv_lora_rank": latent, "qk_nope_head_dim": nope, "qk_rope_head_dim": rope, "v_head_dim": v}
    more |= {"n_routed_experts": EXPERTS, "n_shared_experts": 1, "num_experts_per_tok": 2, "rope_scaling": scaling}
    more |= {"moe_intermediate_size": expert_ffn, "first_k_dense_replace": 1, "num_key_value_heads": HEADS}
    more |= {"max_position_embeddings": 163840}
    if version == 2:
        more |= {"q_lora_rank": 24, "norm_topk_prob": False, "scoring_func": "softmax"}
        return Tiny(config("DeepseekV2ForCausalLM", "deepseek_v2", **more), shapes.items())
    # A further layer predicts the token after the next.
    shapes |= dict(layer(f"model.layers.{LAYERS}", 1)) | {f"model.layers.{LAYERS}.eh_proj.weight": (WIDTH, 2 * WIDTH)}
    more |= {"q_lora_rank": 24, "scoring_func": "sigmoid", "topk_method": "noaux_tc", "n_group": 2, "topk_group": 1}
    return Tiny(config("DeepseekV3ForCausalLM", "deepseek_v3", **more), shapes.items())


def deepseek_fp8() -> Tiny:
    """Version 3 as it is published: the layers' matrices in eight bits, a scale for each block."""
    tiny = deepseek2(3)
    shapes = dict(tiny.shapes)
    for name, shape in list(shapes.items()):
        if name.endswith("_proj.weight") or "_with_mqa" in name:
            shapes[f"{name}_scale_inv"] = (-(shape[0] // -16), -(shape[1] // -16))
    tiny.config["quantization_config"] = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [16, 16]}
    return Tiny(tiny.config, shapes.items())


# ---- other layouts ----------------------------------------------------------------------------------------------


def bert_like(prefix: str, tokens: int, positions: int) -> Shapes:
    yield f"{prefix}embeddings.word_embeddings.weight", (tokens, WIDTH)
    yield f"{prefix}embeddings.position_embeddings.weight", (positions, WIDTH)
    yield f"{prefix}embeddings.token_type_embeddings.weight", (2, WIDTH)
    yield from norm(f"{prefix}embeddings.LayerNorm", bias=True)
    for i in range(LAYERS):
        at = f"{prefix}encoder.layer.{i}"
        for part in ("query", "key", "value"):
            yield from linear(f"{at}.attention.self.{part}", WIDTH, WIDTH, True)
        yield from linear(f"{at}.attention.output.dense", WIDTH, WIDTH, True)
        yield from norm(f"{at}.attention.output.LayerNorm", bias=True)
        yield from linear(f"{at}.intermediate.dense", FFN, WIDTH, True)
        yield from linear(f"{at}.output.dense", WIDTH, FFN, True)
        yield from norm(f"{at}.output.LayerNorm", bias=True)


def encoder(architecture: str, model_type: str, tokens: int, tokenizer: str, prefix: str, **more: Any) -> Tiny:
    values = config(architecture, model_type, tokens, max_position_embeddings=66, **more)
    del values["num_key_value_heads"]
    return Tiny(values, bert_like(prefix, tokens, 66), tokenizer=tokenizer, dtype="F32")


def roberta() -> Tiny:
    return encoder("RobertaModel", "roberta", BPE_TOKENS, "bpe", "roberta.")


def xlm_roberta() -> Tiny:
    return encoder("XLMRobertaModel", "xlm-roberta", UNIGRAM_TOKENS + 1, "unigram", "", type_vocab_size=2)


def bert_classifier() -> Tiny:
    tiny = encoder(
        "BertForSequenceClassification", "bert", WORDS, "wordpiece", "bert.", id2label={"0": "no", "1": "yes"}
    )
    shapes = dict(tiny.shapes) | dict(linear("classifier", 2, WIDTH, True))
    shapes |= dict(linear("bert.pooler.dense", WIDTH, WIDTH, True))
    return Tiny(tiny.config, shapes.items(), tokenizer="wordpiece", dtype="F32")


def nomic_bert(experts: bool) -> Tiny:
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (WORDS, WIDTH),
        "embeddings.token_type_embeddings.weight": (2, WIDTH),
    }
    shapes |= dict(norm("emb_ln", bias=True))
    for i in range(LAYERS):
        at = f"encoder.layers.{i}"
        shapes |= dict(linear(f"{at}.attn.Wqkv", 3 * WIDTH, WIDTH, experts))
        shapes |= dict(linear(f"{at}.attn.out_proj", WIDTH, WIDTH, experts))
        shapes |= dict(norm(f"{at}.norm1", bias=True)) | dict(norm(f"{at}.norm2", bias=True))
        if experts and i % 2:
            shapes |= {f"{at}.mlp.experts.bias": (WIDTH,)} | dict(linear(f"{at}.mlp.router.layer", EXPERTS, WIDTH))
            shapes |= {f"{at}.mlp.experts.mlp.w{n}": (EXPERTS * FFN, WIDTH) for n in (1, 2)}
        elif experts:
            shapes |= dict(linear(f"{at}.mlp.fc1", FFN, WIDTH, True)) | dict(linear(f"{at}.mlp.fc2", WIDTH, FFN, True))
        else:
            for part in ("fc11", "fc12"):
                shapes |= dict(linear(f"{at}.mlp.{part}", FFN, WIDTH))
            shapes |= dict(linear(f"{at}.mlp.fc2", WIDTH, FFN))
    values = {"architectures": ["NomicBertModel"], "model_type": "nomic_bert", "n_embd": WIDTH, "n_inner": FFN}
    values |= {"n_layer": LAYERS, "n_head": HEADS, "vocab_size": WORDS, "type_vocab_size": 2, "causal": False}
    values |= {"rotary_emb_base": 1000, "rotary_emb_fraction": 1.0, "rotary_emb_interleaved": False}
    values |= {"rotary_emb_scale_base": None, "layer_norm_epsilon": 1e-12, "prenorm": False}
    values |= dict.fromkeys(("qkv_proj_bias", "mlp_fc1_bias", "mlp_fc2_bias"), experts)
    if experts:
        values |= {"moe_every_n_layers": 2, "moe_top_k": 2, "num_experts": EXPERTS, "n_positions": 2048}
        values |= {"activation_function": "gelu"}
    else:
        values |= {"n_positions": 8192, "activation_function": "swiglu"}
    return Tiny(values, shapes.items(), tokenizer="wordpiece", dtype="F32")


def mamba() -> Tiny:
    inner, state, rank, kernel = 2 * WIDTH, 16, 2, 4
    shapes: dict[str, tuple[int, ...]] = {"backbone.embedding.weight": (264, WIDTH)}  # rounded up to a multiple of 8
    for i in range(LAYERS):
        at = f"backbone.layers.{i}"
        shapes |= dict(norm(f"{at}.norm")) | dict(linear(f"{at}.mixer.in_proj", 2 * inner, WIDTH))
        shapes |= {f"{at}.mixer.conv1d.weight": (inner, 1, kernel), f"{at}.mixer.conv1d.bias": (inner,)}
        shapes |= dict(linear(f"{at}.mixer.x_proj", rank + 2 * state, inner))
        shapes |= dict(linear(f"{at}.mixer.dt_proj", inner, rank, True))
        shapes |= {f"{at}.mixer.A_log": (inner, state), f"{at}.mixer.D": (inner,)}
        shapes |= dict(linear(f"{at}.mixer.out_proj", WIDTH, inner))
    shapes |= dict(norm("backbone.norm_f"))
    values = {"architectures": ["MambaForCausalLM"], "model_type": "mamba", "hidden_size": WIDTH, "vocab_size": 260}
    values |= {"num_hidden_layers": LAYERS, "state_size": state, "conv_kernel": kernel, "intermediate_size": inner}
    return Tiny(values | {"time_step_rank": rank, "layer_norm_epsilon": 1e-5}, shapes.items(), dtype="F32")


def mamba2() -> Tiny:
    inner, state, head, kernel, groups = 2 * WIDTH, 16, 16, 4, 2
    heads = inner // head
    shapes: dict[str, tuple[int, ...]] = {"backbone.embeddings.weight": (272, WIDTH)}  # a multiple of 16
    for i in range(LAYERS):
        at = f"backbone.layers.{i}"
        mixed = inner + 2 * groups * state
        shapes |= dict(norm(f"{at}.norm")) | dict(linear(f"{at}.mixer.in_proj", inner + mixed + heads, WIDTH))
        shapes |= {f"{at}.mixer.conv1d.weight": (mixed, 1, kernel), f"{at}.mixer.conv1d.bias": (mixed,)}
        shapes |= {f"{at}.mixer.A_log": (heads,), f"{at}.mixer.D": (heads,), f"{at}.mixer.dt_bias": (heads,)}
        shapes |= dict(norm(f"{at}.mixer.norm", inner)) | dict(linear(f"{at}.mixer.out_proj", WIDTH, inner))
    shapes |= dict(norm("backbone.norm_f")) | {"lm_head.weight": (272, WIDTH)}
    values = {"architectures": ["Mamba2ForCausalLM"], "model_type": "mamba2", "hidden_size": WIDTH, "vocab_size": 260}
    values |= {"num_hidden_layers": LAYERS, "state_size": state, "conv_kernel": kernel, "head_dim": head}
    return Tiny(values | {"n_groups": groups, "layer_norm_epsilon": 1e-5}, shapes.items(), dtype="F32")


def lfm2() -> Tiny:
    def layer(at: str, i: int) -> Shapes:
        yield from norm(f"{at}.operator_norm")
        yield from norm(f"{at}.ffn_norm")
        if i == 1:
            yield from attention(f"{at}.self_attn", out="out_proj")
            yield from norm(f"{at}.self_attn.q_layernorm", HEAD)
            yield from norm(f"{at}.self_attn.k_layernorm", HEAD)
        else:
            yield f"{at}.conv.conv.weight", (WIDTH, 1, 3)
            yield from linear(f"{at}.conv.in_proj", 3 * WIDTH, WIDTH)
            yield from linear(f"{at}.conv.out_proj", WIDTH, WIDTH)
        yield from linear(f"{at}.feed_forward.w1", 256, WIDTH)
        yield from linear(f"{at}.feed_forward.w2", WIDTH, 256)
        yield from linear(f"{at}.feed_forward.w3", 256, WIDTH)

    values = config("Lfm2ForCausalLM", "lfm2", num_key_value_heads=KV_HEADS, full_attn_idxs=[1], block_ff_dim=300)
    return Tiny(values, decoder(layer, BPE_TOKENS, head=False, end="model.embedding_norm"))


def bloom() -> Tiny:
    at = "transformer"
    shapes: dict[str, tuple[int, ...]] = {f"{at}.word_embeddings.weight": (BPE_TOKENS, WIDTH)}
    shapes |= dict(norm(f"{at}.word_embeddings_layernorm", bias=True)) | dict(norm(f"{at}.ln_f", bias=True))
    for i in range(LAYERS):
        for name in ("input_layernorm", "post_attention_layernorm"):
            shapes |= dict(norm(f"{at}.h.{i}.{name}", bias=True))
        shapes |= dict(linear(f"{at}.h.{i}.self_attention.query_key_value", 3 * WIDTH, WIDTH, True))
        shapes |= dict(linear(f"{at}.h.{i}.self_attention.dense", WIDTH, WIDTH, True))
        shapes |= dict(linear(f"{at}.h.{i}.mlp.dense_h_to_4h", 4 * WIDTH, WIDTH, True))
        shapes |= dict(linear(f"{at}.h.{i}.mlp.dense_4h_to_h", WIDTH, 4 * WIDTH, True))
    values = {"architectures": ["BloomForCausalLM"], "model_type": "bloom", "hidden_size": WIDTH, "n_layer": LAYERS}
    return Tiny(values | {"n_head": HEADS, "vocab_size": BPE_TOKENS, "seq_length": 2048}, shapes.items(), dtype="F16")


def mpt() -> Tiny:
    at = "transformer"
    shapes: dict[str, tuple[int, ...]] = {f"{at}.wte.weight": (BPE_TOKENS, WIDTH)} | dict(norm(f"{at}.norm_f"))
    for i in range(LAYERS):
        shapes |= dict(norm(f"{at}.blocks.{i}.norm_1")) | dict(norm(f"{at}.blocks.{i}.norm_2"))
        shapes |= dict(linear(f"{at}.blocks.{i}.attn.Wqkv", 3 * WIDTH, WIDTH))
        shapes |= dict(linear(f"{at}.blocks.{i}.attn.out_proj", WIDTH, WIDTH))
        shapes |= dict(linear(f"{at}.blocks.{i}.ffn.up_proj", 4 * WIDTH, WIDTH))
        shapes |= dict(linear(f"{at}.blocks.{i}.ffn.down_proj", WIDTH, 4 * WIDTH))
    values: dict[str, Any] = {"architectures": ["MPTForCausalLM"], "model_type": "mpt", "d_model": WIDTH}
    values |= {"n_layers": LAYERS, "n_heads": HEADS, "vocab_size": BPE_TOKENS, "max_seq_len": 4096}
    return Tiny(values | {"attn_config": {"alibi": True, "clip_qkv": 6}}, shapes.items())


def t5encoder() -> Tiny:
    shapes: dict[str, tuple[int, ...]] = {"shared.weight": (SPM_TOKENS, WIDTH)}
    shapes |= {"encoder.embed_tokens.weight": (SPM_TOKENS, WIDTH), "encoder.final_layer_norm.weight": (WIDTH,)}
    for i in range(LAYERS):
        at = f"encoder.block.{i}.layer"
        for part in "qkvo":
            shapes |= dict(linear(f"{at}.0.SelfAttention.{part}", WIDTH, WIDTH))
        if i == 0:
            shapes[f"{at}.0.SelfAttention.relative_attention_bias.weight"] = (32, HEADS)
        shapes |= {f"{at}.{n}.layer_norm.weight": (WIDTH,) for n in (0, 1)}
        shapes |= dict(linear(f"{at}.1.DenseReluDense.wi", FFN, WIDTH))
        shapes |= dict(linear(f"{at}.1.DenseReluDense.wo", WIDTH, FFN))
    values = {"architectures": ["T5EncoderModel"], "model_type": "t5", "d_model": WIDTH, "d_ff": FFN, "d_kv": HEAD}
    values |= {"num_layers": LAYERS, "num_heads": HEADS, "vocab_size": SPM_TOKENS, "decoder_start_token_id": 0}
    return Tiny(values, shapes.items(), tokenizer="spm", dtype="F32")


FAMILIES: dict[str, Callable[[], Tiny]] = {
    "bert-classifier": bert_classifier,
    "bloom": bloom,
    "cohere2": cohere2,
    "command-r": command_r,
    "deepseek-v2": lambda: deepseek2(2),
    "deepseek-v3": lambda: deepseek2(3),
    "deepseek-v3-fp8": deepseek_fp8,
    "exaone": exaone,
    "exaone4": exaone4,
    "falcon-40b": falcon_40b,
    "gemma-embedding": gemma_embedding,
    "gemma3": gemma3,
    "gemma3-linear": lambda: gemma3(rope_scaling={"rope_type": "linear", "factor": 8.0}, sliding_window=64),
    "gemma3-vision": gemma3_vision,
    "glm4": glm4,
    "granitemoe": granitemoe,
    "internlm2": internlm2,
    "internlm3": internlm3,
    "lfm2": lfm2,
    "llama-linear": llama_linear,
    "llama-yarn": llama_yarn,
    "mamba": mamba,
    "mamba2": mamba2,
    "minicpm": minicpm,
    "minicpm3": minicpm3,
    "mpt": mpt,
    "nemotron": nemotron,
    "nomic-bert": lambda: nomic_bert(False),
    "nomic-bert-moe": lambda: nomic_bert(True),
    "olmo3": olmo3,
    "phi2": phi2,
    "phi4-mini": phi4_mini,
    "phimoe": phimoe,
    "qwen3-embedding": qwen3_embedding,
    "qwen3moe": qwen3moe,
    "roberta": roberta,
    "smollm3": smollm3,
    "starcoder": starcoder,
    "starcoder2": starcoder2,
    "t5encoder": t5encoder,
    "xlm-roberta": xlm_roberta,
    **MORE,
    **REMOTE,
}
