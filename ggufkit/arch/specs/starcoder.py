"""StarCoder (GPT-BigCode) and StarCoder 2."""

from __future__ import annotations

from ggufkit.arch.export import Export, key
from ggufkit.arch.graph import Graph
from ggufkit.arch.metadata import BASE, FILE_TYPE, LAYERS, real, uint
from ggufkit.arch.mlx import PLAIN_MLX, Mlx
from ggufkit.arch.spec import Architecture
from ggufkit.arch.specs.gpt2 import NAMES, SETTINGS
from ggufkit.tokenizer.from_checkpoint.bpe import bpe

_EXPORT = Export(
    "gpt_bigcode",
    "GPTBigCodeForCausalLM",
    common=False,
    config={**SETTINGS, "multi_query": lambda s: True, "activation_function": lambda s: "gelu_pytorch_tanh"},
    names=NAMES,
    mlx=Mlx(config={"n_inner": lambda s: 4 * s.width}),
)

_EXPORT_2 = Export(
    "starcoder2",
    "Starcoder2ForCausalLM",
    config={
        "rms_norm_eps": None,
        "norm_epsilon": key("attention.layer_norm_epsilon"),
        "head_dim": None,
        "attention_bias": None,
        "mlp_bias": None,
        "use_bias": lambda s: s.has("attn_q.bias", "attn_output.bias", "ffn_up.bias", "ffn_down.bias"),
        "hidden_act": lambda s: "gelu_pytorch_tanh",
    },
    names={
        "blk.{bid}.ffn_up": "model.layers.{bid}.mlp.c_fc",
        "blk.{bid}.ffn_down": "model.layers.{bid}.mlp.c_proj",
    },
    mlx=PLAIN_MLX,
)

SPECS = (
    Architecture(
        name="starcoder",
        exports=(_EXPORT,),
        models={"GPTBigCodeForCausalLM": {"n_positions": 1024, "layer_norm_epsilon": 1e-5}},
        metadata=(
            uint("context_length", "n_positions"),
            uint("embedding_length", "n_embd"),
            uint("feed_forward_length", lambda config: 4 * config.width),
            LAYERS,
            uint("attention.head_count", "n_head"),
            uint("attention.head_count_kv", lambda config: 1),
            real("attention.layer_norm_epsilon", "layer_norm_epsilon"),
            FILE_TYPE,
        ),
        vocabulary=bpe,
        graph=Graph(norm="layer", rope=None, activation="gelu"),
        skip=(".attn.bias", ".attn.masked_bias"),  # the causal mask
    ),
    Architecture(
        name="starcoder2",
        exports=(_EXPORT_2,),
        models={
            "Starcoder2ForCausalLM": {
                "max_position_embeddings": 4096,
                "norm_epsilon": 1e-5,
                "rope_theta": 10000.0,
                "num_key_value_heads": 2,
            }
        },
        metadata=BASE,
        vocabulary=bpe,
        graph=Graph(norm="layer", rope="neox", activation="gelu"),
    ),
)
