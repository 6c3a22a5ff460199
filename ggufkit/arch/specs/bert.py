"""BERT, as an encoder of sentences."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

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
        graph=Graph(rope="neox"),
        models={"EuroBertModel": {}, "JinaEmbeddingsV5Model": {}},
        metadata=(*BASE, flag("attention.causal", False), string("rope.scaling.type", "none"), pooling),
        vocabulary=led_by(bpe, {"add_bos_token": False}),
        transforms=(rename((r"^model\.", "")),),
    ),
    Architecture(
        name="modern-bert",
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
