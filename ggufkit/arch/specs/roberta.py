"""RoBERTa and XLM-RoBERTa: BERT with other vocabularies, whose positions start behind the padding token's."""

from __future__ import annotations

from collections.abc import Iterator

from ggufkit.arch.metadata import base, uint
from ggufkit.arch.spec import Architecture
from ggufkit.arch.specs.bert import CLEANED, DEFAULTS, ENCODER
from ggufkit.arch.transforms import first_rows
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

SPECS = (
    Architecture(
        name="bert",
        models={"RobertaModel": _ROBERTA, "RobertaForSequenceClassification": _ROBERTA},
        metadata=_KEYS,
        vocabulary=first_of(_bpe_with_types, wordpiece),
        transforms=_TRANSFORMS,
    ),
    Architecture(
        name="bert",
        models={"XLMRobertaModel": _ROBERTA, "XLMRobertaForSequenceClassification": _ROBERTA},
        metadata=_KEYS,
        vocabulary=xlm_roberta,
        transforms=_TRANSFORMS,
        when=lambda config: "lora_adaptations" not in config,
    ),
)
