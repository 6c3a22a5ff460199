"""Falcon: 7B with one key head for all queries, 40B and 180B with a few, RW-1B with one for each."""

from __future__ import annotations

from ggufkit.arch.export import COMMON, Export, Source, key, ungrouped
from ggufkit.arch.graph import Graph
from ggufkit.arch.metadata import EMBEDDING_LENGTH, FILE_TYPE, HEAD_COUNT, LAYERS, real, string, uint
from ggufkit.arch.spec import Architecture
from ggufkit.arch.transforms import group_qkv
from ggufkit.checkpoint.config import Config
from ggufkit.policy.traits import Traits
from ggufkit.tokenizer.from_checkpoint.bpe import bpe


def _kv_heads(config: Config) -> int:
    """Key heads; Falcon-7B has one, whatever its config says of their number."""
    if config.get("multi_query", default=True) and not config.get("new_decoder_architecture", default=False):
        return 1
    names = ("num_kv_heads", "n_head_kv")
    return config.heads if config.get(*names) is None else config.integer(*names)


_DEFAULTS = {"layer_norm_epsilon": 1e-5}


def _is_new(s: Source) -> bool:
    """Whether it is of the second architecture, whose blocks have two norms."""
    return "blk.0.attn_norm_2.weight" in s.tensors


def _export(new: bool) -> Export:
    # GGUF calls the norm in front of the attention attn_norm_2 where there are two.
    norms = (("attn_norm_2", "ln_attn"), ("attn_norm", "ln_mlp")) if new else (("attn_norm", "input_layernorm"),)
    return Export(
        "falcon",
        "FalconForCausalLM",
        common=False,
        config={
            "hidden_size": lambda s: s.width,
            "num_hidden_layers": COMMON["num_hidden_layers"],
            "num_attention_heads": lambda s: s.heads,
            "num_kv_heads": lambda s: s.kv_heads,
            "multi_query": lambda s: s.kv_heads == 1,
            "new_decoder_architecture": _is_new,
            "parallel_attn": lambda s: True,
            "alibi": lambda s: False,
            "bias": lambda s: s.has("attn_qkv.bias", "attn_output.bias", "ffn_up.bias", "ffn_down.bias"),
            "layer_norm_epsilon": key("attention.layer_norm_epsilon"),
            **{name: COMMON[name] for name in ("vocab_size", "tie_word_embeddings", "bos_token_id", "eos_token_id")},
        },
        names={
            "token_embd": "transformer.word_embeddings",
            "output_norm": "transformer.ln_f",
            "output": "lm_head",
            **{f"blk.{{bid}}.{gguf}": f"transformer.h.{{bid}}.{name}" for gguf, name in norms},
            "blk.{bid}.attn_qkv": "transformer.h.{bid}.self_attention.query_key_value",
            "blk.{bid}.attn_output": "transformer.h.{bid}.self_attention.dense",
            "blk.{bid}.ffn_up": "transformer.h.{bid}.mlp.dense_h_to_4h",
            "blk.{bid}.ffn_down": "transformer.h.{bid}.mlp.dense_4h_to_h",
        },
        undo={".attn_qkv": ungrouped(lambda s: s.kv_heads)},
        when=lambda s: _is_new(s) is new,
        packs=False,
    )


SPECS = (
    Architecture(
        name="falcon",
        exports=(_export(True), _export(False)),
        traits=Traits(falcon_mix=True),
        models={"FalconForCausalLM": _DEFAULTS, "RWForCausalLM": _DEFAULTS},
        metadata=(
            uint("context_length", lambda config: 2048),  # in no config.json
            string("tensor_data_layout", "jploski"),
            EMBEDDING_LENGTH,
            uint("feed_forward_length", lambda config: 4 * config.width),
            LAYERS,
            HEAD_COUNT,
            uint("attention.head_count_kv", _kv_heads),
            real("attention.layer_norm_epsilon", "layer_norm_epsilon"),
            FILE_TYPE,
        ),
        vocabulary=bpe,
        graph=Graph(norm="layer", rope="neox", activation="gelu", parallel="shared"),
        transforms=(group_qkv(r"\.query_key_value\.", _kv_heads),),
    ),
)
