"""Recipes of architectures whose code came with their checkpoints, and of which nobody has small ones."""

from __future__ import annotations

from typing import Any

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
    VOCAB,
    WIDTH,
    Recipe,
    Shapes,
    attention,
    experts,
    gated,
    linear,
    norms,
    plain,
    real,
)

__all__ = ["encoders", "late", "ranking", "rwkv"]

_BOTH = norms("attn_norm", "ffn_norm") | attention()
_PER_HEAD = norms("attn_q_norm", "attn_k_norm", size=HEAD)
_SMALL = {"expert_feed_forward_length": FFN}


def late() -> dict[str, Recipe]:
    window = {"attention.sliding_window": 8, "attention.sliding_window_pattern": [True, False, True]}
    expanded = (
        norms("attn_norm", "ffn_norm")
        | linear("attn_kv_a_mqa", 24 + 8, WIDTH)
        | {"attn_kv_a_norm.weight": (24,)}
        | linear("attn_kv_b", HEADS * (12 + HEAD), 24)
        | linear("attn_output", WIDTH, HEADS * HEAD)
    )
    short = linear("attn_q_a", 40, WIDTH) | {"attn_q_a_norm.weight": (40,)} | linear("attn_q_b", HEADS * 20, 40)
    mla: dict[str, Any] = {"attention.kv_lora_rank": 24, "attention.key_length": 20, "rope.dimension_count": 8}
    return {
        "modern-bert": Recipe(
            LAYER
            | {"attention.causal": False, "pooling_type": 1, "attention.sliding_window": 8}
            | {"attention.sliding_window_pattern": 3, "rope.scaling.type": "none", "rope.freq_base_swa": real(1e4)},
            norms("attn_norm", "ffn_norm")
            | attention(fused=True, kv=HEADS)
            | linear("ffn_up", 2 * FFN, WIDTH)
            | linear("ffn_down", WIDTH, FFN),
            norms("token_embd_norm", "output_norm"),
            kv_heads=HEADS,
        ),
        "qwen": Recipe(
            RMS | {"feed_forward_length": 2 * FFN},
            norms("attn_norm", "ffn_norm")
            | linear("attn_qkv", 3 * HEADS * HEAD, WIDTH, True)
            | linear("attn_output", WIDTH, HEADS * HEAD)
            | gated(),
            FINAL | OUTPUT,
            kv_heads=HEADS,
        ),
        "hunyuan-moe": Recipe(
            RMS | MIXTURE | _SMALL | {"expert_shared_feed_forward_length": FFN},
            _BOTH | _PER_HEAD | experts() | gated(suffix="_shexp"),
            FINAL,
        ),
        "plamo": Recipe(RMS, norms("attn_norm") | attention() | gated(), FINAL | OUTPUT),
        "plamo3": Recipe(
            RMS
            | {"attention.sliding_window": 8, "attention.sliding_window_pattern": 2, "rope.freq_base_swa": real(1e4)}
            | {"rope.freq_base": real(1e6)},
            norms("attn_norm", "ffn_norm")
            | {"post_attention_norm": (WIDTH,), "post_ffw_norm": (WIDTH,)}  # without the ending
            | attention(fused=True)
            | _PER_HEAD
            | linear("ffn_up", 2 * FFN, WIDTH)
            | linear("ffn_down", WIDTH, FFN),
            FINAL,
        ),
        **{
            f"nanbeige+{name}": Recipe(RMS | {"num_loops": 2, "skip_loop_final_norm": skip}, LLAMA, FINAL, layers=2)
            for name, skip in (("norm", False), ("no norm", True))
        },
        "hrm_text": Recipe(
            RMS
            | {"block_count": 6, "hrm.layers_per_stack": 1, "hrm.h_cycles": 2, "hrm.l_cycles": 2}
            | {"embedding_scale": real(3)},
            attention() | gated() | linear("attn_gate", HEADS * HEAD, WIDTH),
            {"hrm.z_l_init": (WIDTH,)},
            layers=2,
        ),
        "codeshell": Recipe(
            LAYER, norms("attn_norm", "ffn_norm", bias=True) | attention(True, True) | plain(True), FINAL_BIAS | OUTPUT
        ),
        "jais": Recipe(
            LAYER | {"attention.max_alibi_bias": real(8)},
            norms("attn_norm", "ffn_norm", bias=True) | attention(True, True, fused=True, kv=HEADS) | gated(True),
            FINAL_BIAS | OUTPUT,
            kv_heads=HEADS,
        ),
        "spark2_5": Recipe(
            RMS | window | {"rope.dimension_count": 8, "rope.dimension_count_swa": HEAD},
            _BOTH | gated() | linear("attn_gate", HEADS, WIDTH),
            FINAL,
        ),
        "minicpm3": Recipe(
            RMS | mla | {"attention.q_lora_rank": 40}, expanded | short | gated(), FINAL, kv_heads=HEADS
        ),
        "plm": Recipe(RMS | mla, expanded | linear("attn_q", HEADS * 20, WIDTH) | plain(), FINAL, kv_heads=HEADS),
        "talkie": Recipe(
            RMS | {"logit_scale": real(0.4)},
            attention()
            | gated()
            | {"attn_q_norm.weight": (HEADS, 1), "layer_output_scale.weight": (1,)}
            | {"attn_output.scale": (1,), "ffn_down.scale": (1,)},
            OUTPUT,
        ),
        "smallthinker": Recipe(
            RMS | MIXTURE | _SMALL | {"expert_gating_func": 2, "attention.sliding_window": 4096},
            _BOTH | experts(),
            FINAL,
            layers=2,
        ),
        "smallthinker+rope": Recipe(
            RMS | MIXTURE | _SMALL | {"expert_gating_func": 1}, _BOTH | experts(), FINAL, layers=2
        ),
        "maple": Recipe(
            RMS | MIXTURE | _SMALL | window | {"swiglu_clamp_exp": [float(v) for v in (0.5, 0.0, 1.0)]},
            _BOTH | _PER_HEAD | experts(),
            FINAL | OUTPUT,
        ),
        **{
            f"grok+{kind}": Recipe(
                RMS | MIXTURE | _SMALL | {"attention.output_scale": real(0.2), "logit_scale": real(0.5)},
                _BOTH | norms("attn_output_norm", "layer_output_norm") | experts() | more,
                FINAL | OUTPUT,
            )
            for kind, more in (("one", {}), ("two", gated()))
        },
        "cogvlm": Recipe(
            RMS,
            norms("attn_norm", "ffn_norm")
            | attention(fused=True, kv=HEADS)
            | gated()
            | linear("vis_attn_qkv", 3 * HEADS * HEAD, WIDTH)
            | linear("vis_attn_output", WIDTH, HEADS * HEAD)
            | linear("vis_gate", FFN, WIDTH)
            | linear("vis_up", FFN, WIDTH)
            | linear("vis_down", WIDTH, FFN),
            FINAL,
            kv_heads=HEADS,
        ),
        "chameleon": Recipe(
            RMS | {"vocab_size": 8300},
            _BOTH
            | gated()
            | {f"attn_q_norm.{kind}": (HEADS, HEAD) for kind in ("weight", "bias")}
            | {f"attn_k_norm.{kind}": (KV_HEADS, HEAD) for kind in ("weight", "bias")},
            FINAL | {"token_embd.weight": (8300, WIDTH)},
        ),
        "step35": Recipe(
            RMS
            | MIXTURE
            | _SMALL
            | {"attention.sliding_window": 8, "attention.sliding_window_pattern": [False, True, False, True]}
            | {"attention.head_count": [4, 8, 4, 8], "attention.head_count_kv": [2, 4, 2, 4]}
            | {"rope.freq_base": real(5e5), "rope.freq_base_swa": real(1e4), "rope.dimension_count": HEAD}
            | {"expert_shared_feed_forward_length": FFN, "expert_weights_scale": real(2), "expert_weights_norm": True}
            | {"swiglu_clamp_exp": [float(v) for v in (0, 0.5, 0, 0)], "leading_dense_block_count": 1}
            | {"swiglu_clamp_shexp": [float(v) for v in (0, 0, 0, 0.5)]},
            _BOTH | _PER_HEAD | gated() | linear("attn_gate", HEADS, WIDTH),
            FINAL | OUTPUT | {"rope_freqs.weight": (HEAD // 2,)},
            odd=norms("attn_norm", "ffn_norm")
            | linear("attn_q", 8 * HEAD, WIDTH)
            | linear("attn_k", 4 * HEAD, WIDTH)
            | linear("attn_v", 4 * HEAD, WIDTH)
            | linear("attn_output", WIDTH, 8 * HEAD)
            | linear("attn_gate", 8, WIDTH)
            | _PER_HEAD
            | experts()
            | {"exp_probs_b.bias": (EXPERTS,)}
            | gated(suffix="_shexp"),
            layers=4,
        ),
        **{
            f"jina-bert-v2+{kind}": Recipe(
                LAYER | {"attention.causal": False, "pooling_type": 1},
                norms("attn_output_norm", "layer_output_norm", bias=True) | attention(True, True, kv=HEADS) | more,
                norms("token_embd_norm", bias=True) | {"token_types.weight": (2, WIDTH)},
                kv_heads=HEADS,
            )
            for kind, more in (
                (
                    "gate",
                    linear("ffn_gate", FFN, WIDTH)
                    | linear("ffn_up", FFN, WIDTH)
                    | linear("ffn_down", WIDTH, FFN, True),
                ),
                (
                    "fused",
                    linear("ffn_up", 2 * FFN, WIDTH)
                    | linear("ffn_down", WIDTH, FFN, True)
                    | norms("attn_norm_2", bias=True)
                    | norms("attn_q_norm", "attn_k_norm", bias=True),
                ),
            )
        },
    }


def rwkv() -> dict[str, Recipe]:
    """llama.cpp's recurrence of RWKV 7 reads heads by 64 numbers."""
    width, size = 2 * WIDTH, 64
    none = {"attention.head_count": 0, "attention.key_length": None, "attention.value_length": None}
    keys: dict[str, Any] = none | {"attention.head_count_kv": None, "wkv.head_size": size, "embedding_length": width}
    six = keys | {"time_mix_extra_dim": 8, "time_decay_extra_dim": 8}
    ranks = {f"attention.{name}_lora_rank": 8 for name in ("decay", "iclr", "value_residual_mix", "gate")}

    def low(*names: str) -> Shapes:
        found: Shapes = {}
        for name in names:
            found |= {f"time_mix_{name}1.weight": (8, width), f"time_mix_{name}2.weight": (width, 8)}
        return found

    parts = ("receptance", "output", "key", "value")
    mixed: Shapes = {f"time_mix_{part}.weight": (width, width) for part in parts}
    time6 = mixed | linear("time_mix_w1", 40, width) | linear("time_mix_w2", width, 8, experts=5) | low("decay_w")
    time6 |= norms("time_mix_decay", size=width) | linear("time_mix_gate", width, width)
    time6 |= {"time_mix_lerp_x.weight": (1, 1, width), "time_mix_lerp_fused.weight": (5, 1, 1, width)}
    time7 = mixed | low("w", "a", "v", "g") | {"time_mix_lerp_fused.weight": (6, 1, 1, width)}
    time7 |= norms(*(f"time_mix_{name}" for name in ("w0", "a0", "v0", "k_k", "k_a", "r_k")), size=width)
    own = norms("attn_norm", "attn_norm_2", "time_mix_ln", bias=True, size=width)
    own |= {"channel_mix_lerp_k.weight": (1, 1, width)}
    own |= linear("channel_mix_key", FFN, width) | linear("channel_mix_value", width, FFN)
    received = {"channel_mix_lerp_r.weight": (1, 1, width)} | linear("channel_mix_receptance", width, width)
    ffn = norms("attn_norm", "ffn_norm", size=width) | linear("ffn_gate", FFN, width) | linear("ffn_up", FFN, width)
    ffn |= linear("ffn_down", width, FFN)
    ends = {"token_embd.weight": (VOCAB, width), "output.weight": (VOCAB, width)}
    whole = norms("token_embd_norm", "output_norm", bias=True, size=width) | ends
    plain_end = norms("output_norm", size=width) | ends
    fewer = linear("time_mix_key", size, width, True) | linear("time_mix_value", size, width, True)
    one = RMS | {"token_shift_count": 1}
    first = {"time_mix_first.weight": (width // size, size)}
    return {
        "rwkv6": Recipe(LAYER | six | {"rescale_every_n_layers": 2}, own | time6 | received | first, whole),
        "rwkv6qwen2": Recipe(one | six | {"attention.head_count_kv": 1}, ffn | time6 | fewer, plain_end),
        "rwkv7": Recipe(LAYER | keys | ranks, own | time7, whole),
        "arwkv7": Recipe(one | keys | ranks, ffn | time7, plain_end),
    }


def encoders() -> dict[str, Recipe]:
    """T5, with gated GELU or plain ReLU; its encoder alone."""
    keys = RMS | {"attention.relative_buckets_count": 8, "attention.layer_norm_epsilon": real(1e-6)}
    both = keys | {"decoder_start_token_id": 3, "decoder_block_count": 2}
    size = HEADS * HEAD

    def stack(side: str, layers: int, ffn: Shapes, *attentions: str) -> Shapes:
        found: Shapes = {f"{side}.output_norm.weight": (WIDTH,), f"{side}.blk.0.attn_rel_b.weight": (8, HEADS)}
        for layer in range(layers):
            block = norms("ffn_norm", *(f"{name}_norm" for name in attentions)) | ffn
            for name in attentions:
                for part in "qkv":
                    block |= linear(f"{name}_{part}", size, WIDTH)
                block |= linear(f"{name}_o", WIDTH, size)
            found |= {f"{side}.blk.{layer}.{name}": shape for name, shape in block.items()}
        return found

    def recipe(ffn: Shapes) -> Recipe:
        whole = stack("enc", 2, ffn, "attn") | stack("dec", 2, ffn, "attn", "cross_attn") | OUTPUT
        return Recipe(both, {}, whole, layers=2, kv_heads=HEADS)

    return {
        "t5+gated": recipe(gated()),
        "t5+plain": recipe(plain()),
        "t5encoder": Recipe(keys, {}, stack("enc", 2, gated(), "attn"), layers=2, kv_heads=HEADS),
    }


def ranking() -> dict[str, tuple[str, dict[str, Any], dict[str, tuple[int, ...]]]]:
    """Of models with a classification head: the recipe of the rest, keys and tensors."""
    dense, out = linear("cls", WIDTH, WIDTH, True), linear("cls.output", 1, WIDTH, True)
    two = {"classifier.output_labels": ["yes", "no"]}
    three = {"classifier.output_labels": ["a", "b", "c"], "classifier.activation": "silu"}
    return {
        "bert": ("bert+cls", {}, dense | out),
        "bert, labels": ("bert+cls", three, dense | linear("cls.output", 3, WIDTH)),
        "one matrix": ("bert+cls", {}, out),
        "jina": ("jina-bert-v2+gate", {}, linear("cls", 1, WIDTH, True)),
        "modern": ("modern-bert", {}, linear("cls", WIDTH, WIDTH) | norms("cls.norm") | out),
        "qwen": ("qwen3", two, linear("cls.output", 2, WIDTH)),
    }
