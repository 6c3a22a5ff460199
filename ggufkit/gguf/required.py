"""What llama.cpp wants of a model: the hyperparameters of each architecture, with their types; pre-tokenizers.

Made by tools/generate/make_required.py, which asks llama.cpp itself. Keys are without the architecture's prefix;
unindented lines have those beyond the common ones, the indented lines below them the architectures that need them.
"""

from __future__ import annotations

from functools import cache

__all__ = ["known_pre_tokenizers", "required_keys"]

_COMMON = """
block_count:u32 context_length:u32 embedding_length:u32
"""

_ROWS = """
attention.layer_norm_rms_epsilon:f32
    apertus arcee arctic baichuan bitnet chameleon chatglm cogvlm deci dream ernie4_5 eurobert exaone exaone4
    gemma gemma2 gemma3 glm4 grok hunyuan-dense hunyuan_vl internlm2 llada llada-moe llama llama-embed
    maincoder minicpm mistral3 neo-bert olmo2 olmoe openelm paddleocr pangu-embedded phi3 phimoe plamo plamo3
    qwen qwen2 qwen2moe qwen3 qwen3moe refact rnd1 seed_oss smallthinker smollm3 xverse
attention.layer_norm_epsilon:f32
    bert bloom codeshell command-r falcon gpt2 jais jais2 jina-bert-v2 jina-bert-v3 modern-bert mpt nemotron
    nomic-bert nomic-bert-moe olmo orion phi2 stablelm starcoder starcoder2
attention.layer_norm_rms_epsilon:f32 expert_feed_forward_length:u32 expert_shared_count:u32
    afmoe bailingmoe deepseek deepseek2-ocr dots1 glm4moe
attention.layer_norm_rms_epsilon:f32 ssm.conv_kernel:u32 ssm.group_count:u32 ssm.inner_size:u32
ssm.state_size:u32 ssm.time_step_rank:u32
    falcon-h1 granitehybrid mamba2 plamo2 qwen3next
attention.decay_lora_rank:u32 attention.iclr_lora_rank:u32 attention.value_residual_mix_lora_rank:u32
wkv.head_size:u32
    arwkv7 rwkv7
attention.kv_lora_rank:u32 attention.layer_norm_rms_epsilon:f32 expert_feed_forward_length:u32
expert_shared_count:u32
    deepseek2 mistral4
attention.layer_norm_epsilon:f32 ssm.conv_kernel:u32 ssm.group_count:u32 ssm.inner_size:u32 ssm.state_size:u32
ssm.time_step_rank:u32
    nemotron_h nemotron_h_moe
attention.layer_norm_rms_epsilon:f32 attention.relative_buckets_count:u32
    t5 t5encoder
attention.layer_norm_rms_epsilon:f32 attention.sliding_window:u32 attention.sliding_window_pattern:arr
expert_feed_forward_length:u32
    mimo2 step35
attention.layer_norm_rms_epsilon:f32 attention.sliding_window:u32
    gemma-embedding gemma3n
attention.layer_norm_rms_epsilon:f32 expert_feed_forward_length:u32
    hunyuan-moe minimax-m2
attention.layer_norm_rms_epsilon:f32 expert_feed_forward_length:u32 interleave_moe_layer_step:u32
    ernie4_5-moe llama4
attention.layer_norm_rms_epsilon:f32 logit_scale:f32
    granite granitemoe
attention.layer_norm_rms_epsilon:f32 rope.dimension_sections:arr
    qwen3vl qwen3vlmoe
attention.layer_norm_rms_epsilon:f32 rope.dimension_sections:arr ssm.conv_kernel:u32 ssm.group_count:u32
ssm.inner_size:u32 ssm.state_size:u32 ssm.time_step_rank:u32
    qwen35 qwen35moe
attention.layer_norm_rms_epsilon:f32 ssm.conv_kernel:u32 ssm.inner_size:u32 ssm.state_size:u32
ssm.time_step_rank:u32
    jamba mamba
time_decay_extra_dim:u32 time_mix_extra_dim:u32 wkv.head_size:u32
    rwkv6 rwkv6qwen2
attention.clamp_kqv:f32 attention.layer_norm_epsilon:f32
    dbrx
attention.group_norm_epsilon:f32 attention.group_norm_groups:u32 attention.layer_norm_epsilon:f32
convnext.block_count:u32 convnext.embedding_length:u32 features_length:u32 posnet.block_count:u32
posnet.embedding_length:u32
    wavtokenizer-dec
attention.indexer.head_count:u32 attention.indexer.key_length:u32 attention.indexer.top_k:u32
attention.kv_lora_rank:u32 attention.layer_norm_rms_epsilon:f32 attention.q_lora_rank:u32
expert_feed_forward_length:u32 expert_shared_count:u32
    glm-dsa
attention.key_length_mla:u32 attention.kv_lora_rank:u32 attention.layer_norm_rms_epsilon:f32
attention.value_length_mla:u32 expert_feed_forward_length:u32 expert_gating_func:u32 expert_shared_count:u32
kda.head_dim:u32 ssm.conv_kernel:u32
    kimi-linear
attention.key_length_swa:u32 attention.layer_norm_rms_epsilon:f32 attention.sliding_window:u32
attention.sliding_window_pattern:arr attention.value_length_swa:u32 embedding_length_per_layer_input:u32
    gemma4
attention.kv_lora_rank:u32 attention.layer_norm_rms_epsilon:f32 attention.q_lora_rank:u32
    minicpm3
attention.kv_lora_rank:u32 attention.layer_norm_rms_epsilon:f32
    plm
attention.layer_norm_epsilon:f32 attention.sliding_window:u32 logit_scale:f32
    cohere2
attention.layer_norm_epsilon:f32 use_parallel_residual:bool
    gptneox
attention.layer_norm_rms_epsilon:f32 attention.sliding_window:u32 expert_feed_forward_length:u32
    gpt-oss
attention.layer_norm_rms_epsilon:f32 attention.sliding_window:u32 expert_feed_forward_length:u32
expert_gating_func:u32
    exaone-moe
attention.layer_norm_rms_epsilon:f32 expert_feed_forward_length:u32 expert_gating_func:u32
expert_shared_count:u32
    bailingmoe2
attention.layer_norm_rms_epsilon:f32 expert_feed_forward_length:u32 expert_gating_func:u32
shortconv.l_cache:u32
    lfm2moe
attention.layer_norm_rms_epsilon:f32 expert_feed_forward_length:u32 expert_group_scale:f32
experts_per_group:u32
    grovemoe
attention.layer_norm_rms_epsilon:f32 shortconv.l_cache:u32
    lfm2
rope.dimension_sections:arr
    qwen2vl
"""


# Values of `tokenizer.ggml.pre`.
_PRE_TOKENIZERS = """
a.x-4.0 afmoe bailingmoe bailingmoe2 bloom chameleon chatglm-bpe codeshell cohere2moe command-r dbrx deepseek-coder
deepseek-llm deepseek-r1-qwen deepseek-v3 default exaone exaone-moe exaone4 f2llmv2 falcon falcon-h1 falcon3 gemma4
gigachat glm4 glm5 gpt-2 gpt-4o gpt3-finnish granite-docling granite-embed-multi-311m granite-embed-multi-97m
grok-2 hunyuan hunyuan-dense hy_v4 jais jais-2 jina-de jina-es jina-v1-en jina-v2-code jina-v2-de jina-v2-es
jina-v5-nano joyai-llm k2-horizon kanana2 kimi-k2 kormo laguna lfm2 llama-bpe llama-v3 llama4 megrez mellum mellum2
midm-2.0 minerva-7b minicpm5 minimax-m2 mmbert modern-bert mpt olmo phi-2 pixtral poro-chat qwen2 qwen35 refact
roberta-bpe sarvam-moe seed-coder smaug-bpe smollm solar-open spark2_5 stablelm2 starcoder superbpe talkie tekken
tiny_aya trillion ufakzeka viking whitespace youtu
"""


def _pairs(line: str) -> dict[str, str]:
    return {key: kind for key, _, kind in (word.partition(":") for word in line.split())}


@cache
def _table() -> dict[str, dict[str, str]]:
    table: dict[str, dict[str, str]] = {}
    keys: dict[str, str] = {}
    archs = ["none"]
    for line in _ROWS.strip().splitlines():
        if archs and not line.startswith(" "):
            keys = _pairs(_COMMON)
        archs = line.split() if line.startswith(" ") else []
        if not archs:
            keys |= _pairs(line)
        table.update(dict.fromkeys(archs, keys))
    return table


def required_keys(architecture: str) -> dict[str, str] | None:
    """Key without prefix → short name of its type, such as ``u32``; None for an architecture unknown here."""
    return _table().get(architecture)


@cache
def known_pre_tokenizers() -> frozenset[str]:
    """The values of `tokenizer.ggml.pre` that llama.cpp knows."""
    return frozenset(_PRE_TOKENIZERS.split())
