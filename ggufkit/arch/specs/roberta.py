"""RoBERTa and XLM-RoBERTa: BERT with other vocabularies, whose positions start behind the padding token's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from ggufkit.arch.export import Export, Source
from ggufkit.arch.metadata import base, uint
from ggufkit.arch.spec import Architecture
from ggufkit.arch.specs.bert import BERT_NAMES, CLEANED, DEFAULTS, ENCODER, SETTINGS, TYPES_BACK, ranks, tokenizer_is
from ggufkit.arch.transforms import first_rows
from ggufkit.arch.undo import behind_zeros
from ggufkit.checkpoint.checkpoint import Checkpoint
from ggufkit.checkpoint.config import Config
from ggufkit.gguf.header import Value, ValueType
from ggufkit.tokenizer.from_checkpoint.bpe import bpe, wordpiece
from ggufkit.tokenizer.from_checkpoint.tokens import first_of
from ggufkit.tokenizer.from_checkpoint.unigram import xlm_roberta


def _first_position(config: Config) -> int:
    """Rows of the position embedding that no position uses."""
    padding = config.get("pad_token_id")
    return 0 if padding is None else padding + 1


def _positions(config: Config) -> int:
    return config.integer("max_position_embeddings") - _first_position(config)


def _bpe_with_types(checkpoint: Checkpoint, config: Config) -> Iterator[tuple[str, Value]]:
    yield from bpe(checkpoint, config)
    yield "tokenizer.ggml.token_type_count", Value(ValueType.UINT32, config.get("type_vocab_size", default=1))


_ROBERTA = DEFAULTS | {"pad_token_id": 1}

_KEYS = (*base(uint("context_length", _positions)), *ENCODER)
_TRANSFORMS = (
    *CLEANED,
    first_rows(r"^embeddings\.position_embeddings\.weight$", lambda config: range(_first_position(config), 1 << 31)),
)


def _padding(s: Source) -> int:
    token = s.metadata.get("tokenizer.ggml.padding_token_id")
    return token if type(token) is int else 1


def _before(s: Source) -> int:
    """Rows of the position embedding that no position uses."""
    return _padding(s) + 1


# Behind the encoder of one that ranks: two layers.
_CLASSIFIER = {"cls": "classifier.dense", "cls.output": "classifier.out_proj"}


def _exports(model_type: str, model_class: str, prefix: str, tokenizer: str) -> tuple[Export, ...]:
    """An encoder by itself, and one that ranks."""
    config = {
        **SETTINGS,
        "max_position_embeddings": lambda s: s.natural("context_length") + _before(s),
        "pad_token_id": _padding,
    }
    plain = Export(
        model_type,
        f"{model_class}Model",
        common=False,
        config=config,
        names=BERT_NAMES,
        undo={**TYPES_BACK, "position_embd": behind_zeros(_before)},
        packs=False,  # a reader of quantized layers would look for the pooler's scales
        when=lambda s: tokenizer_is(tokenizer, s) and not ranks(s),
    )
    ranking = replace(
        plain,
        model_class=f"{model_class}ForSequenceClassification",
        names=_CLASSIFIER | {name: f"{prefix}.{own}" for name, own in BERT_NAMES.items()},
        when=lambda s: tokenizer_is(tokenizer, s) and ranks(s),
    )
    return plain, ranking


SPECS = (
    Architecture(
        name="bert",
        exports=_exports("roberta", "Roberta", "roberta", "gpt2"),
        models={"RobertaModel": _ROBERTA, "RobertaForSequenceClassification": _ROBERTA},
        metadata=_KEYS,
        vocabulary=first_of(_bpe_with_types, wordpiece),
        transforms=_TRANSFORMS,
    ),
    Architecture(
        name="bert",
        exports=_exports("xlm-roberta", "XLMRoberta", "roberta", "t5"),
        models={"XLMRobertaModel": _ROBERTA, "XLMRobertaForSequenceClassification": _ROBERTA},
        metadata=_KEYS,
        vocabulary=xlm_roberta,
        transforms=_TRANSFORMS,
        when=lambda config: "lora_adaptations" not in config,
    ),
)
