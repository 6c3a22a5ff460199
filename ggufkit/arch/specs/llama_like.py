"""Relatives of Llama: Arcee, Llama-Embed, Apertus, Seed-OSS, Jais 2, OLMo 1."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from ggufkit.arch.export import Export, Source, key
from ggufkit.arch.graph import Graph
from ggufkit.arch.metadata import BASE, OPTIONAL, ROPE_DIMENSIONS, VOCAB_SIZE, Row, pooling, real, reals
from ggufkit.arch.mlx import PLAIN_MLX
from ggufkit.arch.rope_tensors import rope_freqs
from ggufkit.arch.spec import Architecture
from ggufkit.arch.specs.llama import BARE_LLAMA, PERMUTED, WEIGHTS_PERMUTED
from ggufkit.arch.transforms import drop
from ggufkit.checkpoint.config import Config
from ggufkit.errors import ArchitectureError, CheckpointError
from ggufkit.policy.traits import Traits
from ggufkit.tensors.tensor import Tensor
from ggufkit.tensors.views import vector
from ggufkit.tokenizer.from_checkpoint.bpe import bpe
from ggufkit.tokenizer.from_checkpoint.llama import llama_vocabulary

_DEFAULTS = {
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "num_key_value_heads": lambda config: config.heads,
}
_OLMO = {key: value for key, value in _DEFAULTS.items() if key != "rms_norm_eps"} | {"max_position_embeddings": 2048}


def _of_activation(name: str) -> Callable[[Config], list[float] | None]:
    """A parameter of each layer's xIELU, which checkpoints hold as a tensor of one number."""

    def find(config: Config) -> list[float] | None:
        numbers = []
        for layer in range(config.layers):
            tensor = config.tensors.get(f"model.layers.{layer}.mlp.act_fn.{name}")
            if tensor is None or tensor.size != 1:
                if name in ("alpha_n", "alpha_p") and config.tensors:
                    raise CheckpointError(f"layer {layer} has no single number {name} of its activation")
                return None
            numbers.append(float(tensor.floats().flat[0]))
        return numbers

    return find


_XIELU: tuple[Row, ...] = tuple(
    reals(f"/xielu.{name}", _of_activation(name)) for name in ("alpha_n", "alpha_p", "beta", "eps")
)

_EXPORT_SEED = Export(
    "seed_oss",
    "SeedOssForCausalLM",
    config={"attention_out_bias": lambda s: "blk.0.attn_output.bias" in s.tensors},
    names={"blk.{bid}.post_attention_norm": "model.layers.{bid}.post_attention_layernorm"},
    mlx=PLAIN_MLX,
)
_EXPORT_JAIS = Export(
    "jais2",
    "Jais2ForCausalLM",
    config={
        "rms_norm_eps": None,
        "layer_norm_eps": key("attention.layer_norm_epsilon"),
        "hidden_act": lambda s: "relu2",
    },
)
_EXPORT_OLMO = Export(
    "olmo",
    "OlmoForCausalLM",
    config={"rms_norm_eps": None, "mlp_bias": None, "clip_qkv": lambda s: s.get("attention.clamp_kqv")},
    rotated=True,
)


def _activations(s: Source) -> Iterator[Tensor]:
    """The parameters of each layer's xIELU, which a GGUF holds as lists."""
    for name in ("alpha_n", "alpha_p", "beta", "eps"):
        numbers = s.metadata.get(f"xielu.{name}")
        if not isinstance(numbers, list) or len(numbers) != s.layers:
            raise ArchitectureError(f"xielu.{name} must name a number for each of {s.layers} layers")
        shape: tuple[int, ...] = (1,) if name.startswith("alpha") else ()
        for layer, number in enumerate(numbers):
            yield replace(vector(f"model.layers.{layer}.mlp.act_fn.{name}", [number]), shape=shape)


_EXPORT_APERTUS = Export(
    "apertus",
    "ApertusForCausalLM",
    config={"hidden_act": lambda s: "xielu"},
    names={
        "blk.{bid}.attn_norm": "model.layers.{bid}.attention_layernorm",
        "blk.{bid}.ffn_norm": "model.layers.{bid}.feedforward_layernorm",
    },
    more=_activations,
)

SPECS = (
    Architecture(
        name="arcee",
        exports=(Export("arcee", "ArceeForCausalLM", config={"hidden_act": lambda s: "relu2"}, rotated=True),),
        models={"ArceeForCausalLM": _DEFAULTS},
        metadata=(*BASE, VOCAB_SIZE, ROPE_DIMENSIONS, pooling),
        vocabulary=llama_vocabulary,
        graph=Graph(activation="relu_squared"),
        transforms=(*PERMUTED, rope_freqs),
    ),
    Architecture(
        name="llama-embed",
        graph=Graph(),
        traits=Traits(layers_of_70b=80, older_65b=True),
        models={"LlamaBidirectionalModel": _DEFAULTS},
        metadata=(*BASE, VOCAB_SIZE, ROPE_DIMENSIONS),
        vocabulary=llama_vocabulary,
        transforms=(BARE_LLAMA, *PERMUTED, rope_freqs),
    ),
    Architecture(
        name="apertus",
        exports=(_EXPORT_APERTUS,),
        graph=Graph(rope="neox", activation="xielu"),
        models={"ApertusForCausalLM": _DEFAULTS | {"max_position_embeddings": 65536, "rope_theta": 12000000.0}},
        preamble=_XIELU,
        metadata=(*BASE, VOCAB_SIZE, ROPE_DIMENSIONS),
        vocabulary=llama_vocabulary,
        transforms=(drop(r"\.act_fn\.(alpha_[np]|beta|eps)$"), rope_freqs),
    ),
    Architecture(
        name="seed_oss",
        exports=(_EXPORT_SEED,),
        models={
            "SeedOssForCausalLM": _DEFAULTS | {"max_position_embeddings": 524288, "rms_norm_eps": 1e-6, "head_dim": 128}
        },
        metadata=BASE,
        vocabulary=bpe,
        graph=Graph(rope="neox", ffn_norm="post_attention_norm"),
    ),
    Architecture(
        name="jais2",
        exports=(_EXPORT_JAIS,),
        traits=Traits(layers_of_70b=68),
        models={"Jais2ForCausalLM": {"layer_norm_eps": 1e-5}},
        metadata=(*BASE, ROPE_DIMENSIONS),
        vocabulary=bpe,
        graph=Graph(norm="layer", rope="neox", activation="relu_squared"),
    ),
    Architecture(
        name="olmo",
        exports=(_EXPORT_OLMO,),
        graph=Graph(norm="layer", bare_norms=True),
        traits=Traits(layers_of_70b=80),
        models={"OLMoForCausalLM": _OLMO, "OlmoForCausalLM": _OLMO},
        metadata=(
            *BASE,
            real("attention.layer_norm_epsilon", lambda config: 1e-5),
            real("attention.clamp_kqv", "clip_qkv", need=OPTIONAL),
        ),
        vocabulary=bpe,
        transforms=WEIGHTS_PERMUTED,
    ),
)
