"""BERT, as an encoder of sentences."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ggufkit.arch.graph import Graph
from ggufkit.arch.metadata import BASE, Row, classifier, flag, pooling
from ggufkit.arch.spec import Architecture
from ggufkit.arch.transforms import drop, rename
from ggufkit.checkpoint.config import Config
from ggufkit.tensors.tensor import Tensor
from ggufkit.tokenizer.from_checkpoint.bpe import wordpiece

DEFAULTS = {"layer_norm_eps": 1e-12, "max_position_embeddings": 512, "type_vocab_size": 2}

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
    rename((r"^(bert|roberta)\.", ""), (r"\.gamma$", ".weight"), (r"\.beta$", ".bias")),
    drop(r"^(embeddings\.position_ids|pooler\.dense\.(weight|bias)|cls\.(predictions|seq_relationship).*)$"),
)

SPECS = (
    Architecture(
        name="bert",
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
)
