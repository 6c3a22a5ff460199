"""Cohere's Command R, Command R+, Aya and Command R7B."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ggufkit.arch.export import Export, Setting, key
from ggufkit.arch.graph import Graph
from ggufkit.arch.metadata import BASE, VOCAB_SIZE, base, real, string, uint
from ggufkit.arch.mlx import PLAIN_MLX, Mlx
from ggufkit.arch.spec import Architecture
from ggufkit.checkpoint.config import Config
from ggufkit.errors import CheckpointError, printable
from ggufkit.tensors.tensor import Tensor
from ggufkit.tokenizer.from_checkpoint.bpe import bpe

_COHERE = {
    "max_position_embeddings": 8192,
    "layer_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "num_key_value_heads": lambda config: config.heads,
    "logit_scale": 0.0625,
}
_COHERE2 = _COHERE | {
    "sliding_window": 4096,
    "rotary_pct": 1.0,
    "head_dim": lambda config: config.width // config.heads,
}

_LOGIT_SCALE = real("logit_scale", "logit_scale")
_NO_SCALING = string("rope.scaling.type", "none")


def drop_zero_biases(tensors: Iterable[Tensor], config: Config) -> Iterator[Tensor]:
    """Leave out biases, which llama.cpp's model has not, after a look that they are nothing but zeros."""
    for tensor in tensors:
        if not tensor.name.endswith(".bias"):
            yield tensor
        elif tensor.floats().any():
            raise CheckpointError(f"{printable(tensor.name)} is not zero; llama.cpp's cohere2 has no biases")


_EXPORTED: dict[str, Setting | None] = {
    "rms_norm_eps": None,
    "mlp_bias": None,
    "layer_norm_eps": key("attention.layer_norm_epsilon"),
    "logit_scale": key("logit_scale"),
}
_EXPORT = Export(
    "cohere",
    "CohereForCausalLM",
    config={**_EXPORTED, "use_qk_norm": lambda s: s.has("attn_q_norm.weight", "attn_k_norm.weight")},
    mlx=PLAIN_MLX,
)
_EXPORT_2 = Export(
    "cohere2",
    "Cohere2ForCausalLM",
    config={
        **_EXPORTED,
        "sliding_window": key("attention.sliding_window"),
        "layer_types": lambda s: [
            "full_attention" if (layer + 1) % 4 == 0 else "sliding_attention" for layer in range(s.layers)
        ],
        "rotary_pct": lambda s: s.require("rope.dimension_count") / (s.width // s.heads),
    },
    mlx=Mlx(config={"sliding_window_pattern": lambda s: 4}),
)

SPECS = (
    Architecture(
        name="command-r",
        exports=(_EXPORT,),
        graph=Graph(norm="layer", parallel="shared", logit_multiplied=True),
        models={"CohereForCausalLM": _COHERE},
        # max_position_embeddings is the shorter text of the first part of the training.
        metadata=(
            *base(uint("context_length", "model_max_length", "max_position_embeddings")),
            _LOGIT_SCALE,
            _NO_SCALING,
        ),
        vocabulary=bpe,
    ),
    Architecture(
        name="cohere2",
        exports=(_EXPORT_2,),
        graph=Graph(norm="layer", parallel="shared", logit_multiplied=True, window_period=4, rope_layers="local"),
        models={"Cohere2ForCausalLM": _COHERE2},
        metadata=(
            *BASE,
            _LOGIT_SCALE,
            uint("attention.sliding_window", "sliding_window"),
            VOCAB_SIZE,
            uint(
                "rope.dimension_count",
                lambda config: int(config.number("rotary_pct") * (config.width // config.heads)),
            ),
            _NO_SCALING,
        ),
        vocabulary=bpe,
        transforms=(drop_zero_biases,),
    ),
)
