"""What an architecture is made of.

    LLAMA = Architecture(
        name="llama",
        models={"LlamaForCausalLM": {...}},             # Hugging Face class → defaults of its config
        metadata=(*BASE, Hyperparameter("vocab_size", U32, ("vocab_size",), REQUIRED)),
        transforms=(permute_rope("q_proj", "num_attention_heads"), …),
        vocabulary=sentencepiece,
    )

Everything that converts or runs a model reads these; nothing outside `arch/` compares architecture names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ggufkit.arch.config import Config, Default
from ggufkit.checkpoint.folder import Checkpoint
from ggufkit.errors import ArchitectureError, CheckpointError, printable
from ggufkit.gguf.header import Value, ValueType
from ggufkit.tensor import Tensor

__all__ = [
    "BASE",
    "FILE_TYPE",
    "OPTIONAL",
    "REQUIRED",
    "Architecture",
    "Hyperparameter",
    "Metadata",
    "Transform",
    "rope_scaling",
]

# Typed metadata in file order.
Metadata = Iterable[tuple[str, Value]]

# A step on the stream of checkpoint tensors: renames, permutes, stacks, splits, adds or drops some.
Transform = Callable[[Iterable[Tensor], Config], Iterator[Tensor]]

REQUIRED, OPTIONAL = "required", "optional"


@dataclass(frozen=True)
class Hyperparameter:
    """One metadata key that comes from `config.json`.

    Attributes
    ----------
    key : behind the architecture's name: ``attention.head_count``.
    type : its type in the file.
    sources : names in `config.json`, the first that is there wins.
    need : REQUIRED stops when none is there; OPTIONAL leaves the key out.
    """

    key: str
    type: ValueType
    sources: tuple[str, ...]
    need: str = OPTIONAL

    def __call__(self, architecture: str, config: Config) -> Iterator[tuple[str, Value]]:
        key = f"{architecture}.{self.key}"
        value = config.require(*self.sources, what=key) if self.need == REQUIRED else config.get(*self.sources)
        if value is not None:
            yield key, Value(self.type, self._checked(value))

    def _checked(self, value: Any) -> Any:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        whole = number and float(value).is_integer() and 0 <= value < 1 << 32
        if not (whole if self.type is ValueType.UINT32 else number):
            expected = "a whole number" if self.type is ValueType.UINT32 else "a number"
            raise ArchitectureError(
                f"config.json: {self.sources[0]!r} must be {expected}, not {printable(repr(value))}"
            )
        return int(value) if self.type is ValueType.UINT32 else float(value)


def rope_scaling(architecture: str, config: Config) -> Iterator[tuple[str, Value]]:
    """Rope scaling of type linear or yarn; llama3's is a tensor (`transforms.rope_freqs`)."""
    scaling = rope_parameters(config)
    kind, factor = scaling.get("rope_type"), scaling.get("factor")
    key = f"{architecture}.rope.scaling."
    if kind in (None, "default", "dynamic", "llama3"):
        return
    if kind in ("longrope", "su"):
        yield key + "type", Value(ValueType.STRING, "longrope")
        return
    if kind not in ("linear", "yarn") or not isinstance(factor, (int, float)):
        raise ArchitectureError(f"config.json: rope scaling of type {printable(kind)} with factor {printable(factor)}")
    yield key + "type", Value(ValueType.STRING, kind)
    yield key + "factor", Value(ValueType.FLOAT32, float(factor))
    if kind == "yarn":
        context = scaling.get("original_max_position_embeddings")
        if type(context) is not int:
            raise ArchitectureError("config.json: yarn rope scaling needs 'original_max_position_embeddings'")
        yield key + "original_context_length", Value(ValueType.UINT32, context)
        for name, sources in (
            ("yarn_ext_factor", ("extrapolation_factor",)),
            ("yarn_attn_factor", ("attention_factor", "attn_factor")),
            ("yarn_beta_fast", ("beta_fast",)),
            ("yarn_beta_slow", ("beta_slow",)),
        ):
            if (value := Config(scaling).get(*sources)) is not None:
                yield key + name, Value(ValueType.FLOAT32, float(value))


def rope_parameters(config: Config) -> dict[str, Any]:
    """The rope's settings under their present names, wherever the config keeps them."""
    given = config.get("rope_parameters", "rope_scaling", default={})
    if not isinstance(given, dict):
        raise ArchitectureError(f"config.json: 'rope_scaling' must be an object, not {printable(repr(given))}")
    settings = dict(given)
    settings.setdefault("rope_type", settings.get("type"))
    for name, sources in (
        ("rope_theta", ("rope_theta", "rotary_emb_base")),
        ("original_max_position_embeddings", ("original_max_position_embeddings",)),
    ):
        if settings.get(name) is None:
            settings[name] = config.get(*sources)
    return settings


def _rope_freq_base(architecture: str, config: Config) -> Iterator[tuple[str, Value]]:
    if (theta := rope_parameters(config).get("rope_theta")) is not None:
        yield f"{architecture}.rope.freq_base", Value(ValueType.FLOAT32, float(theta))


def FILE_TYPE(architecture: str, config: Config) -> Iterator[tuple[str, Value]]:  # noqa: N802
    """Where `general.file_type` goes; its number is filled in when the type of the file is known."""
    yield "general.file_type", Value(ValueType.UINT32, 0)


_U32, _F32 = ValueType.UINT32, ValueType.FLOAT32

# What every text model has, in the order in which llama.cpp's converter writes it.
BASE: tuple[Callable[[str, Config], Iterator[tuple[str, Value]]], ...] = (
    Hyperparameter("block_count", _U32, ("num_hidden_layers", "n_layers", "n_layer", "num_layers"), REQUIRED),
    Hyperparameter("context_length", _U32, ("max_position_embeddings", "n_ctx", "n_positions", "max_length")),
    Hyperparameter("embedding_length", _U32, ("hidden_size", "n_embd", "dim"), REQUIRED),
    Hyperparameter("feed_forward_length", _U32, ("intermediate_size", "n_inner", "hidden_dim")),
    Hyperparameter("attention.head_count", _U32, ("num_attention_heads", "n_head", "n_heads"), REQUIRED),
    Hyperparameter("attention.head_count_kv", _U32, ("num_key_value_heads", "n_kv_heads")),
    rope_scaling,
    _rope_freq_base,
    Hyperparameter("attention.layer_norm_rms_epsilon", _F32, ("rms_norm_eps", "norm_eps")),
    Hyperparameter("attention.layer_norm_epsilon", _F32, ("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon")),
    Hyperparameter("expert_count", _U32, ("num_local_experts", "num_experts", "n_routed_experts")),
    Hyperparameter("expert_used_count", _U32, ("num_experts_per_tok", "num_experts_per_token", "top_k_experts")),
    Hyperparameter("attention.key_length", _U32, ("head_dim",)),
    Hyperparameter("attention.value_length", _U32, ("head_dim",)),
    FILE_TYPE,
)


@dataclass(frozen=True)
class Architecture:
    """How checkpoints of one architecture become GGUF.

    Attributes
    ----------
    name : `general.architecture`.
    models : Hugging Face class → defaults of its config, for values that `config.json` leaves out.
    metadata : functions of (architecture, config) that yield typed pairs, in file order.
    vocabulary : yields the `tokenizer.*` metadata of a checkpoint.
    transforms : steps on the stream of tensors, in order, before names are mapped.
    skip : endings of checkpoint names that GGUF does without.
    """

    name: str
    models: Mapping[str, Mapping[str, Default]]
    metadata: tuple[Callable[[str, Config], Metadata], ...]
    vocabulary: Callable[[Checkpoint, Config], Metadata]
    transforms: tuple[Transform, ...] = ()
    skip: tuple[str, ...] = (".attention.masked_bias", ".attention.bias", ".rotary_emb.inv_freq")

    def tensors(self, source: Iterable[Tensor], config: Config) -> Iterator[Tensor]:
        """The checkpoint's tensors, transformed, with their GGUF names and in the checkpoint's order."""
        stream: Iterable[Tensor] = (tensor for tensor in source if not tensor.name.endswith(self.skip))
        for transform in self.transforms:
            stream = transform(stream, config)
        layers = config.integer("num_hidden_layers", "n_layers", "n_layer", "num_layers")
        rename = self._name_map(layers)
        seen: dict[str, str] = {}
        for tensor in stream:
            name = rename(tensor.name)
            if name is None:
                raise CheckpointError(
                    f"no {self.name} model of {layers} layers has a tensor {printable(tensor.name)}; "
                    "is config.json the right one?"
                )
            if name in seen:
                raise CheckpointError(
                    f"{printable(tensor.name)} and {printable(seen[name])} would both become {printable(name)}"
                )
            seen[name] = tensor.name
            yield tensor.renamed(name)

    def _name_map(self, layers: int) -> Callable[[str], str | None]:
        """Checkpoint name → GGUF name, by the gguf package's map; GGUF's own names stay."""
        import gguf

        by_name = {name: architecture for architecture, name in gguf.MODEL_ARCH_NAMES.items()}
        known = gguf.get_tensor_name_map(by_name[self.name], layers)
        return lambda name: known.get_name(name, try_suffixes=(".weight", ".bias"))
