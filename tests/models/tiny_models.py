"""Tiny models of every architecture that runs: random weights under the names and shapes that llama.cpp expects.

for name, recipe in RECIPES.items():
    write_tiny("tiny.gguf", name)         # loads in llama.cpp and in ggufkit

A recipe says what metadata and which tensors an architecture has beside what most have. Queries share keys where the
architecture allows it; windows and trained contexts are shorter than the texts of the tests.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from recipe_parts import (
    EXPERTS,
    FFN,
    FINAL,
    FINAL_BIAS,
    HEAD,
    HEADS,
    KV_HEADS,
    LAYER,
    LLAMA,
    MIXTURE,
    OUTPUT,
    RMS,
    SANDWICH,
    VOCAB,
    WIDE,
    WIDTH,
    Recipe,
    attention,
    experts,
    gated,
    linear,
    norms,
    plain,
    real,
)
from recipes_late import late, rwkv
from recipes_latest import latest

from ggufkit.formats.codec import encode
from ggufkit.formats.table import FORMATS
from ggufkit.gguf.writer import Writer

__all__ = ["RECIPES", "write_tiny"]


def _recipes() -> dict[str, Recipe]:
    found: dict[str, Recipe] = {}
    found["llama"] = Recipe(RMS, LLAMA, FINAL | OUTPUT | {"rope_freqs.weight": (HEAD // 2,)})
    found["llama+experts"] = Recipe(
        RMS | MIXTURE, norms("attn_norm", "ffn_norm") | attention() | experts(), FINAL | OUTPUT
    )
    found["llama+linear"] = Recipe(RMS | {"rope.scaling.type": "linear", "rope.scaling.factor": real(4)}, LLAMA, FINAL)
    yarn = {"rope.scaling.type": "yarn", "rope.scaling.factor": real(4), "rope.scaling.original_context_length": 32}
    found["llama+yarn"] = Recipe(RMS | yarn, LLAMA, FINAL)
    found["internlm2"] = Recipe(RMS, LLAMA, FINAL | OUTPUT)
    found["exaone"] = Recipe(RMS, LLAMA, FINAL)
    found["smollm3"] = Recipe(RMS, LLAMA, FINAL, layers=5)
    found["granite"] = Recipe(
        RMS
        | {
            "attention.scale": real(0.1),
            "embedding_scale": real(3),
            "residual_scale": real(0.3),
            "logit_scale": real(2),
        },
        LLAMA,
        FINAL,
    )
    found["granitemoe"] = Recipe(
        RMS | MIXTURE | {"attention.scale": real(0.1), "logit_scale": real(2)},
        norms("attn_norm", "ffn_norm") | attention() | experts(),
        FINAL,
    )
    found["qwen2"] = Recipe(RMS, norms("attn_norm", "ffn_norm") | attention(bias=True) | gated(), FINAL)
    shared = {"expert_feed_forward_length": FFN, "expert_shared_feed_forward_length": 80}
    found["qwen2moe"] = Recipe(
        RMS | MIXTURE | shared,
        norms("attn_norm", "ffn_norm")
        | attention(bias=True)
        | experts()
        | gated(suffix="_shexp", ffn=80)
        | {"ffn_gate_inp_shexp.weight": (WIDTH,)},
        FINAL | OUTPUT,
    )
    per_head = norms("attn_q_norm", "attn_k_norm", size=WIDE)
    wide = norms("attn_norm", "ffn_norm") | attention(head=WIDE)
    found["qwen3"] = Recipe(RMS, wide | gated() | per_head, FINAL, head=WIDE)
    found["qwen3moe"] = Recipe(
        RMS | MIXTURE | {"expert_feed_forward_length": FFN},
        wide | experts() | per_head,
        FINAL | OUTPUT,
        head=WIDE,
    )
    found["gemma"] = Recipe(RMS, wide | gated(), FINAL, head=WIDE)
    caps = {"attn_logit_softcapping": real(5), "final_logit_softcapping": real(3), "attention.sliding_window": 8}
    found["gemma2"] = Recipe(RMS | caps, wide | gated() | SANDWICH, FINAL, head=WIDE)
    local = {"attention.sliding_window": 8, "rope.freq_base": real(1e6), "rope.scaling.type": "linear"}
    found["gemma3"] = Recipe(
        RMS | local | {"rope.scaling.factor": real(8)},
        wide | gated() | SANDWICH | per_head,
        FINAL,
        layers=7,
        head=WIDE,
    )
    fused = linear("ffn_up", 2 * FFN, WIDTH) | linear("ffn_down", WIDTH, FFN)
    # llama.cpp rounds contexts up to 256 tokens, so 16 were too few and take the long factors.
    for name, original in (("short", 256), ("long", 16)):
        found[f"phi3+{name}"] = Recipe(
            RMS | {"rope.scaling.original_context_length": original, "attention.sliding_window": 16},
            norms("attn_norm", "ffn_norm") | attention(fused=True) | fused,
            FINAL | OUTPUT | {"rope_factors_long.weight": (HEAD // 2,), "rope_factors_short.weight": (HEAD // 2,)},
        )
    found["glm4"] = Recipe(
        RMS | {"rope.dimension_count": 8},
        norms("attn_norm", "ffn_norm") | SANDWICH | attention(bias=True) | fused,
        FINAL | OUTPUT,
    )
    found["phi2"] = Recipe(
        LAYER | {"rope.dimension_count": 12},
        norms("attn_norm", bias=True) | attention(True, True, fused=True, kv=HEADS) | plain(True),
        FINAL_BIAS | {"output.weight": (VOCAB, WIDTH), "output.bias": (VOCAB,)},
        kv_heads=HEADS,
    )
    whole_row = norms("attn_q_norm", size=HEADS * HEAD) | norms("attn_k_norm", size=KV_HEADS * HEAD)
    found["olmo2"] = Recipe(RMS, attention() | gated() | SANDWICH | whole_row, FINAL | OUTPUT)
    found["olmo2+window"] = Recipe(
        RMS | yarn | {"attention.sliding_window": 8, "attention.sliding_window_pattern": 4},
        attention() | gated() | SANDWICH | whole_row,
        FINAL | OUTPUT,
        layers=5,
    )
    found["gpt-oss"] = Recipe(
        RMS | MIXTURE | yarn | {"attention.sliding_window": 8, "expert_feed_forward_length": FFN},
        norms("attn_norm", "post_attention_norm")
        | attention(True, True, head=WIDE)
        | experts(bias=True)
        | {"attn_sinks.weight": (HEADS,)},
        FINAL | OUTPUT,
        head=WIDE,
    )
    found["bitnet"] = Recipe(
        RMS,
        LLAMA | norms("attn_sub_norm", size=HEADS * HEAD) | norms("ffn_sub_norm", size=FFN),
        FINAL,
    )
    found["stablelm"] = Recipe(
        LAYER | {"rope.dimension_count": 8, "use_parallel_residual": True},
        norms("attn_norm", bias=True)
        | attention()
        | gated()
        | {"attn_q_norm.weight": (HEADS, HEAD), "attn_k_norm.weight": (KV_HEADS, HEAD)},
        FINAL_BIAS | OUTPUT,
    )
    found["starcoder2"] = Recipe(
        LAYER, norms("attn_norm", "ffn_norm", bias=True) | attention(True, True) | plain(True), FINAL_BIAS
    )
    found["nemotron"] = Recipe(
        LAYER | {"rope.dimension_count": 8},
        norms("attn_norm", "ffn_norm", bias=True) | attention() | plain(),
        FINAL_BIAS | OUTPUT,
    )
    found["falcon"] = Recipe(
        LAYER,
        norms("attn_norm", "attn_norm_2", bias=True) | attention(fused=True, kv=1) | plain(),
        FINAL_BIAS | OUTPUT,
        kv_heads=1,
    )
    for parallel in (True, False):
        found[f"gptneox+{'parallel' if parallel else 'sequential'}"] = Recipe(
            LAYER | {"rope.dimension_count": 4, "use_parallel_residual": parallel},
            norms("attn_norm", "ffn_norm", bias=True) | attention(True, True, True, kv=HEADS) | plain(True),
            FINAL_BIAS | OUTPUT,
            kv_heads=HEADS,
        )
    learned = {"position_embd.weight": (64, WIDTH)}
    classic = norms("attn_norm", "ffn_norm", bias=True) | plain(True)
    found["gpt2"] = Recipe(
        LAYER,
        classic | attention(True, True, True, kv=HEADS),
        FINAL_BIAS | learned,
        kv_heads=HEADS,
    )
    found["starcoder"] = Recipe(
        LAYER,
        classic | attention(True, True, True, kv=1),
        FINAL_BIAS | learned,
        kv_heads=1,
    )
    encoder = norms("attn_output_norm", "layer_output_norm", bias=True)
    types = norms("token_embd_norm", bias=True) | {"token_types.weight": (2, WIDTH)}
    for pooling, number in (("mean", 1), ("cls", 2), ("last", 3)):
        found[f"bert+{pooling}"] = Recipe(
            LAYER | {"attention.causal": False, "pooling_type": number},
            encoder | attention(True, True, kv=HEADS) | plain(True),
            types | learned,
            kv_heads=HEADS,
        )
    found["nomic-bert"] = Recipe(
        LAYER | {"attention.causal": False, "pooling_type": 1, "rope.freq_base": real(1000)},
        encoder | attention(fused=True, kv=HEADS) | gated(),
        types,
        kv_heads=HEADS,
    )
    shared_kv = encoder | attention(True, True, fused=True, kv=HEADS)
    found["nomic-bert-moe"] = Recipe(
        LAYER | MIXTURE | {"attention.causal": False, "pooling_type": 1, "moe_every_n_layers": 2},
        shared_kv | plain(True),
        types,
        odd=shared_kv | experts(gate=False),
        kv_heads=HEADS,
    )
    return found


def _state_spaces() -> dict[str, Recipe]:
    """What mixes tokens without attention, and where both are side by side."""
    inner, states, groups, heads = 128, 16, 2, 8
    keys = {"ssm.inner_size": inner, "ssm.state_size": states, "ssm.conv_kernel": 4}
    ends = linear("ssm_out", WIDTH, inner)
    mamba = (
        linear("ssm_in", 2 * inner, WIDTH)
        | {"ssm_conv1d.weight": (inner, 4), "ssm_conv1d.bias": (inner,), "ssm_a": (inner, states), "ssm_d": (inner,)}
        | linear("ssm_x", 4 + 2 * states, inner)
        | linear("ssm_dt", inner, 4, bias=True)
        | ends
    )
    channels = inner + 2 * groups * states
    mamba2 = (
        linear("ssm_in", inner + channels + heads, WIDTH)
        | {"ssm_conv1d.weight": (channels, 4), "ssm_conv1d.bias": (channels,), "ssm_dt.bias": (heads,)}
        | {"ssm_a": (heads, 1), "ssm_d": (heads, 1), "ssm_norm.weight": (groups, inner // groups)}
        | ends
    )
    none = RMS | {"attention.head_count": 0, "attention.head_count_kv": None, "attention.key_length": None}
    none |= {"attention.value_length": None, "feed_forward_length": 0}
    one, two = keys | {"ssm.time_step_rank": 4}, keys | {"ssm.time_step_rank": heads, "ssm.group_count": groups}
    alone = norms("attn_norm")
    return {
        "mamba": Recipe(none | one, alone | mamba, FINAL),
        "mamba+normed": Recipe(none | one | {"ssm.dt_b_c_rms": True}, alone | mamba, FINAL),
        "mamba2": Recipe(none | two, alone | mamba2, FINAL),
        "granitehybrid": Recipe(
            RMS | two | {"attention.head_count_kv": [0, KV_HEADS, 0], "rope.scaling.finetuned": False},
            norms("attn_norm", "ffn_norm") | mamba2 | gated(),
            FINAL,
            odd=LLAMA,
        ),
    }


def _more() -> dict[str, Recipe]:
    """Architectures of 2024–2026 of which the shared checkpoints have none."""
    per_head = norms("attn_q_norm", "attn_k_norm", size=HEAD)
    both = norms("attn_norm", "ffn_norm") | attention()
    scaled = {"embedding_scale": real(3), "residual_scale": real(0.3), "logit_scale": real(2)}
    whole_row = norms("attn_q_norm", "attn_k_norm", size=HEADS * HEAD)
    latent = (
        norms("attn_norm", "ffn_norm")
        | linear("attn_q_a", 40, WIDTH)
        | linear("attn_q_b", HEADS * 20, 40)
        | linear("attn_kv_a_mqa", 24 + 8, WIDTH)
        | {"attn_q_a_norm.weight": (40,), "attn_kv_a_norm.weight": (24,)}
        | {"attn_k_b.weight": (HEADS, 24, 12), "attn_v_b.weight": (HEADS, 12, 24)}
        | linear("attn_output", WIDTH, HEADS * 12)
    )
    twins = (
        norms("attn_norm", "ffn_norm", "post_attention_norm", "post_ffw_norm")
        | norms("post_ffw_norm_1", "pre_ffw_norm_2", "post_ffw_norm_2")
        | gated()
        | linear("ffn_gate_inp", EXPERTS, WIDTH)
        | linear("ffn_gate_up_exps", 2 * FFN, WIDTH, experts=EXPERTS)
        | linear("ffn_down_exps", WIDTH, FFN, experts=EXPERTS)
        | {"ffn_gate_inp.scale": (WIDTH,), "ffn_down_exps.scale": (EXPERTS,), "layer_output_scale.weight": (1,)}
    )
    return {
        "minicpm": Recipe(RMS | scaled, LLAMA, FINAL),
        "phimoe": Recipe(
            RMS | LAYER | MIXTURE | {"rope.scaling.original_context_length": 256},
            norms("attn_norm", "ffn_norm", bias=True) | attention(True, True) | experts(),
            FINAL_BIAS
            | {"output.weight": (VOCAB, WIDTH), "output.bias": (VOCAB,)}
            | {"rope_factors_long.weight": (HEAD // 2,), "rope_factors_short.weight": (HEAD // 2,)},
        ),
        "command-r": Recipe(LAYER | {"logit_scale": real(0.3)}, norms("attn_norm") | attention() | gated(), FINAL),
        "cohere2": Recipe(
            LAYER | {"logit_scale": real(0.3), "attention.sliding_window": 8},
            norms("attn_norm") | attention() | gated(),
            FINAL,
            layers=5,
        ),
        "exaone4": Recipe(
            RMS | {"attention.sliding_window": 8, "attention.sliding_window_pattern": 4},
            attention() | per_head | gated() | SANDWICH,
            FINAL,
            layers=5,
        ),
        "arcee": Recipe(RMS, both | plain(), FINAL),
        "olmoe": Recipe(
            RMS | MIXTURE,
            norms("attn_norm", "ffn_norm") | attention(kv=HEADS) | whole_row | experts(),
            FINAL | OUTPUT,
            kv_heads=HEADS,
        ),
        "qwen3vlmoe": Recipe(
            RMS
            | MIXTURE
            | {"expert_feed_forward_length": FFN, "rope.dimension_sections": [3, 3, 2, 0], "n_deepstack_layers": 0},
            both | experts() | per_head,
            FINAL | OUTPUT,
        ),
        "qwen2vl": Recipe(
            # llama.cpp of October 2026 does not read this epsilon, and takes 0.
            RMS | {"rope.dimension_sections": [4, 2, 2, 0], "attention.layer_norm_rms_epsilon": 1e-12},
            norms("attn_norm", "ffn_norm") | attention(bias=True) | gated(),
            FINAL,
        ),
        "qwen3vl": Recipe(
            RMS | {"rope.dimension_sections": [3, 3, 2, 0], "n_deepstack_layers": 0}, both | per_head | gated(), FINAL
        ),
        "eurobert": Recipe(
            RMS | {"attention.causal": False, "pooling_type": 1, "rope.scaling.type": "none"},
            LLAMA,
            FINAL,
        ),
        "gemma-embedding": Recipe(
            RMS | {"attention.causal": False, "pooling_type": 1, "attention.sliding_window": 8},
            both | gated() | SANDWICH | per_head,
            FINAL,
            layers=7,
        ),
        "llama-embed": Recipe(RMS | {"attention.causal": False, "pooling_type": 1}, LLAMA, FINAL),
        "paddleocr": Recipe(RMS | {"rope.dimension_sections": [4, 2, 2, 0]}, LLAMA, FINAL),
        "hunyuan_vl": Recipe(RMS | {"rope.dimension_sections": [4, 2, 2, 0]}, LLAMA | per_head, FINAL),
        **{
            name: Recipe(
                RMS
                | {"attention.key_length": 24 + 8, "attention.value_length": 24, "rope.dimension_count": 8}
                | {"attention.q_lora_rank": 40, "attention.kv_lora_rank": 24, "leading_dense_block_count": 1}
                | {"attention.key_length_mla": 20, "attention.value_length_mla": 12, "expert_shared_count": 1}
                | MIXTURE
                | {"expert_feed_forward_length": FFN, "expert_gating_func": 2, "expert_weights_norm": True}
                | {"expert_weights_scale": real(1.5)},
                latent | gated(),
                FINAL | OUTPUT,
                odd=latent | experts() | {"exp_probs_b.bias": (EXPERTS,)} | gated(suffix="_shexp"),
                layers=2,
                kv_heads=1,
            )
            for name in ("deepseek2", "mistral4")
        },
        "bloom": Recipe(
            LAYER,
            norms("attn_norm", "ffn_norm", bias=True) | attention(True, True, fused=True, kv=HEADS) | plain(True),
            FINAL_BIAS | norms("token_embd_norm", bias=True) | OUTPUT,
            kv_heads=HEADS,
        ),
        "mpt": Recipe(
            LAYER | {"attention.clamp_kqv": real(0.5), "attention.max_alibi_bias": real(8)},
            norms("attn_norm", "ffn_norm") | attention(fused=True, kv=HEADS) | plain(),
            FINAL,
            kv_heads=HEADS,
        ),
        # llama.cpp knows its models by their number of layers.
        "baichuan+rope": Recipe(RMS, LLAMA | attention(kv=HEADS), FINAL | OUTPUT, kv_heads=HEADS, layers=32),
        "baichuan+alibi": Recipe(RMS, LLAMA | attention(kv=HEADS), FINAL | OUTPUT, kv_heads=HEADS, layers=40),
        "gemma4+experts": Recipe(
            RMS
            | MIXTURE
            | {"attention.sliding_window": 8, "attention.sliding_window_pattern": [True, False, True]}
            | {"attention.key_length_swa": HEAD, "attention.value_length_swa": HEAD, "expert_feed_forward_length": FFN}
            | {"rope.dimension_count": WIDE, "rope.dimension_count_swa": HEAD, "rope.freq_base": real(1e6)}
            | {"rope.freq_base_swa": real(1e4), "final_logit_softcapping": real(3)}
            | {"attention.shared_kv_layers": 0, "embedding_length_per_layer_input": 0},
            twins | attention() | per_head,
            FINAL | {"rope_freqs.weight": (WIDE // 2,)},
            odd=twins | attention(head=WIDE) | norms("attn_q_norm", "attn_k_norm", size=WIDE),
            head=WIDE,
        ),
        "neo-bert": Recipe(
            RMS | {"attention.causal": False, "pooling_type": 2},
            norms("attn_norm", "ffn_norm")
            | attention(fused=True, kv=HEADS)
            | linear("ffn_up", 2 * FFN, WIDTH)
            | linear("ffn_down", WIDTH, FFN),
            norms("enc.output_norm"),
            kv_heads=HEADS,
        ),
    }


RECIPES = _recipes() | _state_spaces() | _more() | late() | latest() | rwkv()


def write_tiny(
    path: str | os.PathLike[str],
    name: str,
    format: str = "F32",
    seed: int = 0,
    metadata: Mapping[str, Any] | None = None,
    tensors: Mapping[str, tuple[int, ...] | None] | None = None,
) -> None:
    """Write the model of a recipe; matrices in `format` where their rows allow it.

    `metadata` and `tensors` change the recipe: other values and shapes, None for what is to be missing.
    """
    recipe, architecture = RECIPES[name], name.split("+", maxsplit=1)[0]
    keys = {
        "context_length": 64,
        "embedding_length": WIDTH,
        "block_count": recipe.layers,
        "feed_forward_length": FFN,
        "attention.head_count": HEADS,
        "attention.head_count_kv": recipe.kv_heads,
        "attention.key_length": recipe.head,
        "attention.value_length": recipe.head,
        "vocab_size": VOCAB,
        **recipe.metadata,
    }
    pairs: dict[str, Any] = {"general.architecture": architecture, "tokenizer.ggml.model": "no_vocab"}
    if "token_types.weight" in recipe.whole:
        pairs["tokenizer.ggml.token_type_count"] = 2
    pairs |= {f"{architecture}.{key}": value for key, value in keys.items()} | dict(metadata or {})
    shapes = {"token_embd.weight": (VOCAB, WIDTH), **recipe.whole}
    for layer in range(recipe.layers):
        block = recipe.odd if layer % 2 and recipe.odd else recipe.block
        shapes |= {f"blk.{layer}.{tensor}": shape for tensor, shape in block.items()}
    shapes = {tensor: shape for tensor, shape in {**shapes, **(tensors or {})}.items() if shape is not None}
    rng = np.random.default_rng(seed)
    arrays = {tensor: _values(tensor, shape, rng) for tensor, shape in shapes.items()}

    def format_of(tensor: str) -> str:
        matrix = len(shapes[tensor]) > 1 and tensor.endswith(".weight") and not _plain(tensor)
        return format if matrix and shapes[tensor][-1] % FORMATS[format].block_size == 0 else "F32"

    infos = [(tensor, shape, FORMATS[format_of(tensor)]) for tensor, shape in shapes.items()]
    pairs = {key: value for key, value in pairs.items() if value is not None}
    with Writer(path, pairs, infos, force=True) as writer:
        for tensor, values in arrays.items():
            blocks: Callable[[np.ndarray], np.ndarray] = lambda x: encode(x, format_of(tensor))  # noqa: B023, E731
            writer.write(tensor, 0, blocks(values.reshape(-1, values.shape[-1])))


def _plain(tensor: str) -> bool:
    return any(part in tensor for part in ("norm", "position_embd", "token_types", "ffn_gate_inp", "sinks", "conv1d"))


def _values(tensor: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    if tensor.startswith(("rope_f",)):
        return rng.uniform(1, 4, shape).astype(np.float32)
    if tensor.endswith("ssm_a"):
        return -rng.uniform(0.5, 4, shape).astype(np.float32)
    if "norm" in tensor and tensor.endswith(".weight"):
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    return (rng.standard_normal(shape) * (1.0 if len(shape) == 1 else 2.0 / np.sqrt(shape[-1]))).astype(np.float32)
