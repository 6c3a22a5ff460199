"""BERT, as an encoder of sentences."""

from __future__ import annotations

from ggufkit.arch.graph import Graph
from ggufkit.arch.metadata import BASE, classifier, flag, pooling
from ggufkit.arch.spec import Architecture
from ggufkit.arch.transforms import drop, rename
from ggufkit.arch.vocab.bpe import wordpiece

DEFAULTS = {"layer_norm_eps": 1e-12, "max_position_embeddings": 512}

# What every encoder of this family has behind the hyperparameters.
ENCODER = (flag("attention.causal", False), pooling, classifier)

# Older checkpoints call a norm's weight gamma and its bias beta. The pooler and the heads of the training do not
# matter to embeddings.
CLEANED = (
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
