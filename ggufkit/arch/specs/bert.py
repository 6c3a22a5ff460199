"""BERT, as an encoder of sentences."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from ggufkit.arch.export import COMMON, NAMES, Export, Setting, Source, key, one_row
from ggufkit.arch.graph import Graph
from ggufkit.arch.metadata import BASE, OPTIONAL, VOCAB_SIZE, Row, classifier, flag, pooling, real, string, uint
from ggufkit.arch.spec import Architecture
from ggufkit.arch.transforms import drop, rename
from ggufkit.checkpoint.config import Config, Default
from ggufkit.tensors.tensor import Tensor
from ggufkit.tokenizer.from_checkpoint.bpe import bpe, wordpiece
from ggufkit.tokenizer.from_checkpoint.variants import led_by

DEFAULTS = {"layer_norm_eps": 1e-12, "max_position_embeddings": 512, "type_vocab_size": 2}
_DISTILBERT = {"max_position_embeddings": 512}
_NEOBERT: dict[str, Default] = {}
_MODERNBERT = {"norm_eps": 1e-5, "local_attention": 128}

# What every encoder of this family has behind the hyperparameters.
ENCODER: tuple[Row, ...] = (flag("attention.causal", False), pooling, classifier)


def _one_layer_classifier(tensors: Iterable[Tensor], config: Config) -> Iterator[Tensor]:
    """A classifier of one layer is the last of those with two."""
    name = r"\1out_proj." if any(classifier("", config)) else r"\1"
    return rename((r"^(classifier\.)(?=(weight|bias)$)", name))(tensors, config)


# Older checkpoints call a norm's weight gamma and its bias beta. The pooler and the heads of the training do not
# matter to embeddings.
CLEANED = (
    _one_layer_classifier,
    rename((r"^(bert|roberta|distilbert)\.", ""), (r"\.gamma$", ".weight"), (r"\.beta$", ".bias")),
    drop(r"^(embeddings\.position_ids|pooler\.dense\.(weight|bias)|cls\.(predictions|seq_relationship).*|vocab_.*)$"),
)

# ---- The way back ------------------------------------------------------------------------------------------------


def _labels(s: Source) -> dict[str, str] | None:
    """Names of a classifier's outputs; those that it has by default where it has another number than two."""
    head = next((s.tensors[name] for name in ("cls.output.weight", "cls.weight") if name in s.tensors), None)
    count = 2 if head is None or len(head.shape) < 2 else head.shape[0]
    names: Any = s.get("classifier.output_labels") or ([] if count == 2 else [f"LABEL_{i}" for i in range(count)])
    return {str(number): name for number, name in enumerate(names)} or None


def _types(s: Source) -> int:
    types = s.tensors["token_types.weight"].shape
    return types[0] if len(types) > 1 else 1


SETTINGS: dict[str, Setting | None] = {
    **{
        name: COMMON[name]
        for name in ("hidden_size", "num_hidden_layers", "intermediate_size", "num_attention_heads", "vocab_size")
    },
    "max_position_embeddings": key("context_length"),
    "layer_norm_eps": key("attention.layer_norm_epsilon"),
    "type_vocab_size": _types,
    "hidden_act": lambda s: "gelu",
    "id2label": _labels,
    **{name: COMMON[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")},
}
_LAYER = "encoder.layer.{bid}"
BERT_NAMES = {
    "token_embd": "embeddings.word_embeddings",
    "token_types": "embeddings.token_type_embeddings",
    "token_embd_norm": "embeddings.LayerNorm",
    "position_embd": "embeddings.position_embeddings",
    "blk.{bid}.attn_q": f"{_LAYER}.attention.self.query",
    "blk.{bid}.attn_k": f"{_LAYER}.attention.self.key",
    "blk.{bid}.attn_v": f"{_LAYER}.attention.self.value",
    "blk.{bid}.attn_output": f"{_LAYER}.attention.output.dense",
    "blk.{bid}.attn_output_norm": f"{_LAYER}.attention.output.LayerNorm",
    "blk.{bid}.ffn_up": f"{_LAYER}.intermediate.dense",
    "blk.{bid}.ffn_down": f"{_LAYER}.output.dense",
    "blk.{bid}.layer_output_norm": f"{_LAYER}.output.LayerNorm",
}
TYPES_BACK = {"token_types": one_row}


def tokenizer_is(kind: str, s: Source) -> bool:
    return bool(s.metadata.get("tokenizer.ggml.model") == kind)


def ranks(s: Source) -> bool:
    """Whether there is a classifier behind the encoder."""
    return "cls.output.weight" in s.tensors or "cls.weight" in s.tensors


_BERT = Export(
    "bert",
    "BertModel",
    common=False,
    config=SETTINGS,
    names=BERT_NAMES,
    undo=TYPES_BACK,
    packs=False,  # a reader of quantized layers would look for the pooler's scales
    when=lambda s: tokenizer_is("bert", s) and "token_types.weight" in s.tensors and not ranks(s),
)
_DISTIL = Export(
    "distilbert",
    "DistilBertModel",
    common=False,
    config={
        "dim": SETTINGS["hidden_size"],
        "n_layers": SETTINGS["num_hidden_layers"],
        "n_heads": SETTINGS["num_attention_heads"],
        "hidden_dim": SETTINGS["intermediate_size"],
        "activation": lambda s: "gelu",
        **{name: SETTINGS[name] for name in ("max_position_embeddings", "vocab_size", "id2label", "pad_token_id")},
    },
    names={
        **{name: BERT_NAMES[name] for name in ("token_embd", "token_embd_norm", "position_embd")},
        **{
            f"blk.{{bid}}.{own}": f"transformer.layer.{{bid}}.{name}"
            for own, name in (
                ("attn_q", "attention.q_lin"),
                ("attn_k", "attention.k_lin"),
                ("attn_v", "attention.v_lin"),
                ("attn_output", "attention.out_lin"),
                ("attn_output_norm", "sa_layer_norm"),
                ("ffn_up", "ffn.lin1"),
                ("ffn_down", "ffn.lin2"),
                ("layer_output_norm", "output_layer_norm"),
            )
        },
    },
    when=lambda s: tokenizer_is("bert", s) and "token_types.weight" not in s.tensors and not ranks(s),
)

_MODERN_NAMES = {
    "token_embd": "embeddings.tok_embeddings",
    "token_embd_norm": "embeddings.norm",
    "output_norm": "final_norm",
    "blk.{bid}.attn_norm": "layers.{bid}.attn_norm",
    "blk.{bid}.attn_qkv": "layers.{bid}.attn.Wqkv",
    "blk.{bid}.attn_output": "layers.{bid}.attn.Wo",
    "blk.{bid}.ffn_norm": "layers.{bid}.mlp_norm",
    "blk.{bid}.ffn_up": "layers.{bid}.mlp.Wi",
    "blk.{bid}.ffn_down": "layers.{bid}.mlp.Wo",
}
_MODERN_CLASSIFIER = {"cls": "head.dense", "cls.norm": "head.norm", "cls.output": "classifier"}
_MODERN_POOLING = {1: "mean", 2: "cls"}


def _modern(model_class: str, names: dict[str, str], ranking: bool) -> Export:
    return Export(
        "modernbert",
        model_class,
        common=False,
        config={
            **{name: value for name, value in SETTINGS.items() if name not in ("layer_norm_eps", "type_vocab_size")},
            "hidden_act": None,
            "hidden_activation": lambda s: s.get("hidden_activation", "gelu"),
            "norm_eps": key("attention.layer_norm_epsilon"),
            "layer_norm_eps": key("attention.layer_norm_epsilon"),
            "norm_bias": lambda s: "output_norm.bias" in s.tensors,
            "attention_bias": lambda s: "blk.0.attn_qkv.bias" in s.tensors,
            "mlp_bias": lambda s: "blk.0.ffn_up.bias" in s.tensors,
            "global_rope_theta": key("rope.freq_base", 160000.0),
            "local_rope_theta": key("rope.freq_base_swa", 10000.0),
            "local_attention": key("attention.sliding_window"),
            "global_attn_every_n_layers": key("attention.sliding_window_pattern", 3),
            "classifier_pooling": lambda s: _MODERN_POOLING.get(s.get("classifier.pooling_type")),
            "classifier_activation": key("classifier.activation", "gelu"),
            "cls_token_id": COMMON["bos_token_id"],
            "sep_token_id": lambda s: s.metadata.get("tokenizer.ggml.seperator_token_id"),
        },
        names=names,
        when=lambda s: ranks(s) == ranking,
        packs=False,  # transformers looks at the matrices' weights before it decodes them
    )


SPECS = (
    Architecture(
        name="bert",
        exports=(_BERT, _DISTIL),
        models={
            "BertModel": DEFAULTS,
            "BertForMaskedLM": DEFAULTS,
            "BertForSequenceClassification": DEFAULTS,
            "CamembertModel": DEFAULTS,
        },
        metadata=(*BASE, *ENCODER),
        vocabulary=wordpiece,
        graph=Graph(norm="layer", rope=None, activation="gelu"),
        transforms=CLEANED,
    ),
    Architecture(
        name="bert",
        models=dict.fromkeys(
            ("DistilBertForMaskedLM", "DistilBertForSequenceClassification", "DistilBertModel"), _DISTILBERT
        ),
        metadata=(real("attention.layer_norm_epsilon", lambda config: 1e-12), *BASE, *ENCODER),
        vocabulary=wordpiece,
        graph=Graph(norm="layer", rope=None, activation="gelu"),
        transforms=CLEANED,
    ),
    Architecture(
        name="neo-bert",
        graph=Graph(output_norm="enc.output_norm"),
        models=dict.fromkeys(("NeoBERT", "NeoBERTForSequenceClassification", "NeoBERTLMHead"), _NEOBERT),
        metadata=(
            *BASE,
            *ENCODER,
            # Two thirds of what the config says, as the gate has the rest.
            uint("feed_forward_length", lambda config: 2 * config.integer("intermediate_size") // 3),
            real("rope.freq_base", lambda config: 10000.0),
            string("rope.scaling.type", "none"),
            real("attention.layer_norm_rms_epsilon", lambda config: config.get("norm_eps", default=1e-6)),
            uint("pooling_type", lambda config: 2),
        ),
        vocabulary=wordpiece,
        transforms=(
            *CLEANED,
            drop(r"^decoder\."),
            rename((r"^model\.", "")),
        ),
    ),
    Architecture(
        name="eurobert",
        exports=(
            Export(
                "eurobert",
                "EuroBertModel",
                names={name: own.removeprefix("model.") for name, own in NAMES.items()},
                config={"mask_token_id": lambda s: s.metadata.get("tokenizer.ggml.mask_token_id")},
            ),
        ),
        graph=Graph(rope="neox"),
        models={"EuroBertModel": {}, "JinaEmbeddingsV5Model": {}},
        metadata=(*BASE, flag("attention.causal", False), string("rope.scaling.type", "none"), pooling),
        vocabulary=led_by(bpe, {"add_bos_token": False}),
        transforms=(rename((r"^model\.", "")),),
    ),
    Architecture(
        name="modern-bert",
        exports=(
            _modern("ModernBertModel", _MODERN_NAMES, ranking=False),
            _modern(
                "ModernBertForSequenceClassification",
                {name: f"model.{own}" for name, own in _MODERN_NAMES.items()} | _MODERN_CLASSIFIER,
                ranking=True,
            ),
        ),
        graph=Graph(
            norm="layer",
            rope="neox",
            activation="gelu_erf",
            two_sided=True,
            window_period=3,
            window_last=True,
            head_pooling="mean",
            head_activation="gelu",
        ),
        models=dict.fromkeys(
            ("ModernBertForMaskedLM", "ModernBertForSequenceClassification", "ModernBertModel"), _MODERNBERT
        ),
        metadata=(
            *BASE,
            *ENCODER,
            uint("attention.sliding_window", "local_attention"),
            uint("attention.sliding_window_pattern", "global_attn_every_n_layers", need=OPTIONAL),
            string("rope.scaling.type", "none"),
            VOCAB_SIZE,
            string("hidden_activation", lambda config: config.get("hidden_activation") or None),
        ),
        vocabulary=led_by(bpe, {"add_bos_token": True, "add_eos_token": True, "add_sep_token": True}),
        transforms=(rename((r"^model\.", "")), *CLEANED),
    ),
)
