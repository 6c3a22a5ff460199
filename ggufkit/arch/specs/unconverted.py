"""Architectures that are quantized in their own way, and not converted here: what llama-quantize knows of them.

One that becomes a spec takes its row along.
"""

from __future__ import annotations

from ggufkit.arch.spec import Architecture
from ggufkit.policy.traits import Traits

SPECS: tuple[Architecture, ...] = ()

TRAITS = {
    "glm5-next": Traits(
        kept=(
            "hc_",
            "indexer.attn_q_b",
            "indexer.attn_k",
            "indexer.proj",
            "indexer_compressor_gate",
            "indexer_compressor_ape",
            "ssm_f_a.weight",
            "ssm_f_b.weight",
            "ssm_g_a.weight",
            "ssm_g_b.weight",
            "ssm_beta.weight",
            "attn_kv_a_mqa.weight",
            "attn_k_b.weight",
            "attn_v_b.weight",
        ),
        eight_bit=("attn_q_a", "attn_q_b", "nextn.eh_proj"),
    ),
}
