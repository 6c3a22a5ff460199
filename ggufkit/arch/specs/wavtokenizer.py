"""WavTokenizer's decoder: codes of sound to its spectrum."""

from __future__ import annotations

from ggufkit.arch.metadata import BASE, VOCAB_SIZE, flag, real, uint
from ggufkit.arch.spec import Architecture
from ggufkit.arch.transforms import drop
from ggufkit.tokenizer.from_checkpoint.tokens import none

SPECS = (
    Architecture(
        name="wavtokenizer-dec",
        models={"WavTokenizerDec": {}},
        metadata=(
            *BASE,
            VOCAB_SIZE,
            uint("features_length", "n_embd_features"),
            uint("feed_forward_length", "n_ff"),
            real("attention.group_norm_epsilon", "group_norm_epsilon"),
            uint("attention.group_norm_groups", "group_norm_groups"),
            uint("posnet.embedding_length", lambda config: config.part("posnet").integer("n_embd")),
            uint("posnet.block_count", lambda config: config.part("posnet").integer("n_layer")),
            uint("convnext.embedding_length", lambda config: config.part("convnext").integer("n_embd")),
            uint("convnext.block_count", lambda config: config.part("convnext").integer("n_layer")),
            flag("attention.causal", False),
        ),
        vocabulary=none,
        transforms=(drop(r"codebook\.(cluster_size|embed_avg|inited)$"),),
    ),
)
