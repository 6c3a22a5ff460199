"""Nomic's embedding models: BERT with rope and, in version 2, a mixture of experts."""

from __future__ import annotations

from collections.abc import Iterable

from ggufkit.arch.export import Export, key
from ggufkit.arch.graph import Graph
from ggufkit.arch.metadata import base, uint
from ggufkit.arch.spec import Architecture
from ggufkit.arch.specs.bert import BERT_NAMES, CLEANED, ENCODER, SETTINGS, TYPES_BACK
from ggufkit.arch.transforms import drop, rename, reshape, transpose
from ggufkit.checkpoint.checkpoint import Checkpoint
from ggufkit.checkpoint.config import Config
from ggufkit.errors import ArchitectureError
from ggufkit.gguf.header import Value
from ggufkit.tokenizer.from_checkpoint.bpe import wordpiece
from ggufkit.tokenizer.from_checkpoint.unigram import xlm_roberta

# Positions of the config → what the model was trained on.
_TRAINED = {8192: 2048, 2048: 512}


def _context_length(config: Config) -> int:
    positions, trained = config.integer("n_positions"), config.get("max_trained_positions", default=2048)
    if trained != 2048 or positions not in _TRAINED:
        raise ArchitectureError(
            f"config.json: {positions} positions of which {trained} trained; Nomic's models have "
            f"{' or '.join(map(str, _TRAINED))} of which 2048"
        )
    return _TRAINED[positions]


def _has_experts(config: Config) -> bool:
    return bool(config.get("moe_every_n_layers"))


def _vocabulary(checkpoint: Checkpoint, config: Config) -> Iterable[tuple[str, Value]]:
    """WordPiece in version 1, XLM-RoBERTa's in version 2."""
    model = (checkpoint.json("tokenizer.json") or {}).get("model") or {}
    return xlm_roberta(checkpoint, config) if model.get("type") == "Unigram" else wordpiece(checkpoint, config)


_KEYS = (*base(uint("context_length", _context_length)), *ENCODER)


def _experts(config: Config) -> tuple[int, int, int]:
    """All of a layer's experts are one matrix in the checkpoint."""
    return config.integer("num_local_experts", "num_experts"), config.integer("n_inner"), config.width


_LAYER = "encoder.layers.{bid}"
# Both what Nomic's own code calls a setting and what transformers does.
_EXPORT = Export(
    "nomic_bert",
    "NomicBertModel",
    common=False,
    config={
        **SETTINGS,
        "hidden_act": lambda s: "silu",
        "n_embd": SETTINGS["hidden_size"],
        "n_layer": SETTINGS["num_hidden_layers"],
        "n_head": SETTINGS["num_attention_heads"],
        "n_inner": SETTINGS["intermediate_size"],
        "n_positions": lambda s: {length: own for own, length in _TRAINED.items()}.get(s.natural("context_length")),
        "layer_norm_epsilon": SETTINGS["layer_norm_eps"],
        "rotary_emb_base": key("rope.freq_base", 1000.0),
        "rotary_emb_fraction": lambda s: 1.0,
        "rotary_emb_interleaved": lambda s: False,
        "rope_theta": key("rope.freq_base", 1000.0),
        "activation_function": lambda s: "swiglu",
        "causal": lambda s: False,
        "prenorm": lambda s: False,
        **dict.fromkeys(("qkv_proj_bias", "mlp_fc1_bias", "mlp_fc2_bias", "use_rms_norm"), lambda s: False),
    },
    names={
        **{name: BERT_NAMES[name] for name in ("token_embd", "token_types")},
        "token_embd_norm": "emb_ln",
        "blk.{bid}.attn_qkv": f"{_LAYER}.attn.Wqkv",
        "blk.{bid}.attn_output": f"{_LAYER}.attn.out_proj",
        "blk.{bid}.attn_output_norm": f"{_LAYER}.norm1",
        "blk.{bid}.ffn_up": f"{_LAYER}.mlp.fc11",
        "blk.{bid}.ffn_gate": f"{_LAYER}.mlp.fc12",
        "blk.{bid}.ffn_down": f"{_LAYER}.mlp.fc2",
        "blk.{bid}.layer_output_norm": f"{_LAYER}.norm2",
    },
    undo=TYPES_BACK,
)

SPECS = (
    Architecture(
        name="nomic-bert-moe",
        models={"NomicBertModel": {}},
        metadata=(
            *_KEYS,
            uint("moe_every_n_layers", "moe_every_n_layers"),
            uint("expert_used_count", "moe_top_k"),
        ),
        vocabulary=_vocabulary,
        graph=Graph(norm="layer", rope="neox", activation="gelu", router_normalized=False),
        transforms=(
            *CLEANED,
            drop(r"mlp\.experts\.bias"),
            reshape(r"mlp\.experts\.mlp\.w[12]$", lambda tensor, config: _experts(config)),
            transpose(r"mlp\.experts\.mlp\.w2$"),
            rename((r"(mlp\.experts\.mlp\.w[12])$", r"\1.weight")),
        ),
        when=_has_experts,
    ),
    Architecture(
        name="nomic-bert",
        exports=(_EXPORT,),
        models={"NomicBertModel": {}},
        metadata=_KEYS,
        vocabulary=_vocabulary,
        graph=Graph(norm="layer", rope="neox"),
        transforms=CLEANED,
    ),
)
