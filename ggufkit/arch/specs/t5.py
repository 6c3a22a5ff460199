"""T5, mT5, UMT5 and the encoders made of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from ggufkit.arch.export import COMMON, Export, Setting, Source, key
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


# ---- The way back ------------------------------------------------------------------------------------------------


def _stack(own: str, name: str, feed_forward: int) -> dict[str, str]:
    """Names of the encoder's or of the decoder's blocks; `feed_forward` is its place among a block's layers."""
    block, inner = f"{own}.blk.{{bid}}", f"{name}.block.{{bid}}.layer"
    return {
        **{f"{block}.attn_{part}": f"{inner}.0.SelfAttention.{part}" for part in "qkvo"},
        f"{block}.attn_rel_b": f"{inner}.0.SelfAttention.relative_attention_bias",
        f"{block}.attn_norm": f"{inner}.0.layer_norm",
        f"{block}.ffn_norm": f"{inner}.{feed_forward}.layer_norm",
        f"{block}.ffn_gate": f"{inner}.{feed_forward}.DenseReluDense.wi_0",
        f"{block}.ffn_up": f"{inner}.{feed_forward}.DenseReluDense.wi",
        f"{block}.ffn_down": f"{inner}.{feed_forward}.DenseReluDense.wo",
        f"{own}.output_norm": f"{name}.final_layer_norm",
    }


_ENCODER_NAMES = {"token_embd": "shared", **_stack("enc", "encoder", 1)}
_DECODER_NAMES = {
    "output": "lm_head",
    **_stack("dec", "decoder", 2),
    **{
        f"dec.blk.{{bid}}.cross_attn_{part}": f"decoder.block.{{bid}}.layer.1.EncDecAttention.{part}" for part in "qkvo"
    },
    "dec.blk.{bid}.cross_attn_norm": "decoder.block.{bid}.layer.1.layer_norm",
}


def _gated(s: Source) -> bool:
    return "enc.blk.0.ffn_gate.weight" in s.tensors


def _called(s: Source, tensor: Tensor) -> str:
    return tensor.name.replace(".wi.", ".wi_1.") if _gated(s) else tensor.name


def _everywhere(s: Source) -> bool:
    """Whether each layer has relative positions of its own."""
    return "enc.blk.1.attn_rel_b.weight" in s.tensors


_SETTINGS: dict[str, Setting | None] = {
    "d_model": lambda s: s.width,
    "d_ff": key("feed_forward_length"),
    "d_kv": lambda s: s.head_dim,
    "num_layers": lambda s: s.layers,
    "num_heads": lambda s: s.heads,
    "n_positions": key("context_length"),
    "layer_norm_epsilon": key("attention.layer_norm_rms_epsilon"),
    "relative_attention_num_buckets": key("attention.relative_buckets_count"),
    "feed_forward_proj": lambda s: "gated-gelu" if _gated(s) else "relu",
    "is_encoder_decoder": lambda s: True,
    "decoder_start_token_id": key("decoder_start_token_id", 0),
    **{name: COMMON[name] for name in ("vocab_size", "tie_word_embeddings", "eos_token_id", "pad_token_id")},
}


def _exports(model_class: str, config: dict[str, Setting | None], names: dict[str, str]) -> tuple[Export, ...]:
    plain = Export(
        "t5",
        "T5" + model_class,
        common=False,
        config={**_SETTINGS, **config},
        names=names,
        called=_called,
        when=lambda s: not _everywhere(s),
        packs=False,
    )
    return plain, replace(plain, model_type="umt5", model_class="UMT5" + model_class, when=_everywhere)


SPECS = (
    Architecture(
        name="t5",
        exports=_exports(
            "ForConditionalGeneration",
            {"num_decoder_layers": key("decoder_block_count")},
            _ENCODER_NAMES | _DECODER_NAMES,
        ),
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
        exports=_exports(
            "EncoderModel", {"tie_word_embeddings": None, "is_encoder_decoder": lambda s: False}, _ENCODER_NAMES
        ),
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
