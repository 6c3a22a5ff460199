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

from ggufkit.gguf.header import Value, ValueType

__all__ = ["diffusion", "latest"]

_BOTH = norms("attn_norm", "ffn_norm") | attention()
_PER_HEAD = norms("attn_q_norm", "attn_k_norm", size=HEAD)
_SMALL = {"expert_feed_forward_length": FFN}


def _layers(*blocks: Shapes) -> Shapes:
    """Blocks that differ, with whole names."""
    return {f"blk.{layer}.{name}": shape for layer, block in enumerate(blocks) for name, shape in block.items()}


def latest() -> dict[str, Recipe]:
    return _blocks() | _recurrent() | _sparse() | _ngrams() | _embedding()


def _blocks() -> dict[str, Recipe]:
    ffn = norms("ffn_norm") | gated()
    alone = norms("attn_norm") | linear("attn_output", WIDTH, WIDTH)
    pruned: dict[str, Any] = {"attention.head_count": [HEADS, 0, HEADS, 0, HEADS]}
    pruned |= {"attention.head_count_kv": [KV_HEADS, 0, 0, 0, 1], "feed_forward_length": [FFN, FFN, FFN, 0, FFN]}
    one = norms("attn_norm") | attention(kv=1)
    window = {"attention.sliding_window": 8, "attention.sliding_window_pattern": [True, False, True]}
    routed = linear("attn_v_gate", EXPERTS, WIDTH, True) | linear(
        "attn_v_exps", KV_HEADS * HEAD, WIDTH, experts=EXPERTS
    )
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
            _BOTH | _PER_HEAD | linear("ffn_gate_inp", 8, WIDTH) | _stack("exps", FFN, 8) | _stack("chexps", 32, 4),
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


def _sparse() -> dict[str, Recipe]:
    """Latent attention with gates, windows and an index; several streams."""
    rank, rope, nope, value, short = 24, 8, 12, 12, 40
    keys: dict[str, Any] = {"attention.q_lora_rank": short, "attention.kv_lora_rank": rank}
    keys |= {"attention.key_length": rank + rope, "attention.value_length": rank, "rope.dimension_count": rope}
    keys |= {"attention.key_length_mla": nope + rope, "attention.value_length_mla": value}
    routed = RMS | MIXTURE | _SMALL | {"expert_gating_func": 2, "expert_shared_count": 1, "expert_weights_norm": True}
    routed |= {"expert_weights_scale": real(1.5)}
    # llama.cpp turns the index of dots 3 by a matrix of 64 × 64 at least.
    index = {"attention.indexer.head_count": 2, "attention.indexer.key_length": 64, "attention.indexer.top_k": 8}

    def latent(rank: int = rank, nope: int = nope, value: int = value) -> Shapes:
        return (
            linear("attn_q_a", short, WIDTH)
            | {"attn_q_a_norm.weight": (short,), "attn_kv_a_norm.weight": (rank,)}
            | linear("attn_q_b", HEADS * (nope + rope), short)
            | linear("attn_kv_a_mqa", rank + rope, WIDTH)
            | {"attn_k_b.weight": (HEADS, rank, nope), "attn_v_b.weight": (HEADS, value, rank)}
            | linear("attn_output", WIDTH, HEADS * value)
        )

    two, mixed = norms("attn_norm", "ffn_norm"), experts() | {"exp_probs_b.bias": (EXPERTS,)} | gated(suffix="_shexp")
    indexer = (
        linear("indexer.attn_q_b", 2 * 64, short)
        | linear("indexer.attn_k", 64, WIDTH)
        | norms("indexer.k_norm", bias=True, size=64)
        | linear("indexer.proj", 2, WIDTH)
    )
    size = HEADS * HEAD
    delta = linear("attn_output", WIDTH, size) | linear("ssm_beta", HEADS, WIDTH) | norms("ssm_norm", size=HEAD)
    delta |= {"ssm_a": (HEADS, 1), "ssm_dt.bias": (size,)}
    for part in "qkv":
        delta |= linear(f"attn_{part}", size, WIDTH) | {f"ssm_conv1d_{part}.weight": (1, size, 1, 4)}
    delta |= linear("ssm_f_a", size, WIDTH) | linear("ssm_g_a", size, WIDTH)
    hyper: dict[str, Any] = {"hyper_connection.count": 3, "hyper_connection.epsilon": real(1e-3)}
    hyper |= {"hyper_connection.magnitude": real(2), "swiglu_clamp_exp": [float(v) for v in (0.5, 0.5)]}
    connected: Shapes = {}
    for half in ("attn", "ffn"):
        connected |= linear(f"hc_{half}_fn", 6, 3 * WIDTH)
        connected |= {f"hc_{half}_base.weight": (6,), f"hc_{half}_scale.weight": (2,)}
    head = linear("output_hc_fn", 3, 3 * WIDTH) | {"output_hc_base.weight": (3,), "output_hc_scale.weight": (1,)}
    hy = two | latent() | {"attn_sinks.weight": (HEADS,)} | linear("attn_gate", HEADS * value, WIDTH) | connected
    windowed: dict[str, Any] = {"attention.sliding_window": 8, "attention.sliding_window_pattern": [True, False]}
    windowed |= {"attention.kv_lora_rank_swa": 16, "attention.key_length_swa": 24, "attention.value_length_swa": 16}
    windowed |= {
        "attention.key_length_mla_swa": 16,
        "attention.value_length_mla_swa": 10,
        "rope.freq_base_swa": real(5e3),
    }
    gate = linear("attn_gate", HEADS, WIDTH)
    dots = two | norms("attn_k_norm", size=rope) | gate
    block = RMS | MIXTURE | _SMALL | {"expert_gating_func": 2, "expert_shared_count": 1, "leading_dense_block_count": 1}
    block |= {"expert_weights_norm": True, "expert_weights_scale": real(1.5), "rope.dimension_count": 8}
    block |= {"attention.indexer.head_count": KV_HEADS, "attention.indexer.key_length": 16}
    block |= {"attention.indexer.block_size": 4, "attention.indexer.local_blocks": 1}
    return {
        "bailingmoe3": Recipe(
            routed
            | keys
            | {"attention.head_count_kv": [0, 1], "ssm.conv_kernel": 4, "kda.head_dim": HEAD, "kda.safe_gate": True}
            | {"kda.gate_lower_bound": real(-5), "leading_dense_block_count": 1}
            | {"swiglu_clamp_exp": [0.0, 0.5], "swiglu_clamp_shexp": [0.0, 0.7]},
            two | delta | gated(),
            FINAL | OUTPUT,
            odd=two | latent() | gate | mixed,
            layers=2,
        ),
        "dots3note": Recipe(
            routed
            | keys
            | windowed
            | index
            | {"attention.indexer.types": [False, True], "leading_dense_block_count": 1},
            dots | latent(16, 8, 10) | gated(),
            FINAL | OUTPUT,
            odd=dots | latent() | indexer | mixed,
            layers=2,
            kv_heads=1,
        ),
        "hy_v4": Recipe(
            routed | keys | hyper | {"leading_dense_block_count": 1},
            hy | gated(),
            FINAL | OUTPUT | head,
            odd=hy | mixed,
            layers=2,
            kv_heads=1,
        ),
        "hy_v4+index": Recipe(
            routed | keys | hyper | index | {"attention.indexer.types": [True, False], "leading_dense_block_count": 1},
            hy | indexer | gated(),
            FINAL | OUTPUT | head,
            odd=hy | mixed,
            layers=2,
            kv_heads=1,
        ),
        **{
            f"minimax-m3+{kind}": Recipe(
                block | {"attention.indexer.top_k": count},
                _BOTH | _PER_HEAD | gated(),
                FINAL | OUTPUT,
                odd=_BOTH
                | _PER_HEAD
                | mixed
                | linear("indexer.q_proj", KV_HEADS * 16, WIDTH)
                | linear("indexer.k_proj", 16, WIDTH)
                | norms("indexer.q_norm", "indexer.k_norm", size=16),
                layers=2,
            )
            for kind, count in (("all", 100), ("few", 3))
        },
    }


def _ngrams() -> dict[str, Recipe]:
    """Delta nets, attention to pools of keys, gated connections of streams, vectors of n-grams in the first layer."""
    streams, low, heads, size = 3, 8, 4, WIDTH // 4
    connected: Shapes = {}
    for half in ("attn", "ffn"):
        connected |= norms(f"hc_{half}_norm", size=streams * WIDTH) | linear(f"hc_{half}_down", low, streams * WIDTH)
        connected |= linear(f"hc_{half}_up", streams * WIDTH, low) | linear(
            f"hc_{half}_inject", streams, streams * WIDTH
        )
    ends = norms("output_hc_norm", size=streams * WIDTH) | linear("output_hc_down", low, streams * WIDTH)
    ends |= linear("output_hc_up", streams * WIDTH, low) | {"per_layer_token_embd.weight": (100, size)}
    mixed = experts() | gated(suffix="_shexp") | {"ffn_gate_inp_shexp.weight": (WIDTH,)}
    delta = linear("attn_qkv", 2 * 32 + 64, WIDTH) | linear("attn_gate", 64, WIDTH) | linear("ssm_out", WIDTH, 64)
    delta |= {"ssm_conv1d.weight": (128, 4), "ssm_dt.bias": (4,), "ssm_a": (4,), "ssm_norm.weight": (16,)}
    delta |= linear("ssm_beta", 4, WIDTH) | linear("ssm_alpha", 4, WIDTH)
    full = {name: shape for name, shape in attention().items() if "attn_q" not in name}
    full |= linear("attn_q", 2 * HEADS * HEAD, WIDTH) | _PER_HEAD
    full |= linear("indexer.q_proj", 3 * 16, WIDTH) | linear("indexer.k_proj", 16, WIDTH)
    full |= norms("indexer.q_norm", "indexer.k_norm", size=16)
    added = linear("ple_key", streams * WIDTH, heads * size) | linear("ple_value", WIDTH, heads * size)
    added |= norms("ple_norm_key", "ple_norm_query", "ple_norm_conv", size=streams * WIDTH)
    added |= {"ple_conv1d.weight": (streams * WIDTH, 3)}
    keys: dict[str, Any] = {"ssm.conv_kernel": 4, "ssm.inner_size": 64, "ssm.state_size": 16, "ssm.time_step_rank": 4}
    keys |= {"ssm.group_count": 2, "hyper_connection.count": streams, "hyper_connection.low_rank": low}
    keys |= {"attention.indexer.head_count": 3, "attention.indexer.key_length": 16, "attention.indexer.top_k": 8}
    keys |= {"attention.compress_ratios": [0, 4], "full_attention_interval": 2, "ple.layers": [0]}
    keys |= {"ple.ngram_size": 3, "ple.heads_per_ngram": 2, "ple.conv_kernel": 3, "ple.eos_token_id": 20}
    keys |= {"embedding_length_per_layer_input": size}
    keys |= {"ple.layer_multipliers": _longs(12345678901, 987654321987, 555555555557)}
    keys |= {"ple.head_offsets": _longs(0, 20, 43, 60), "ple.head_vocab_sizes": _longs(20, 23, 17, 31)}
    keys |= {"rope.dimension_sections": [3, 3, 2, 0], "expert_shared_feed_forward_length": FFN}
    return {
        "qwen4exp": Recipe(
            RMS | MIXTURE | _SMALL | keys,
            connected | delta | mixed,
            OUTPUT | ends | _layers(added),
            odd=connected | full | mixed,
            layers=2,
        )
    }


def _longs(*values: int) -> Value:
    return Value(ValueType.ARRAY, list(values), ValueType.UINT64)


def _embedding() -> dict[str, Recipe]:
    """Gemma's encoder, with a vector of each layer that no table has a part in."""
    size, out = 16, 40
    block = _BOTH | _PER_HEAD | SANDWICH | gated() | norms("post_norm") | {"layer_output_scale.weight": (1,)}
    block |= linear("inp_gate", size, WIDTH) | linear("proj", WIDTH, size)
    ends = FINAL | linear("per_layer_model_proj", 3 * size, WIDTH) | norms("per_layer_proj_norm", size=size)
    keys: dict[str, Any] = {"attention.causal": False, "pooling_type": 1, "attention.sliding_window": 8}
    keys |= {"attention.sliding_window_pattern": [True, True, False], "rope.freq_base_swa": real(1e4)}
    keys |= {"embedding_length_per_layer_input": size, "embedding_length_out": out, "rope.freq_base": real(1e6)}
    return {"gemma-embedding2": Recipe(RMS | keys, block, ends | linear("output", out, WIDTH))}


def diffusion() -> dict[str, Recipe]:
    """Models whose tokens see each other."""
    keys = RMS | {"attention.causal": False}
    biased = norms("attn_norm", "ffn_norm") | attention(bias=True) | gated()
    mixed = RMS | MIXTURE | _SMALL | {"attention.causal": False}
    return {
        "dream": Recipe(keys, biased, FINAL),
        "llada": Recipe(keys, LLAMA, FINAL | OUTPUT),
        "llada-moe": Recipe(mixed, _BOTH | _PER_HEAD | experts(), FINAL | OUTPUT),
        "rnd1": Recipe(mixed, _BOTH | _PER_HEAD | experts(), FINAL),
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
            RMS | MIXTURE | {"residual_scale": real(3.5), "rope.dimension_count": 8, "full_attention_interval": 2},
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
