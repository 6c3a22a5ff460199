"""The keys of a model's hyperparameters: rows of data that turn a `Config` into typed metadata.

    uint("attention.sliding_window", "sliding_window")               from config.json, required
    real("attention.scale", "attention_multiplier", need=OPTIONAL)   left out when config.json has none
    uint("feed_forward_length", lambda c: 4 * c.width)               worked out
    string("rope.scaling.type", "linear")                            always this one

A key gets the architecture's name in front, but for those that start with ``general.`` or ``tokenizer.``, or with a
slash, which goes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from ggufkit.checkpoint.config import Config
from ggufkit.errors import ArchitectureError, printable
from ggufkit.gguf.header import Value, ValueType

__all__ = [
    "BASE",
    "CONTEXT_LENGTH",
    "EMBEDDING_LENGTH",
    "FEED_FORWARD_LENGTH",
    "FILE_TYPE",
    "HEAD_COUNT",
    "HEAD_COUNT_KV",
    "KEY_LENGTH",
    "LAYERS",
    "OPTIONAL",
    "REQUIRED",
    "RMS_EPSILON",
    "ROPE_DIMENSIONS",
    "VALUE_LENGTH",
    "VOCAB_SIZE",
    "Hyperparameter",
    "Metadata",
    "Row",
    "base",
    "blocks_with_mtp",
    "classifier",
    "flag",
    "flags",
    "integers",
    "longs",
    "mtp_layers",
    "partial_rotary",
    "pooling",
    "real",
    "reals",
    "rope_parameters",
    "rope_scaling",
    "string",
    "strings",
    "uint",
]

# Typed metadata in file order.
Metadata = Iterable[tuple[str, Value]]

# What yields some of it for an architecture of this name.
Row = Callable[[str, Config], Metadata]

# Names in config.json, the first that is there wins; or how to work the value out; None leaves the key out.
Source = str | Callable[[Config], Any]

REQUIRED, OPTIONAL = "required", "optional"

# What arithmetic with values of any kind may raise.
_NONSENSE = (TypeError, ValueError, AttributeError, LookupError, ArithmeticError)

_WHOLE = (ValueType.UINT32, ValueType.INT32)


@dataclass(frozen=True)
class Hyperparameter:
    """One metadata key that comes from `config.json`.

    Attributes
    ----------
    key : behind the architecture's name: ``attention.head_count``.
    type : its type in the file; of the items, when the value is a list.
    sources : names in `config.json`, the first that is there wins; or one function of the config.
    need : REQUIRED stops when none is there; OPTIONAL leaves the key out.
    """

    key: str
    type: ValueType
    sources: tuple[Source, ...]
    need: str = REQUIRED

    def __call__(self, architecture: str, config: Config) -> Iterator[tuple[str, Value]]:
        whole_key = self.key.startswith(("general.", "tokenizer.", "/"))
        key = self.key.removeprefix("/") if whole_key else f"{architecture}.{self.key}"
        value = self._find(key, config)
        if isinstance(value, list):
            kind = ValueType.INT32 if self.type in _WHOLE else self.type
            yield key, Value(ValueType.ARRAY, [self._checked(item) for item in value], kind)
        elif value is not None:
            yield key, Value(self.type, self._checked(value))

    def _find(self, key: str, config: Config) -> Any:
        source = self.sources[0]
        if callable(source):
            try:
                return source(config)
            except _NONSENSE as e:
                raise ArchitectureError(
                    f"config.json: {key} cannot be worked out from what it holds: {printable(e)}"
                ) from None
        names = [name for name in self.sources if isinstance(name, str)]
        return config.require(*names, what=key) if self.need == REQUIRED else config.get(*names)

    def _checked(self, value: Any) -> Any:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if self.type is ValueType.UINT64:
            good, expected = type(value) is int and 0 <= value < 1 << 64, "a whole number"
        elif self.type in _WHOLE:
            least = 0 if self.type is ValueType.UINT32 else -(1 << 31)
            good, expected = number and least <= value < 1 << 32 and float(value).is_integer(), "a whole number"
        elif self.type is ValueType.FLOAT32:
            good, expected = number and abs(value) < 3.4e38, "a number"
        elif self.type is ValueType.BOOL:
            good, expected = isinstance(value, bool), "true or false"
        else:
            good, expected = isinstance(value, str), "a text"
        if not good:
            name = self.key if callable(self.sources[0]) else self.sources[0]
            raise ArchitectureError(f"config.json: {name!r} must be {expected}, not {printable(repr(value))}")
        return int(value) if self.type in _WHOLE else float(value) if self.type is ValueType.FLOAT32 else value


def uint(key: str, *sources: Source, need: str = REQUIRED) -> Hyperparameter:
    """A whole number of at least 0, u32."""
    return Hyperparameter(key, ValueType.UINT32, sources, need)


def real(key: str, *sources: Source, need: str = REQUIRED) -> Hyperparameter:
    """A number, f32."""
    return Hyperparameter(key, ValueType.FLOAT32, sources, need)


def flag(key: str, *sources: Source | bool, need: str = REQUIRED) -> Hyperparameter:
    """True or false; `flag(key, False)` is always false."""
    return Hyperparameter(key, ValueType.BOOL, _constant(sources), need)


def string(key: str, value: str | Callable[[Config], str | None]) -> Hyperparameter:
    """A text: always the same, or worked out."""
    return Hyperparameter(key, ValueType.STRING, (value if callable(value) else lambda config: value,), OPTIONAL)


def flags(key: str, source: Callable[[Config], list[bool] | None]) -> Hyperparameter:
    """A list of booleans, such as which layers have a sliding window."""
    return Hyperparameter(key, ValueType.BOOL, (source,), OPTIONAL)


def integers(key: str, source: Callable[[Config], list[int] | None]) -> Hyperparameter:
    """A list of whole numbers, i32."""
    return Hyperparameter(key, ValueType.INT32, (source,), OPTIONAL)


def longs(key: str, source: Callable[[Config], list[int] | None]) -> Hyperparameter:
    """A list of whole numbers of at least 0, u64."""
    return Hyperparameter(key, ValueType.UINT64, (source,), OPTIONAL)


def reals(key: str, source: Callable[[Config], list[float] | None]) -> Hyperparameter:
    """A list of numbers, f32."""
    return Hyperparameter(key, ValueType.FLOAT32, (source,), OPTIONAL)


def strings(key: str, source: Callable[[Config], list[str] | None]) -> Hyperparameter:
    """A list of texts."""
    return Hyperparameter(key, ValueType.STRING, (source,), OPTIONAL)


def _constant(sources: tuple[Any, ...]) -> tuple[Source, ...]:
    if isinstance(value := sources[0], bool):
        return (lambda config: value,)
    return sources


_LOCAL_THETA = ("local_rope_theta", "rope_local_theta", "rope_theta_local", "swa_rope_theta", "rope_local_base_freq")


# Of the rope's settings those that are numbers.
_ROPE_NUMBERS = (
    *("rope_theta", "local_rope_theta", "partial_rotary_factor", "original_max_position_embeddings", "factor"),
    *("low_freq_factor", "high_freq_factor", "beta_fast", "beta_slow", "attention_factor", "attn_factor"),
    *("extrapolation_factor", "mscale", "mscale_all_dim"),
)


def rope_parameters(config: Config) -> dict[str, Any]:
    """The rope's settings under their present names, wherever the config keeps them."""
    given = config.get("rope_parameters", "rope_scaling", default={})
    if not isinstance(given, dict):
        raise ArchitectureError(f"config.json: 'rope_scaling' must be an object, not {printable(repr(given))}")
    local = given.get("sliding_attention")
    settings = dict(given.get("full_attention") or given)
    settings["rope_type"] = settings.get("rope_type") or settings.get("type")
    for name, sources in (
        (
            "rope_theta",
            ("global_rope_theta", "rope_global_theta", "rope_theta_global", "rope_theta", "rotary_emb_base"),
        ),
        ("partial_rotary_factor", ("partial_rotary_factor", "rope_pct", "rope_percent")),
        ("original_max_position_embeddings", ("original_max_position_embeddings",)),
    ):
        if settings.get(name) is None:
            settings[name] = config.get(*sources)
    settings["local_rope_theta"] = local.get("rope_theta") if isinstance(local, dict) else config.get(*_LOCAL_THETA)
    for name in _ROPE_NUMBERS:
        if settings.get(name) is not None:
            Config(settings).number(name)
    return settings


# Types of rope scaling with keys of their own, and those that are said elsewhere or have nothing to say. Of the others
# llama.cpp's converter warns, and goes on.
_ROPE_TYPES = ("linear", "yarn", "longrope", "su")
_ROPE_ELSEWHERE = ("default", "llama3", "mrope", "none", "xdrope")


def rope_note(config: Config) -> str | None:
    """What the user should know about the rope of a model, as a sentence."""
    kind = rope_parameters(config).get("rope_type")
    if kind is None or kind in _ROPE_TYPES or kind in _ROPE_ELSEWHERE:
        return None
    return (
        f"rope scaling of type {printable(repr(kind), 60)} has no place in a GGUF: the model is good for the context "
        "that it was first trained on"
    )


def partial_rotary(config: Config, default: float) -> float:
    """Which part of a head turns."""
    factor = rope_parameters(config)["partial_rotary_factor"]
    return default if factor is None else factor


def rope_scaling(architecture: str, config: Config) -> Iterator[tuple[str, Value]]:
    """Rope scaling of type linear, yarn or longrope; llama3's is a tensor (`transforms.rope_freqs`)."""
    scaling = rope_parameters(config)
    kind, factor = scaling.get("rope_type"), scaling.get("factor")
    key = f"{architecture}.rope.scaling."
    if kind is None or kind in _ROPE_ELSEWHERE or (isinstance(kind, str) and kind not in _ROPE_TYPES):
        return
    if kind in ("longrope", "su"):
        yield key + "type", Value(ValueType.STRING, "longrope")
        return
    if kind not in ("linear", "yarn") or not isinstance(factor, (int, float)):
        raise ArchitectureError(f"config.json: rope scaling of type {printable(kind)} with factor {printable(factor)}")
    yield key + "type", Value(ValueType.STRING, kind)
    yield key + "factor", Value(ValueType.FLOAT32, float(factor))
    if kind == "yarn":
        # Where it is not said, transformers takes the context of the model itself.
        context = scaling.get("original_max_position_embeddings") or config.get("max_position_embeddings")
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


def _gating(config: Config) -> int | None:
    name = config.get(
        "score_function",
        "scoring_func",
        "score_func",
        "moe_router_activation",
        "moe_router_activation_func",
        "expert_selection_fn",
        "router_score_func",
    )
    kinds = {None: None, "softmax": 1, "sigmoid": 2, "sqrtsoftplus": 4}
    if not isinstance(name, (str, type(None))) or name not in kinds:
        raise ArchitectureError(f"config.json: the experts' score function {printable(name)} is not known")
    return kinds[name]


def _mrope_sections(config: Config) -> list[int] | None:
    sections = rope_parameters(config).get("mrope_section")
    return (sections + [0] * 4)[:4] if isinstance(sections, list) else None


def mtp_layers(config: Config) -> int:
    """Blocks behind the last that predict further tokens; 0 where they are not wanted."""
    number = config.get("num_nextn_predict_layers", default=0) if config.mtp else 0
    if type(number) is not int or not 0 <= number < 1000:
        raise ArchitectureError(f"config.json: 'num_nextn_predict_layers' is {printable(repr(number))}, not a number")
    return number


def blocks_with_mtp(config: Config) -> int:
    """All blocks: those of the model, then those that predict further tokens."""
    return config.layers + mtp_layers(config)


def FILE_TYPE(architecture: str, config: Config) -> Iterator[tuple[str, Value]]:  # noqa: N802
    """Where `general.file_type` goes; its number is filled in when the type of the file is known."""
    yield "general.file_type", Value(ValueType.UINT32, 0)


LAYERS = uint("block_count", "num_hidden_layers", "n_layers", "n_layer", "num_layers")
CONTEXT_LENGTH = uint(
    "context_length",
    "max_position_embeddings",
    "n_ctx",
    "n_positions",
    "max_length",
    "max_sequence_length",
    "model_max_length",
    need=OPTIONAL,
)
EMBEDDING_LENGTH = uint("embedding_length", "hidden_size", "n_embd", "dim")
FEED_FORWARD_LENGTH = uint(
    "feed_forward_length",
    "prefix_dense_intermediate_size",
    "dense_intermediate_size",
    "intermediate_size",
    "n_inner",
    "hidden_dim",
    need=OPTIONAL,
)
HEAD_COUNT = uint("attention.head_count", "num_attention_heads", "n_head", "n_heads")
HEAD_COUNT_KV = uint("attention.head_count_kv", "num_key_value_heads", "n_kv_heads", need=OPTIONAL)
RMS_EPSILON = real("attention.layer_norm_rms_epsilon", "rms_norm_eps", "norm_eps", need=OPTIONAL)
KEY_LENGTH = uint("attention.key_length", "head_dim", need=OPTIONAL)
VALUE_LENGTH = uint("attention.value_length", "head_dim", need=OPTIONAL)
VOCAB_SIZE = uint("vocab_size", "vocab_size")
ROPE_DIMENSIONS = uint("rope.dimension_count", lambda config: config.head_dim)
ROPE_BASE = real("rope.freq_base", lambda config: rope_parameters(config)["rope_theta"])

# What every text model has, in the order in which llama.cpp's converter writes it.
BASE: tuple[Row, ...] = (
    LAYERS,
    CONTEXT_LENGTH,
    EMBEDDING_LENGTH,
    FEED_FORWARD_LENGTH,
    HEAD_COUNT,
    HEAD_COUNT_KV,
    flag("attention.causal", lambda config: False if config.get("is_causal") is False else None),
    rope_scaling,
    integers("rope.dimension_sections", _mrope_sections),
    ROPE_BASE,
    real("rope.freq_base_swa", lambda config: rope_parameters(config)["local_rope_theta"]),
    RMS_EPSILON,
    real("attention.layer_norm_epsilon", "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", need=OPTIONAL),
    uint("expert_count", "num_local_experts", "num_experts", "n_routed_experts", need=OPTIONAL),
    uint("expert_used_count", "num_experts_per_tok", "num_experts_per_token", "top_k_experts", need=OPTIONAL),
    uint("expert_group_count", "n_group", need=OPTIONAL),
    uint("expert_group_used_count", "topk_group", need=OPTIONAL),
    uint("expert_gating_func", _gating),
    KEY_LENGTH,
    VALUE_LENGTH,
    FILE_TYPE,
)


def base(*others: Hyperparameter) -> tuple[Row, ...]:
    """BASE with other rows for some of its keys."""
    by_key = {row.key: row for row in others}
    return tuple(by_key.get(row.key, row) if isinstance(row, Hyperparameter) else row for row in BASE)


# Sentence embeddings: which of the tokens' vectors make the text's. Source: `enum llama_pooling_type`.
_POOLING = {"mean": 1, "cls": 2, "lasttoken": 3}


def pooling(architecture: str, config: Config) -> Iterator[tuple[str, Value]]:
    """`pooling_type`, where the files of sentence-transformers name one, and that of a classifier."""
    yield from _pooling_of_module(architecture, config)
    if (kind := config.get("classifier_pooling")) is not None:
        if kind not in ("cls", "mean"):
            raise ArchitectureError(f"config.json: 'classifier_pooling' is by cls or mean, not {printable(repr(kind))}")
        yield f"{architecture}.classifier.pooling_type", Value(ValueType.UINT32, _POOLING[kind])
    if (function := config.get("classifier_activation", default="gelu")) != "gelu":  # which readers take it for
        if function not in ("silu", "tanh"):
            raise ArchitectureError(
                f"config.json: 'classifier_activation' is gelu, silu or tanh, not {printable(repr(function))}"
            )
        yield f"{architecture}.classifier.activation", Value(ValueType.STRING, function)


def _pooling_of_module(architecture: str, config: Config) -> Iterator[tuple[str, Value]]:
    for module in _json_file(config, "modules.json") or []:
        if str(module.get("type", "")).endswith("Pooling"):
            file = f"{module.get('path', '')}/config.json"
            settings = _json_file(config, file) or {}
            names = [name for name in _POOLING if settings.get(_POOLING_FLAGS[name])]
            name = names[0] if names else settings.get("pooling_mode")
            if name not in _POOLING:
                raise ArchitectureError(f"{printable(file)}: pooling is by mean, cls or lasttoken, not otherwise")
            yield f"{architecture}.pooling_type", Value(ValueType.UINT32, _POOLING[name])
            return
    kind = (_json_file(config, "embedding_config.json") or {}).get("pooling")
    if kind is not None:
        if kind != "last_token":
            raise ArchitectureError(f"embedding_config.json: pooling is by last_token, not {printable(repr(kind))}")
        yield f"{architecture}.pooling_type", Value(ValueType.UINT32, _POOLING["lasttoken"])


_POOLING_FLAGS = {
    "mean": "pooling_mode_mean_tokens",
    "cls": "pooling_mode_cls_token",
    "lasttoken": "pooling_mode_lasttoken",
}


def pooling_files(kind: Any, width: int) -> dict[str, Any]:
    """What sentence-transformers reads of a `pooling_type`: file name → contents; none where vectors are not pooled."""
    flags = {flag: _POOLING[name] == kind for name, flag in _POOLING_FLAGS.items()}
    if not any(flags.values()):
        return {}
    module = "sentence_transformers.models"
    names = (("", "Transformer"), ("1_Pooling", "Pooling"))
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"{module}.{name}"} for i, (path, name) in enumerate(names)
    ]
    return {"modules.json": modules, "1_Pooling/config.json": {"word_embedding_dimension": width, **flags}}


def classifier(architecture: str, config: Config) -> Iterator[tuple[str, Value]]:
    """The names of a classifier's outputs, but for the two dummies that are there by default."""
    labels = config.get("id2label")
    if isinstance(labels, dict) and labels and not (len(labels) == 2 and labels.get("0") == "LABEL_0"):
        if not all(number.isdecimal() and isinstance(label, str) for number, label in labels.items()):
            raise ArchitectureError("config.json: 'id2label' must map numbers to texts")
        names = [labels[number] for number in sorted(labels, key=int)]
        yield f"{architecture}.classifier.output_labels", Value(ValueType.ARRAY, names, ValueType.STRING)


def _json_file(config: Config, name: str) -> Any:
    if name.startswith("/") or ".." in name or "\\" in name:
        raise ArchitectureError(f"modules.json: {printable(name)} is not a file of this checkpoint")
    if (text := config.text(name)) is None:
        return None
    try:
        return json.loads(text)
    except ValueError as e:
        raise ArchitectureError(f"{printable(name)} is not valid JSON: {printable(e)}") from None
