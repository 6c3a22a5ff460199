"""T5, mT5, UMT5 and the encoders made of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ggufkit.arch.graph import Graph
from ggufkit.arch.metadata import FILE_TYPE, OPTIONAL, real, uint
from ggufkit.arch.spec import Architecture
from ggufkit.checkpoint.config import Config
from ggufkit.tensors.tensor import Tensor
from ggufkit.tokenizer.from_checkpoint.unigram import t5

_DEFAULTS = {
    "d_kv": 64,
    "layer_norm_epsilon": 1e-6,
    "relative_attention_num_buckets": 32,
    "decoder_start_token_id": 0,
    "num_decoder_layers": lambda config: config.get("num_layers"),
}


def _one_embedding(tensors: Iterable[Tensor], config: Config) -> Iterator[Tensor]:
    """Encoder and decoder share one embedding, which checkpoints hold under up to three names: the first counts."""
    found = False
    for tensor in tensors:
        if tensor.name in ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight"):
            if not found:
                yield tensor.renamed("shared.weight")
            found = True
        else:
            yield tensor


def _layers(config: Config) -> int:
    """Names are needed for the deeper of the two stacks."""
    result: int = max(config.integer("num_layers"), config.get("num_decoder_layers", default=1))
    return result


_SHAPE = (
    uint("context_length", lambda config: config.get("n_positions", default=512)),
    uint("embedding_length", "d_model"),
    uint("feed_forward_length", "d_ff"),
    uint("block_count", "num_layers"),
)
_ATTENTION = (
    uint("attention.head_count", "num_heads"),
    uint("attention.key_length", "d_kv"),
    uint("attention.value_length", "d_kv"),
    real("attention.layer_norm_epsilon", "layer_norm_epsilon"),
    uint("attention.relative_buckets_count", "relative_attention_num_buckets"),
    real("attention.layer_norm_rms_epsilon", "layer_norm_epsilon"),
)

SPECS = (
    Architecture(
        name="t5",
        graph=Graph(
            rope=None, activation="gelu", plain_activation="relu", encoder="first", output_norm="dec.output_norm"
        ),
        models=dict.fromkeys(
            (
                "T5WithLMHeadModel",
                "T5ForConditionalGeneration",
                "MT5ForConditionalGeneration",
                "UMT5ForConditionalGeneration",
                "UMT5Model",
            ),
            _DEFAULTS,
        ),
        metadata=(
            *_SHAPE,
            uint("decoder_block_count", "num_decoder_layers", need=OPTIONAL),
            *_ATTENTION,
            uint("decoder_start_token_id", "decoder_start_token_id"),
            FILE_TYPE,
        ),
        vocabulary=t5,
        transforms=(_one_embedding,),
        blocks=_layers,
    ),
    Architecture(
        name="t5encoder",
        graph=Graph(
            rope=None, activation="gelu", plain_activation="relu", encoder="only", output_norm="enc.output_norm"
        ),
        models={"T5EncoderModel": _DEFAULTS},
        metadata=(*_SHAPE, *_ATTENTION, FILE_TYPE),
        vocabulary=t5,
        transforms=(_one_embedding,),
        blocks=lambda config: config.integer("num_layers"),
    ),
)
