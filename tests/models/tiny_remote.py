"""Tiny checkpoints of families whose vocabularies or code are their own: RWKV, PLaMo, Qwen 1, Arctic, DeciLM, …"""

from __future__ import annotations

import json
from base64 import b64encode
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
    config,
    decoder,
    gated,
    linear,
    llama_layer,
    norm,
    tokenizer_files,
)

__all__ = ["REMOTE"]

EXPERTS, RANK = 4, 8
TEKKEN_TOKENS = 24 + 263
PLAMO_TOKENS, RANKED_TOKENS = 24, 480
LLAMA: dict[str, Any] = {"max_position_embeddings": 512, "rms_norm_eps": 1e-6, "rope_theta": 10000.0}


# ---- vocabularies -----------------------------------------------------------------------------------------------


def rwkv_file() -> dict[str, Any]:
    """Lines of bytes, of text, and a gap at the end that padding fills."""
    tokens: list[str | bytes] = [
        *(bytes([byte]) for byte in range(256)),
        "th",
        "\u00e9",
        "\n\n",
        b"\xe4\xb8",
        "the quick",
    ]
    lines = [
        f"{number} {token!r} {len(token.encode() if isinstance(token, str) else token)}\n"
        for number, token in enumerate(tokens, 1)
    ]
    return {"rwkv_vocab_v20230424.txt": "".join(lines).encode()}


def plamo_file() -> dict[str, Any]:
    tokens = [("<|plamo:unk|>", 0.0, "UNKNOWN"), ("<|plamo:bos|>", 0.0, "CONTROL"), ("<|plamo:eos|>", 0.0, "CONTROL")]
    tokens += [("<|plamo:pad|>", 0.0, "CONTROL"), ("<|plamo:op|>", 0.0, "NORMAL"), ("<|plamo:tag|>", 0.0, "CONTROL")]
    tokens += [(f"<0x{byte:02X}>", 0.0, "BYTE") for byte in range(3)]
    tokens += [(text, -1.5 * i, "NORMAL") for i, text in enumerate(("a", "b", "ab", " ", "\u3042", "<|plamo:begin_"))]
    lines = "".join(json.dumps([*token, None]) + "\n" for token in tokens)
    return {"tokenizer.jsonl": lines.encode()}


def plamo_settings(version: int) -> dict[str, Any]:
    roles = {f"{role}_token": f"<|plamo:{role}|>" for role in ("unk", "bos", "eos", "pad")}
    return {"tokenizer_class": f"Plamo{version}Tokenizer", "add_bos_token": True, "add_eos_token": False, **roles}


def ranks_file(name: str) -> dict[str, Any]:
    """All bytes, then some merges of merges."""
    tokens = [bytes([byte]) for byte in range(256)] + [b"th", b"he", b"the", b" the", b"aa", b"aaaa", b"\xe4\xb8"]
    lines = "".join(f"{b64encode(token).decode()} {rank}\n" for rank, token in enumerate(tokens))
    return {name: lines.encode()}


def tekken_file(version: str = "v3") -> dict[str, Any]:
    tokens = [bytes([byte]) for byte in range(256)] + [b"th", b"he", b"the", b" t", b" the", b"aa", b"aaa", b"beyond"]
    vocab = [
        {"rank": rank, "token_bytes": b64encode(token).decode(), "token_str": None} for rank, token in enumerate(tokens)
    ]
    config = {"pattern": "\\p{L}+|.", "num_vocab_tokens": len(tokens), "version": version}
    config |= {"default_vocab_size": TEKKEN_TOKENS, "default_num_special_tokens": 24}
    return {"tekken.json": {"config": config, "vocab": vocab, "version": 1, "type": "Tekken"}}


# ---- RWKV -------------------------------------------------------------------------------------------------------


def rwkv6() -> Tiny:
    shapes: dict[str, tuple[int, ...]] = {
        "rwkv.embeddings.weight": (BPE_TOKENS + 8, WIDTH),
        "head.weight": (BPE_TOKENS + 8, WIDTH),
    }
    shapes |= dict(norm("rwkv.blocks.0.pre_ln", bias=True)) | dict(norm("rwkv.ln_out", bias=True))
    for i in range(LAYERS):
        at = f"rwkv.blocks.{i}"
        shapes |= dict(norm(f"{at}.ln1", bias=True)) | dict(norm(f"{at}.ln2", bias=True))
        shapes |= {f"{at}.attention.time_maa_{use}": (1, 1, WIDTH) for use in "xwkvrg"}
        shapes |= {f"{at}.attention.time_maa_w1": (WIDTH, 5 * RANK), f"{at}.attention.time_maa_w2": (5, RANK, WIDTH)}
        shapes |= {f"{at}.attention.time_decay": (1, 1, WIDTH), f"{at}.attention.time_faaaa": (HEADS, HEAD)}
        shapes |= {f"{at}.attention.time_decay_w1": (WIDTH, RANK), f"{at}.attention.time_decay_w2": (RANK, WIDTH)}
        for part in ("receptance", "key", "value", "gate", "output"):
            shapes |= dict(linear(f"{at}.attention.{part}", WIDTH, WIDTH))
        shapes |= dict(norm(f"{at}.attention.ln_x", bias=True))
        shapes |= {f"{at}.feed_forward.time_maa_{use}": (1, 1, WIDTH) for use in "kr"}
        shapes |= dict(linear(f"{at}.feed_forward.key", FFN, WIDTH)) | dict(
            linear(f"{at}.feed_forward.value", WIDTH, FFN)
        )
        shapes |= dict(linear(f"{at}.feed_forward.receptance", WIDTH, WIDTH))
    values = {
        "architectures": ["Rwkv6ForCausalLM"],
        "model_type": "rwkv6",
        "hidden_size": WIDTH,
        "intermediate_size": None,
        "num_hidden_layers": LAYERS,
        "head_size": HEAD,
        "layer_norm_epsilon": 1e-5,
        "rescale_every": 1,
        "vocab_size": BPE_TOKENS + 8,
        "bos_token_id": 3,
    }
    return Tiny(values, shapes.items(), tokenizer="none", files=rwkv_file())


def rwkv6qwen2() -> Tiny:
    def layer(at: str, i: int) -> Shapes:
        yield from norm(f"{at}.input_layernorm")
        yield from attention(f"{at}.self_attn", bias=True)
        yield from linear(f"{at}.self_attn.gate", WIDTH, WIDTH)
        yield from ((f"{at}.self_attn.time_maa_{use}", (1, 1, WIDTH)) for use in "xrkvwg")
        yield f"{at}.self_attn.time_maa_w1", (WIDTH, 5 * RANK)
        yield f"{at}.self_attn.time_maa_w2", (5, RANK, WIDTH)
        yield f"{at}.self_attn.time_decay", (1, 1, WIDTH)
        yield f"{at}.self_attn.time_decay_w1", (WIDTH, RANK)
        yield f"{at}.self_attn.time_decay_w2", (RANK, WIDTH)
        yield from norm(f"{at}.post_attention_layernorm")
        yield from gated(f"{at}.mlp")

    values = config(
        "RWKV6Qwen2ForCausalLM", "rwkv6qwen2", rms_norm_eps=1e-6, lora_rank_decay=RANK, lora_rank_tokenshift=RANK
    )
    return Tiny(values, decoder(layer, BPE_TOKENS), dtype="F16")


def seven_layer(at: str, i: int, inner: str = "attn", gate: bool = True) -> Shapes:
    yield from ((f"{at}.{inner}.x_{use}", (1, 1, WIDTH)) for use in ("rwkvag" if gate else "rwkva"))
    yield f"{at}.{inner}.k_k", (WIDTH,)
    yield f"{at}.{inner}.k_a", (WIDTH,)
    yield f"{at}.{inner}.r_k", (HEADS, HEAD)


def rwkv7() -> Tiny:
    """As fla has it: low-rank matrices are modules."""

    def layer(at: str, i: int) -> Shapes:
        if i == 0:
            yield from norm(f"{at}.pre_norm", bias=True)
        yield from norm(f"{at}.attn_norm", bias=True)
        yield from norm(f"{at}.ffn_norm", bias=True)
        yield from seven_layer(at, i)
        for use in "wavg" if i else "wag":
            yield f"{at}.attn.{use}_lora.lora.0.weight", (RANK, WIDTH)
            yield f"{at}.attn.{use}_lora.lora.2.weight", (WIDTH, RANK)
            if use != "g":
                yield f"{at}.attn.{use}_lora.lora.2.bias", (WIDTH,)
        for part in ("r_proj", "k_proj", "v_proj", "o_proj"):
            yield from linear(f"{at}.attn.{part}", WIDTH, WIDTH)
        yield from norm(f"{at}.attn.g_norm", bias=True)
        yield f"{at}.ffn.x_k", (WIDTH,)
        yield from linear(f"{at}.ffn.key", FFN, WIDTH)
        yield from linear(f"{at}.ffn.value", WIDTH, FFN)

    shapes = {"model.embeddings.weight": (BPE_TOKENS + 8, WIDTH), "lm_head.weight": (BPE_TOKENS + 8, WIDTH)}
    for i in range(LAYERS):
        shapes |= dict(layer(f"model.layers.{i}", i))
    shapes |= dict(norm("model.norm", bias=True))
    values = {
        "architectures": ["RWKV7ForCausalLM"],
        "model_type": "rwkv7",
        "hidden_size": WIDTH,
        "intermediate_size": FFN,
        "num_hidden_layers": LAYERS,
        "head_dim": HEAD,
        "norm_eps": 1e-5,
        "decay_low_rank_dim": RANK,
        "a_low_rank_dim": RANK,
        "v_low_rank_dim": RANK,
        "gate_low_rank_dim": None,
        "vocab_size": BPE_TOKENS + 8,
    }
    return Tiny(values, shapes.items(), tokenizer="none", files=rwkv_file())


def arwkv7() -> Tiny:
    """Low-rank matrices are parameters."""

    def layer(at: str, i: int) -> Shapes:
        yield from norm(f"{at}.input_layernorm")
        yield from norm(f"{at}.post_attention_layernorm")
        yield from seven_layer(at, i, "self_attn.time_mixer", gate=False)
        for use in "wav":
            yield f"{at}.self_attn.time_mixer.{use}0", (1, 1, WIDTH)
            yield f"{at}.self_attn.time_mixer.{use}1", (WIDTH, RANK)
            yield f"{at}.self_attn.time_mixer.{use}2", (RANK, WIDTH)
        for part in ("receptance", "key", "value", "output"):
            yield from linear(f"{at}.self_attn.time_mixer.{part}", WIDTH, WIDTH)
        yield from gated(f"{at}.mlp")

    values = config(
        "RwkvHybridForCausalLM", "rwkv_hybrid", rms_norm_eps=1e-6, head_size=HEAD, wkv_version=7, wkv_has_gate=False
    )
    return Tiny(values, decoder(layer, BPE_TOKENS))


# ---- PLaMo ------------------------------------------------------------------------------------------------------


def plamo_layer(mixer: str, at: str) -> Shapes:
    for name in ("pre_mixer", "post_mixer", "pre_mlp", "post_mlp"):
        yield from norm(f"{at}.{name}_norm")
    if mixer == "attention":
        yield from linear(f"{at}.mixer.qkv_proj", (HEADS + 2 * KV_HEADS) * HEAD, WIDTH)
        yield from linear(f"{at}.mixer.o_proj", WIDTH, HEADS * HEAD)
    else:
        yield from linear(f"{at}.mixer.in_proj", 2 * HEADS * HEAD, WIDTH)
        yield f"{at}.mixer.conv1d.weight", (HEADS * HEAD, 1, 4)
        yield from linear(f"{at}.mixer.bcdt_proj", 2 * 16 + RANK, HEADS * HEAD)
        yield f"{at}.mixer.dt_bias", (HEADS,)
        yield from linear(f"{at}.mixer.dt_proj", HEADS, RANK)
        yield f"{at}.mixer.A_log", (HEADS,)
        yield f"{at}.mixer.D", (HEADS,)
        yield f"{at}.mixer.dt_norm_weight", (RANK,)
        yield f"{at}.mixer.B_norm_weight", (16,)
        yield f"{at}.mixer.C_norm_weight", (16,)
        yield from linear(f"{at}.mixer.out_proj", WIDTH, HEADS * HEAD)
    yield from linear(f"{at}.mlp.gate_up_proj", 2 * FFN, WIDTH)
    yield from linear(f"{at}.mlp.down_proj", WIDTH, FFN)


def plamo2() -> Tiny:
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (PLAMO_TOKENS, WIDTH)}
    shapes |= dict(plamo_layer("mamba", "model.layers.layers.0")) | dict(
        plamo_layer("attention", "model.layers.layers.1")
    )
    shapes |= {
        "model.layers.layers.1.mixer.q_weight": (HEADS, HEAD),
        "model.layers.layers.1.mixer.k_weight": (KV_HEADS, HEAD),
    }
    shapes |= dict(norm("model.norm"))
    mamba = {
        "mamba_step": 2,
        "mamba_d_state": 16,
        "mamba_d_conv": 4,
        "mamba_num_heads": HEADS,
        "hidden_size_per_head": HEAD,
    }
    values = config("Plamo2ForCausalLM", "plamo2", PLAMO_TOKENS, rms_norm_eps=1e-6, **mamba)
    return Tiny(values, shapes.items(), tokenizer="none", settings=plamo_settings(2), files=plamo_file())


def plamo3() -> Tiny:
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (PLAMO_TOKENS, WIDTH)}
    for i in range(LAYERS):
        shapes |= dict(plamo_layer("attention", f"model.layers.layers.{i}"))
        shapes |= dict(norm(f"model.layers.layers.{i}.mixer.q_norm", HEAD)) | dict(
            norm(f"model.layers.layers.{i}.mixer.k_norm", HEAD)
        )
    shapes |= dict(norm("model.norm"))
    rope = {"rope_scaling_factor": 4, "initial_context_length": 128, "rope_theta": 10000.0, "rope_local_theta": 5000.0}
    values = config(
        "Plamo3ForCausalLM",
        "plamo3",
        PLAMO_TOKENS,
        head_dim=HEAD,
        window_size=64,
        sliding_window_pattern=2,
        **LLAMA | rope,
    )
    settings = plamo_settings(3) | {"chat_template": "{{ messages }}"}
    return Tiny(values, shapes.items(), tokenizer="none", settings=settings, files=plamo_file())


# ---- others -----------------------------------------------------------------------------------------------------


def qwen() -> Tiny:
    shapes: dict[str, tuple[int, ...]] = {"transformer.wte.weight": (RANKED_TOKENS, WIDTH)}
    for i in range(LAYERS):
        at = f"transformer.h.{i}"
        shapes |= dict(norm(f"{at}.ln_1")) | dict(norm(f"{at}.ln_2"))
        shapes |= dict(linear(f"{at}.attn.c_attn", 3 * WIDTH, WIDTH, True)) | dict(
            linear(f"{at}.attn.c_proj", WIDTH, WIDTH)
        )
        shapes |= dict(linear(f"{at}.mlp.w1", FFN, WIDTH)) | dict(linear(f"{at}.mlp.w2", FFN, WIDTH))
        shapes |= dict(linear(f"{at}.mlp.c_proj", WIDTH, FFN))
    shapes |= dict(norm("transformer.ln_f")) | {"lm_head.weight": (RANKED_TOKENS, WIDTH)}
    values = config("QWenLMHeadModel", "qwen", RANKED_TOKENS, layer_norm_epsilon=1e-6, rotary_emb_base=10000, **LLAMA)
    del values["num_key_value_heads"]
    return Tiny(values, shapes.items(), tokenizer="none", files=ranks_file("qwen.tiktoken"))


def rugpt3xl() -> Tiny:
    def layer(at: str, i: int) -> Shapes:
        yield from norm(f"{at}.input_layernorm", bias=True)
        yield from norm(f"{at}.post_attention_layernorm", bias=True)
        for part in "qkv":
            yield from linear(f"{at}.self_attn.{part}_proj", WIDTH, WIDTH, True)
        yield from linear(f"{at}.self_attn.o_proj", WIDTH, WIDTH, True)
        yield from linear(f"{at}.mlp.up_proj", FFN, WIDTH, True)
        yield from linear(f"{at}.mlp.down_proj", WIDTH, FFN, True)

    shapes = dict(decoder(layer, BPE_TOKENS)) | {
        "model.norm.bias": (WIDTH,),
        "model.embed_positions.weight": (64, WIDTH),
    }
    values = config("RuGPT3XLForCausalLM", "rugpt3xl", max_position_embeddings=64, layer_norm_eps=1e-5)
    return Tiny(values, shapes.items())


def w123_experts(at: str) -> Shapes:
    for expert in range(EXPERTS):
        for part, out, into in (("w1", FFN, WIDTH), ("w2", WIDTH, FFN), ("w3", FFN, WIDTH)):
            yield from linear(f"{at}.experts.{expert}.{part}", out, into)


def arctic() -> Tiny:
    def layer(at: str, i: int) -> Shapes:
        for name in ("input_layernorm", "post_attention_layernorm", "residual_layernorm"):
            yield from norm(f"{at}.{name}")
        yield from attention(f"{at}.self_attn")
        yield from linear(f"{at}.block_sparse_moe.gate", EXPERTS, WIDTH)
        yield from w123_experts(f"{at}.block_sparse_moe")
        yield from (
            (f"{at}.residual_mlp.{part}.weight", shape)
            for part, shape in (("w1", (FFN, WIDTH)), ("w2", (WIDTH, FFN)), ("w3", (FFN, WIDTH)))
        )

    values = config(
        "ArcticForCausalLM", "arctic", SPM_TOKENS, num_local_experts=EXPERTS, num_experts_per_tok=2, **LLAMA
    )
    added = {
        "0": {"content": "<unk>", "special": True},
        "5": {"content": "<|im_end|>", "special": True},
        "6": {"content": "six"},
    }
    return Tiny(values, decoder(layer, SPM_TOKENS), tokenizer="spm", settings={"added_tokens_decoder": added})


def deci() -> Tiny:
    """As pruned Nemotrons are: a block without attention, one without FFN."""

    def layer(at: str, i: int) -> Shapes:
        if i == 0:
            yield from norm(f"{at}.input_layernorm")
            yield from attention(f"{at}.self_attn")
        else:
            yield from norm(f"{at}.post_attention_layernorm")
            yield from gated(f"{at}.mlp", 256)

    plain = {"n_heads_in_group": 2, "replace_with_linear": False}
    none = {"n_heads_in_group": None, "replace_with_linear": False}
    blocks = [{"attention": plain, "ffn": {"ffn_mult": None}}, {"attention": none, "ffn": {"ffn_mult": 1.5}}]
    values = config("DeciLMForCausalLM", "nemotron-nas", 128256, block_configs=blocks, **LLAMA)
    values |= {"num_key_value_heads": None, "intermediate_size": None}
    return Tiny(values, decoder(layer, 128256, head=False))


def k2_horizon() -> Tiny:
    def layer(at: str, i: int) -> Shapes:
        yield from norm(f"{at}.input_layernorm")
        yield from norm(f"{at}.post_attention_layernorm")
        yield from attention(f"{at}.self_attn")
        yield from linear(f"{at}.self_attn.gate_proj", WIDTH, WIDTH)
        if i == 0:
            yield from gated(f"{at}.mlp")
            return
        yield from linear(f"{at}.self_attn.v_router", EXPERTS, WIDTH)
        for expert in range(EXPERTS):
            yield from linear(f"{at}.self_attn.v_experts.{expert}", KV_HEADS * HEAD, WIDTH)
            yield from gated(f"{at}.mlp.experts.{expert}")
        yield from linear(f"{at}.mlp.gate", EXPERTS, WIDTH, True)
        yield from gated(f"{at}.mlp.shared_experts")

    more = {"num_experts": EXPERTS, "num_experts_per_tok": 2, "moe_intermediate_size": FFN, "num_shared_experts": 1}
    more |= {"mlp_only_layers": [0], "norm_topk_prob": True, "router_scaling_factor": 2.5, "layernorm_num_groups": 2}
    more |= {"mova_num_experts": EXPERTS, "mova_num_experts_per_tok": 1, "rope_head_dim": HEAD}
    return Tiny(config("K2HorizonForCausalLM", "k2_horizon", **LLAMA | more), decoder(layer, BPE_TOKENS))


def mistral_layer(at: str, i: int) -> Shapes:
    yield from norm(f"{at}.attention_norm")
    yield from norm(f"{at}.ffn_norm")
    yield from linear(f"{at}.attention.wq", WIDTH, WIDTH)
    yield from linear(f"{at}.attention.wk", KV_HEADS * HEAD, WIDTH)
    yield from linear(f"{at}.attention.wv", KV_HEADS * HEAD, WIDTH)
    yield from linear(f"{at}.attention.wo", WIDTH, WIDTH)
    yield from linear(f"{at}.feed_forward.w1", FFN, WIDTH)
    yield from linear(f"{at}.feed_forward.w2", WIDTH, FFN)
    yield from linear(f"{at}.feed_forward.w3", FFN, WIDTH)


def mistral(kind: str = "", vocab: int = TEKKEN_TOKENS, **more: Any) -> Tiny:
    shapes: dict[str, tuple[int, ...]] = {"tok_embeddings.weight": (vocab, WIDTH), "output.weight": (vocab, WIDTH)}
    for i in range(LAYERS):
        shapes |= dict(mistral_layer(f"layers.{i}", i))
    shapes |= dict(norm("norm")) | {"vision_encoder.ln_pre.weight": (8,)}
    values = {"dim": WIDTH, "n_layers": LAYERS, "head_dim": HEAD, "hidden_dim": FFN, "n_heads": HEADS}
    values |= {"n_kv_heads": KV_HEADS, "norm_eps": 1e-5, "rope_theta": 1e6, "vocab_size": vocab}
    values |= {"max_position_embeddings": 512, **more}
    if kind == "spm":
        return Tiny(values, shapes.items(), tokenizer="spm")
    return Tiny(values, shapes.items(), tokenizer="none", files=tekken_file())


MISTRAL_YARN = {"factor": 16, "original_max_position_embeddings": 64, "apply_scale": False, "beta": 32, "alpha": 1}


def mistral_moe() -> Tiny:
    """As DeepSeek's, by Mistral's names."""
    shapes: dict[str, tuple[int, ...]] = {"tok_embeddings.weight": (TEKKEN_TOKENS, WIDTH)}
    for i in range(LAYERS):
        at = f"layers.{i}"
        shapes |= dict(norm(f"{at}.attention_norm")) | dict(norm(f"{at}.ffn_norm"))
        shapes |= dict(linear(f"{at}.attention.wq_a", 16, WIDTH)) | dict(norm(f"{at}.attention.q_a_norm", 16))
        shapes |= dict(linear(f"{at}.attention.wq_b", HEADS * 12, 16))
        shapes |= dict(linear(f"{at}.attention.wkv_a_with_mqa", 16 + 4, WIDTH))
        shapes |= dict(norm(f"{at}.attention.kv_a_norm", 16))
        shapes |= dict(linear(f"{at}.attention.wkv_b", HEADS * (8 + 8), 16))
        shapes |= dict(linear(f"{at}.attention.wo", WIDTH, HEADS * 8))
        if i == 0:
            shapes |= {f"{at}.feed_forward.w{n}.weight": (WIDTH, FFN) if n == 2 else (FFN, WIDTH) for n in (1, 2, 3)}
            continue
        shapes |= dict(linear(f"{at}.gate", EXPERTS, WIDTH))
        for expert in range(EXPERTS):
            for n in (1, 2, 3):
                shapes[f"{at}.experts.{expert}.w{n}.weight"] = (WIDTH, FFN) if n == 2 else (FFN, WIDTH)
        for n in (1, 2, 3):
            shapes[f"{at}.shared_experts.w{n}.weight"] = (WIDTH, FFN) if n == 2 else (FFN, WIDTH)
    shapes |= dict(norm("norm")) | {"output.weight": (TEKKEN_TOKENS, WIDTH)}
    moe = {"first_k_dense_replace": 1, "num_experts_per_tok": 2, "num_experts": EXPERTS, "expert_hidden_dim": FFN}
    moe |= {"routed_scale": 1.0, "num_shared_experts": 1, "num_expert_groups": 1, "num_expert_groups_per_tok": 1}
    values = {"dim": WIDTH, "n_layers": LAYERS, "hidden_dim": FFN, "n_heads": HEADS, "n_kv_heads": HEADS}
    values |= {"norm_eps": 1e-6, "rope_theta": 1e4, "vocab_size": TEKKEN_TOKENS, "moe": moe, "yarn": MISTRAL_YARN}
    values |= {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8}
    values |= {"llama_4_scaling": {"beta": 0.1}, "max_position_embeddings": 1024}
    return Tiny(values, shapes.items(), tokenizer="none", files=tekken_file())


def llama_tekken() -> Tiny:
    """Hugging Face's weights with Mistral's own vocabulary."""
    values = config("MistralForCausalLM", "mistral", TEKKEN_TOKENS, **LLAMA, sliding_window=None)
    return Tiny(values, decoder(llama_layer, TEKKEN_TOKENS), tokenizer="none", files=tekken_file("v7"))


def hunyuan_moe() -> Tiny:
    def layer(at: str, i: int) -> Shapes:
        yield from norm(f"{at}.input_layernorm")
        yield from norm(f"{at}.post_attention_layernorm")
        yield from attention(f"{at}.self_attn")
        yield from norm(f"{at}.self_attn.query_layernorm", HEAD)
        yield from norm(f"{at}.self_attn.key_layernorm", HEAD)
        yield from linear(f"{at}.mlp.gate.wg", EXPERTS, WIDTH)
        yield from gated(f"{at}.mlp.shared_mlp")
        for expert in range(EXPERTS):
            yield from gated(f"{at}.mlp.experts.{expert}")

    each = {"moe_topk": 2, "moe_intermediate_size": FFN, "num_shared_expert": 1}
    more = {
        "num_experts": EXPERTS,
        "tie_word_embeddings": True,
        **{key: [value] * LAYERS for key, value in each.items()},
    }
    vocab = 263 + 210
    values = config("HunYuanMoEV1ForCausalLM", "hunyuan_v1_moe", vocab, bos_token_id=1, **LLAMA | more)
    return Tiny(values, decoder(layer, vocab), tokenizer="none", files=ranks_file("hy.tiktoken"))


def kimi() -> Tiny:
    """A Kimi K2: DeepSeek V3 with tiktoken's vocabulary."""
    from tiny_families import FAMILIES

    vocab, base = 263 + 260, FAMILIES["deepseek-v3"]()
    shapes = {
        name: (vocab, *shape[1:]) if shape[0] == base.config["vocab_size"] else shape for name, shape in base.shapes
    }
    texts = {263: "[BOS]", 264: "[EOS]", 265: "<|im_end|>"}
    added = {str(token): {"content": text, "special": True} for token, text in texts.items()}
    settings = {"added_tokens_decoder": added, "bos_token": "[BOS]", "eos_token": "[EOS]"}
    values = base.config | {"vocab_size": vocab, "eos_token_id": 265, "bos_token_id": 263}
    return Tiny(values, shapes.items(), tokenizer="none", settings=settings, files=ranks_file("tiktoken.model"))


def deepseek_ocr() -> Tiny:
    def layer(at: str, i: int) -> Shapes:
        yield from llama_layer(at, i) if i == 0 else experts_layer(at)

    def experts_layer(at: str) -> Shapes:
        yield from norm(f"{at}.input_layernorm")
        yield from norm(f"{at}.post_attention_layernorm")
        yield from attention(f"{at}.self_attn")
        yield from linear(f"{at}.mlp.gate", EXPERTS, WIDTH)
        yield from gated(f"{at}.mlp.shared_experts")
        for expert in range(EXPERTS):
            yield from gated(f"{at}.mlp.experts.{expert}")

    shapes = dict(decoder(layer, BPE_TOKENS)) | {
        "model.sam_model.pos_embed": (1, 4, 4, 8),
        "model.view_seperator": (8,),
    }
    text = {
        "hidden_size": WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
    }
    text |= {"n_routed_experts": EXPERTS, "n_shared_experts": 1, "num_experts_per_tok": 2, "moe_intermediate_size": FFN}
    text |= {"first_k_dense_replace": 1, "qk_rope_head_dim": HEAD, "intermediate_size": FFN, "vocab_size": BPE_TOKENS}
    text |= {"max_position_embeddings": 512, "norm_topk_prob": False, "sliding_window_size": 128, "v_head_dim": HEAD}
    values = {"architectures": ["UnlimitedOCRForCausalLM"], "model_type": "deepseekocr", "language_config": text}
    return Tiny(values, shapes.items())


def muse_glimmer() -> Tiny:
    values = config(
        "MuseGlimmerForConditionalGeneration", "muse_glimmer_x", head_dim=HEAD, qk_scale_factor=1.5, **LLAMA
    )
    values |= {"final_logit_softcapping": 30.0, "output_multiplier": 0.25, "sliding_window": 64}
    values |= {"layer_types": ["sliding_attention", "full_attention"]}

    def layer(at: str, i: int) -> Shapes:
        for name in ("input", "post_attention", "pre_feedforward", "post_feedforward"):
            yield from norm(f"{at}.{name}_layernorm")
        yield from attention(f"{at}.self_attn")
        yield from gated(f"{at}.mlp")

    return Tiny(values, decoder(layer, BPE_TOKENS))


def target_files(**more: Any) -> dict[str, Any]:
    """The model that a draft is for, in a folder of its own: only its config and tokenizer are read."""
    values = config("Qwen3ForCausalLM", "qwen3", num_hidden_layers=12, head_dim=HEAD, **LLAMA | more)
    values["num_hidden_layers"] = 12
    files = tokenizer_files(Tiny(values, ()))
    return {f"target/{name}": contents for name, contents in {"config.json": values, **files}.items()}


def eagle3() -> Tiny:
    shapes: dict[str, tuple[int, ...]] = {"fc.weight": (WIDTH, 3 * WIDTH), "t2d": (BPE_TOKENS,), "d2t": (100,)}
    shapes |= dict(attention("midlayer.self_attn")) | dict(gated("midlayer.mlp"))
    for part in "qkv":
        rows = shapes[f"midlayer.self_attn.{part}_proj.weight"][0]
        shapes[f"midlayer.self_attn.{part}_proj.weight"] = (rows, 2 * WIDTH)
    for name in ("hidden_norm", "input_layernorm", "post_attention_layernorm"):
        shapes |= dict(norm(f"midlayer.{name}"))
    shapes |= dict(norm("norm")) | {"lm_head.weight": (100, WIDTH)}
    values = config("LlamaForCausalLMEagle3", "llama", draft_vocab_size=100, norm_before_residual=True, **LLAMA)
    values["num_hidden_layers"] = 1
    return Tiny(values, shapes.items(), tokenizer="none", files=target_files())


def flash_layer(at: str, i: int) -> Shapes:
    yield from llama_layer(at, i)
    yield from norm(f"{at}.self_attn.q_norm", HEAD)
    yield from norm(f"{at}.self_attn.k_norm", HEAD)


def dflash() -> Tiny:
    shapes = {name.removeprefix("model."): shape for name, shape in decoder(flash_layer, BPE_TOKENS, head=False)}
    del shapes["embed_tokens.weight"]
    shapes |= {"fc.weight": (WIDTH, 2 * WIDTH)} | dict(norm("hidden_norm"))
    settings = {"mask_token_id": 259, "target_layer_ids": [1, 5], "swa_window_size": 128, "use_swa": True}
    values = config("DFlashDraftModel", "dflash_x", head_dim=HEAD, dflash_config=settings, block_size=8, **LLAMA)
    values["rope_is_neox_style"] = False
    return Tiny(values, shapes.items(), tokenizer="none", files=target_files(rope_scaling={"mrope_section": [2, 1, 1]}))


def dspark() -> Tiny:
    shapes = {name.removeprefix("model."): shape for name, shape in decoder(flash_layer, BPE_TOKENS)}
    shapes |= {"fc.weight": (WIDTH, 2 * WIDTH)} | dict(norm("hidden_norm"))
    shapes |= dict(linear("markov_head.markov_w1", BPE_TOKENS, 8)) | dict(
        linear("markov_head.markov_w2", BPE_TOKENS, 8)
    )
    shapes |= dict(linear("confidence_head.proj", 1, WIDTH))
    values = config("Qwen3DSparkModel", "dspark_x", head_dim=HEAD, target_layer_ids=[1, 5], mask_token_id=259, **LLAMA)
    return Tiny(values, shapes.items(), tokenizer="none", files=target_files())


LING: dict[str, Any] = {
    "no_kda_lora": True,
    "kda_safe_gate": True,
    "gated_attention_proj_granularity_type": "head_wise",
    "layer_group_size": 2,
    "short_conv_kernel_size": 4,
    "kda_lower_bound": -5.0,
    "head_dim": HEAD,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 6,
    "num_experts": EXPERTS,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": FFN,
    "n_group": 1,
    "topk_group": 1,
    "moe_shared_expert_intermediate_size": FFN,
    "num_shared_experts": 1,
    "first_k_dense_replace": 1,
    "routed_scaling_factor": 2.5,
    "norm_topk_prob": True,
    "score_function": "sigmoid",
    "num_nextn_predict_layers": 1,
    "expert_swiglu_limit_list": [None, 7.0],
    "share_expert_swiglu_limit_list": [None, 5],
}


def mla(at: str, heads: int = HEADS, nope: int = 8, rope: int = 4, v: int = 6, rank: int = 16) -> Shapes:
    yield from linear(f"{at}.q_a_proj", 16, WIDTH)
    yield from norm(f"{at}.q_a_layernorm", 16)
    yield from linear(f"{at}.q_b_proj", heads * (nope + rope), 16)
    yield from linear(f"{at}.kv_a_proj_with_mqa", rank + rope, WIDTH)
    yield from norm(f"{at}.kv_a_layernorm", rank)
    yield from linear(f"{at}.kv_b_proj", heads * (nope + v), rank)


def bailingmoe3(**more: Any) -> Tiny:
    """Delta attention and a dense FFN, latent attention and experts, and a block that predicts further tokens."""

    def layer(at: str, i: int) -> Shapes:
        yield from norm(f"{at}.input_layernorm")
        yield from norm(f"{at}.post_attention_layernorm")
        if i == 0:
            for part in "qkv":
                yield from linear(f"{at}.attention.{part}_proj", WIDTH, WIDTH)
                yield f"{at}.attention.{part}_conv1d.weight", (WIDTH, 1, 4)
            yield f"{at}.attention.A_log", (HEADS,)
            yield f"{at}.attention.dt_bias", (WIDTH,)
            yield from linear(f"{at}.attention.f_proj", WIDTH, WIDTH)
            yield from linear(f"{at}.attention.b_proj", HEADS, WIDTH)
            yield from norm(f"{at}.attention.o_norm", HEAD)
            yield from gated(f"{at}.mlp")
        else:
            yield from mla(f"{at}.attention")
            yield from linear(f"{at}.mlp.gate", EXPERTS, WIDTH)
            yield f"{at}.mlp.gate.expert_bias", (EXPERTS,)
            for expert in range(EXPERTS):
                yield from gated(f"{at}.mlp.experts.{expert}")
            yield from gated(f"{at}.mlp.shared_experts")
        yield from linear(f"{at}.attention.g_proj", HEADS if i else WIDTH, WIDTH)
        yield from linear(f"{at}.attention.dense", WIDTH, HEADS * 6 if i else WIDTH)
        if i == LAYERS:
            yield from linear(f"{at}.eh_proj", WIDTH, 2 * WIDTH)
            for name in ("enorm", "hnorm", "final_layernorm"):
                yield from norm(f"{at}.{name}")

    shapes = {name.replace("embed_tokens", "word_embeddings"): shape for name, shape in decoder(layer, BPE_TOKENS)}
    shapes |= dict(layer(f"model.layers.{LAYERS}", LAYERS))
    kind = "BailingMoeV3VLForConditionalGeneration" if more else "BailingMoeV3ForCausalLM"
    text = config(kind, "bailing_moe_v3", **LLAMA | LING | more)
    if more:
        shapes |= dict(linear("linear_proj.0", WIDTH, 8))
        text = {"architectures": text.pop("architectures"), "model_type": "ling3_vl_x", "text_config": text}
    return Tiny(text, shapes.items())


def dots3() -> Tiny:
    """A layer with a window, one with an index, and a block that predicts further tokens."""

    def layer(at: str, i: int) -> Shapes:
        yield from norm(f"{at}.input_layernorm")
        yield from norm(f"{at}.post_attention_layernorm")
        heads, nope, v, rank = (HEADS, 8, 6, 16) if i == 1 else (2, 12, 10, 24)
        yield from mla(f"{at}.self_attn", heads, nope, 4, v, rank)
        yield from norm(f"{at}.self_attn.k_rope_only_layernorm", 4)
        yield from linear(f"{at}.self_attn.attn_gate_proj", heads, WIDTH)
        yield from linear(f"{at}.self_attn.o_proj", WIDTH, heads * v)
        if i == 0:
            yield from gated(f"{at}.mlp")
            return
        if i == 1:
            yield from linear(f"{at}.self_attn.indexer.wq_b", 2 * HEAD, 16)
            yield from linear(f"{at}.self_attn.indexer.wk", HEAD, WIDTH)
            yield from norm(f"{at}.self_attn.indexer.k_norm", HEAD, True)
            yield from linear(f"{at}.self_attn.indexer.weights_proj", 2, WIDTH)
        yield from linear(f"{at}.mlp.gate", EXPERTS, WIDTH)
        yield f"{at}.mlp.gate.e_score_correction_bias", (EXPERTS,)
        for expert in range(EXPERTS):
            yield from gated(f"{at}.mlp.experts.{expert}")
        yield from gated(f"{at}.mlp.shared_experts")
        if i == LAYERS:
            yield from linear(f"{at}.eh_proj", WIDTH, 2 * WIDTH)
            for name in ("enorm", "hnorm", "shared_head.norm"):
                yield from norm(f"{at}.{name}")

    shapes = dict(decoder(layer, BPE_TOKENS)) | dict(layer(f"model.layers.{LAYERS}", LAYERS))
    shapes["model.mtp.embed_tokens.weight"] = (BPE_TOKENS, WIDTH)
    more = {
        "layer_types": ["sliding_attention", "full_attention"],
        "sliding_window_size": 64,
        "scoring_func": "sigmoid",
    }
    more |= {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 6}
    more |= {"swa_num_attention_heads": 2, "swa_q_lora_rank": 16, "swa_kv_lora_rank": 24, "swa_head_dim": 16}
    more |= {"swa_qk_nope_head_dim": 12, "swa_qk_rope_head_dim": 4, "swa_v_head_dim": 10, "head_dim": 99}
    more |= {"index_n_heads": 2, "index_head_dim": HEAD, "index_topk": 16, "apply_mla_qkv_lora_rescale": True}
    more |= {"n_routed_experts": EXPERTS, "n_shared_experts": 1, "num_experts_per_tok": 2, "moe_intermediate_size": FFN}
    more |= {
        "first_k_dense_replace": 1,
        "routed_scaling_factor": 2.5,
        "norm_topk_prob": True,
        "rope_local_theta": 5000.0,
    }
    values = config("Dots3NoteTextForCausalLM", "dots3_x", **LLAMA | more)
    files = tokenizer_files(Tiny(values, ()))
    files["tokenizer.json"]["added_tokens"][2]["content"] = "<|endofassistant|>"
    return Tiny(values, shapes.items(), tokenizer="none", files=files)


def minimax01() -> Tiny:
    def layer(at: str, i: int) -> Shapes:
        yield from norm(f"{at}.input_layernorm")
        yield from norm(f"{at}.post_attention_layernorm")
        if i == 0:
            yield from linear(f"{at}.self_attn.qkv_proj", 3 * WIDTH, WIDTH)
            yield from linear(f"{at}.self_attn.output_gate", WIDTH, WIDTH)
            yield from linear(f"{at}.self_attn.out_proj", WIDTH, WIDTH)
            yield from norm(f"{at}.self_attn.norm")
        else:
            yield from attention(f"{at}.self_attn")
        yield from linear(f"{at}.block_sparse_moe.gate", EXPERTS, WIDTH)
        yield from w123_experts(f"{at}.block_sparse_moe")

    more = {f"layernorm_{part}_alpha": 3.5 for part in ("full_attention", "linear_attention", "mlp")}
    more |= {f"layernorm_{part}_beta": 1.0 for part in ("full_attention", "linear_attention", "mlp")}
    more |= {"rotary_dim": 4, "num_local_experts": EXPERTS, "num_experts_per_tok": 2, "head_dim": HEAD}
    shapes = dict(decoder(layer, BPE_TOKENS))
    index = {"metadata": {}, "weight_map": dict.fromkeys(shapes, "model.safetensors")}
    files = {"model.safetensors.index.json": index, "chat_template.jinja": b"{{ messages }}"}
    return Tiny(config("MiniMaxText01ForCausalLM", "minimax_text_01", **LLAMA | more), shapes.items(), files=files)


def chatglm3() -> Tiny:
    vocab = SPM_TOKENS + 12
    shapes: dict[str, tuple[int, ...]] = {"transformer.embedding.word_embeddings.weight": (vocab, WIDTH)}
    shapes["transformer.rotary_pos_emb.inv_freq"] = (4,)
    for i in range(LAYERS):
        at = f"transformer.encoder.layers.{i}"
        shapes |= dict(norm(f"{at}.input_layernorm")) | dict(norm(f"{at}.post_attention_layernorm"))
        shapes |= dict(linear(f"{at}.self_attention.query_key_value", (HEADS + 2 * KV_HEADS) * HEAD, WIDTH, True))
        shapes |= dict(linear(f"{at}.self_attention.dense", WIDTH, WIDTH))
        shapes |= dict(linear(f"{at}.mlp.dense_h_to_4h", 2 * FFN, WIDTH))
        shapes |= dict(linear(f"{at}.mlp.dense_4h_to_h", WIDTH, FFN))
    shapes |= dict(norm("transformer.encoder.final_layernorm")) | {"transformer.output_layer.weight": (vocab, WIDTH)}
    values = config("ChatGLMModel", "chatglm_x", vocab, _name_or_path="THUDM/chatglm3-6b", padded_vocab_size=vocab)
    del values["num_key_value_heads"], values["intermediate_size"]
    values |= {"multi_query_group_num": KV_HEADS, "ffn_hidden_size": FFN, "seq_length": 512, "layernorm_epsilon": 1e-5}
    values |= {"eos_token_id": 2, "pad_token_id": 0, "num_layers": LAYERS}
    return Tiny(values, shapes.items(), tokenizer="spm")


def nemotron_puzzle() -> Tiny:
    """Mamba, experts, attention, fewer experts."""
    heads, inner, state, latent = 8, 64, 8, 16
    shapes: dict[str, tuple[int, ...]] = {"model.embeddings.weight": (264, WIDTH), "lm_head.weight": (264, WIDTH)}
    for i, kind in enumerate(("mamba", "moe", "attention", "moe")):
        at = f"model.layers.{i}.mixer"
        shapes |= dict(norm(f"model.layers.{i}.norm"))
        if kind == "mamba":
            shapes |= dict(linear(f"{at}.in_proj", 2 * inner + 2 * 2 * state + heads, WIDTH))
            shapes |= {f"{at}.conv1d.weight": (inner + 4 * state, 1, 4), f"{at}.conv1d.bias": (inner + 4 * state,)}
            shapes |= {f"{at}.{name}": (heads,) for name in ("A_log", "D", "dt_bias")}
            shapes |= dict(norm(f"{at}.norm", inner)) | dict(linear(f"{at}.out_proj", WIDTH, inner))
        elif kind == "attention":
            shapes |= dict(attention(at))
        else:
            shapes |= dict(linear(f"{at}.gate", EXPERTS, WIDTH)) | {f"{at}.gate.e_score_correction_bias": (EXPERTS,)}
            shapes |= dict(linear(f"{at}.fc1_latent_proj", latent, WIDTH))
            shapes |= dict(linear(f"{at}.fc2_latent_proj", WIDTH, latent))
            ffn = 24 if i == 1 else 16
            for expert in range(EXPERTS):
                shapes |= dict(linear(f"{at}.experts.{expert}.up_proj", ffn, latent))
                shapes |= dict(linear(f"{at}.experts.{expert}.down_proj", latent, ffn))
            shapes |= dict(linear(f"{at}.shared_experts.up_proj", FFN, WIDTH))
            shapes |= dict(linear(f"{at}.shared_experts.down_proj", WIDTH, FFN))
    shapes |= dict(norm("model.norm_f")) | {"mtp.layers.0.enorm.weight": (WIDTH,)}
    blocks: list[dict[str, Any]] = [{"block_type": "mamba"}, {"block_type": "moe"}, {"block_type": "attention"}]
    blocks[1] |= {"moe_intermediate_size": 24, "num_experts_per_tok": 2}
    blocks.append({"block_type": "moe", "moe_intermediate_size": 16, "num_experts_per_tok": 1})
    more = {"block_configs": blocks, "n_routed_experts": EXPERTS, "n_shared_experts": 1, "norm_topk_prob": True}
    more |= {"moe_shared_expert_intermediate_size": FFN, "routed_scaling_factor": 2.5, "n_group": 1, "topk_group": 1}
    more |= {"moe_latent_size": latent, "head_dim": HEAD, "mamba_num_heads": heads, "mamba_head_dim": HEAD}
    more |= {"ssm_state_size": state, "n_groups": 2, "conv_kernel": 4, "expand": 1, "layer_norm_epsilon": 1e-5}
    more |= {"num_nextn_predict_layers": 1, "mamba_d_state": state, "mamba_d_conv": 4, "mamba_expand": 1}
    values = config("NemotronHPuzzleForCausalLM", "nemotron_h_puzzle", 264, **LLAMA | more)
    return Tiny(values, shapes.items())


REMOTE = {
    "rwkv6": rwkv6,
    "rwkv6qwen2": rwkv6qwen2,
    "rwkv7": rwkv7,
    "arwkv7": arwkv7,
    "plamo2": plamo2,
    "plamo3": plamo3,
    "qwen1": qwen,
    "rugpt3xl": rugpt3xl,
    "arctic": arctic,
    "deci": deci,
    "k2-horizon": k2_horizon,
    "mistral-tekken": mistral,
    "mistral-spm": lambda: mistral("spm", SPM_TOKENS),
    "ministral-tekken": lambda: mistral(yarn=MISTRAL_YARN, llama_4_scaling={"beta": 0.1}),
    "mistral-moe": mistral_moe,
    "llama-tekken": llama_tekken,
    "kimi": kimi,
    "deepseek-ocr": deepseek_ocr,
    "muse-glimmer": muse_glimmer,
    "chatglm3": chatglm3,
    "nemotron-puzzle": nemotron_puzzle,
    "bailingmoe3": bailingmoe3,
    "bailingmoe3-vl": lambda: bailingmoe3(mrope_section=[1, 1, 0]),
    "dots3": dots3,
    "minimax01": minimax01,
    "eagle3": eagle3,
    "dflash": dflash,
    "dspark": dspark,
}
