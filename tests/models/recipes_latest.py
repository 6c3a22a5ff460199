"""Recipes of architectures whose blocks are put together in ways of their own: DeciLM, Arctic, Grove, MiniMax, …"""

from __future__ import annotations

from typing import Any

from recipe_parts import (
    EXPERTS,
    FFN,
    FINAL,
    HEAD,
    HEADS,
    KV_HEADS,
    LLAMA,
    MIXTURE,
    OUTPUT,
    RMS,
    SANDWICH,
    WIDTH,
    Recipe,
    Shapes,
    attention,
    experts,
    gated,
    linear,
    norms,
    real,
)

__all__ = ["latest"]

_BOTH = norms("attn_norm", "ffn_norm") | attention()
_PER_HEAD = norms("attn_q_norm", "attn_k_norm", size=HEAD)
_SMALL = {"expert_feed_forward_length": FFN}


def _layers(*blocks: Shapes) -> Shapes:
    """Blocks that differ, with whole names."""
    return {f"blk.{layer}.{name}": shape for layer, block in enumerate(blocks) for name, shape in block.items()}


def latest() -> dict[str, Recipe]:
    return _blocks() | _recurrent()


def _blocks() -> dict[str, Recipe]:
    ffn = norms("ffn_norm") | gated()
    alone = norms("attn_norm") | linear("attn_output", WIDTH, WIDTH)
    pruned: dict[str, Any] = {"attention.head_count": [HEADS, 0, HEADS, 0, HEADS]}
    pruned |= {"attention.head_count_kv": [KV_HEADS, 0, 0, 0, 1], "feed_forward_length": [FFN, FFN, FFN, 0, FFN]}
    one = norms("attn_norm") | attention(kv=1)
    window = {"attention.sliding_window": 8, "attention.sliding_window_pattern": [True, False, True]}
    routed = linear("attn_v_gate", EXPERTS, WIDTH, True) | linear("attn_v_exps", KV_HEADS * HEAD, WIDTH, experts=EXPERTS)
    return {
        "deci": Recipe(
            RMS | pruned,
            {},
            FINAL | OUTPUT | {"rope_freqs.weight": (HEAD // 2,)} | _layers(LLAMA, ffn, alone | ffn, {}, one | ffn),
            layers=5,
        ),
        "deepseek2-ocr": Recipe(
            RMS | MIXTURE | _SMALL | {"expert_shared_count": 1, "leading_dense_block_count": 1},
            norms("attn_norm", "ffn_norm") | attention(kv=HEADS) | gated(),
            FINAL | OUTPUT,
            odd=norms("attn_norm", "ffn_norm") | attention(kv=HEADS) | experts() | gated(suffix="_shexp"),
            layers=2,
            kv_heads=HEADS,
        ),
        "arctic": Recipe(
            RMS | MIXTURE,
            _BOTH | norms("ffn_norm_exps") | gated(ffn=WIDTH) | experts(),
            FINAL | OUTPUT,
        ),
        "grovemoe": Recipe(
            RMS
            | MIXTURE
            | _SMALL
            | {"expert_count": 8, "expert_used_count": 3, "experts_per_group": 2, "expert_group_scale": real(0.5)}
            | {"expert_chunk_feed_forward_length": 32},
            _BOTH
            | _PER_HEAD
            | linear("ffn_gate_inp", 8, WIDTH)
            | _stack("exps", FFN, 8)
            | _stack("chexps", 32, 4),
            FINAL | OUTPUT,
        ),
        "muse-glimmer": Recipe(
            RMS | window | {"final_logit_softcapping": real(3), "logit_scale": real(0.4)},
            _BOTH | SANDWICH | _PER_HEAD | gated() | linear("attn_gate", HEADS * HEAD, WIDTH),
            FINAL | OUTPUT,
        ),
        "k2-horizon": Recipe(
            RMS
            | MIXTURE
            | _SMALL
            | {"attention.group_norm_groups": 4, "leading_dense_block_count": 1, "expert_shared_count": 1}
            | {"attention.value_expert_count": EXPERTS, "attention.value_expert_used_count": 2}
            | {"rope.dimension_count": 8, "expert_weights_norm": True, "expert_weights_scale": real(1.5)},
            _BOTH
            | norms("attn_q_norm", size=HEADS * HEAD)
            | norms("attn_k_norm", size=KV_HEADS * HEAD)
            | linear("attn_gate", HEADS * HEAD, WIDTH)
            | gated(),
            FINAL | OUTPUT,
            odd=norms("attn_norm", "ffn_norm")
            | {name: shape for name, shape in attention().items() if "attn_v" not in name}
            | linear("attn_gate", HEADS * HEAD, WIDTH)
            | routed
            | experts()
            | {"exp_probs_b.bias": (EXPERTS,)}
            | gated(suffix="_shexp"),
            layers=2,
        ),
    }


def _stack(name: str, inner: int, count: int) -> Shapes:
    parts = (("gate", inner, WIDTH), ("up", inner, WIDTH), ("down", WIDTH, inner))
    return {f"ffn_{part}_{name}.weight": (count, rows, cols) for part, rows, cols in parts}


def _recurrent() -> dict[str, Recipe]:
    size, states = HEADS * HEAD, 16
    mamba = (
        linear("ssm_in", 2 * size, WIDTH)
        | {"ssm_conv1d.weight": (size, 4), "ssm_a": (HEADS,), "ssm_d": (HEADS,)}
        | linear("ssm_x", 2 * states + 64, size)
        | linear("ssm_dt", HEADS, 64, bias=True)
        | {"ssm_dt_norm": (64,), "ssm_b_norm": (states,), "ssm_c_norm": (states,)}
        | linear("ssm_out", WIDTH, size)
    )
    own = (
        norms("attn_norm", "ffn_norm")
        | {"post_attention_norm": (WIDTH,), "post_ffw_norm": (WIDTH,)}
        | linear("ffn_up", 2 * FFN, WIDTH)
        | linear("ffn_down", WIDTH, FFN)
    )
    return {
        "minimax-01": Recipe(
            RMS
            | MIXTURE
            | {"residual_scale": real(3.5), "rope.dimension_count": 8, "full_attention_interval": 2},
            norms("attn_norm", "ffn_norm")
            | linear("attn_qkv", 3 * size, WIDTH)
            | norms("attn_norm_2", size=size)
            | linear("attn_gate", size, WIDTH)
            | linear("attn_output", WIDTH, size)
            | experts(),
            FINAL | OUTPUT,
            odd=_BOTH | experts(),
            layers=4,
        ),
        "plamo2": Recipe(
            RMS
            | {"ssm.conv_kernel": 4, "ssm.inner_size": size, "ssm.state_size": states, "ssm.time_step_rank": HEADS}
            | {"ssm.group_count": 0, "attention.head_count_kv": [0, KV_HEADS, 0]},
            own | mamba,
            FINAL,
            odd=own
            | attention(fused=True)
            | {"attn_q_norm.weight": (HEADS, HEAD), "attn_k_norm.weight": (KV_HEADS, HEAD)},
        ),
    }
