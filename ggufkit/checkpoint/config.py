"""Hyperparameters of a checkpoint: `config.json` over the defaults that the model's class has."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ggufkit.errors import ArchitectureError, printable

if TYPE_CHECKING:
    from ggufkit.tensors.tensor import Tensor

__all__ = ["Config", "Default", "text_model"]

# A value, or a function of the config for those that depend on others (head_dim = hidden_size / heads).
Default = Any | Callable[["Config"], Any]

# Where models of several parts keep the language model's settings.
_TEXT_PARTS = (
    *("lfm", "language_config", "thinker_config", "lm_config", "llm_config", "text_config"),
    "transformer_layer_config",  # of models that draft
)

# Classes of models of several parts that are not what their language model says that it is.
_WHOLE = frozenset(
    {
        "DSparkSpeculator",
        "Eagle3Speculator",
        "Exaone4_5_ForConditionalGeneration",
        "KimiK3ForConditionalGeneration",
        "Sarashina2VisionForCausalLM",
        "Step3p7ForConditionalGeneration",
        "StepVLForConditionalGeneration",
    }
)

# A hundred times those of the deepest models.
_MAX_LAYERS = 10_000


def text_model(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """`config.json` with the settings of its language model on top, where it has a part for that."""
    for part in _TEXT_PARTS:
        settings = values.get(part)
        if part == "thinker_config" and isinstance(settings, dict):
            settings = settings.get("text_config")
        if isinstance(settings, dict):
            whole = values.get("architectures")
            keep = isinstance(whole, list) and whole and str(whole[0]) in _WHOLE
            named = {} if not keep and settings.get("architectures") else {"architectures": whole}
            return {**values, **settings, **named}
    return values


class Config:
    """Look-ups that say what is missing.

    Public checkpoints leave out what equals the default of their class in transformers, so the defaults of the
    harmless ones are part of an architecture's spec. A missing one of the others stops: it is never guessed.

    Parameters
    ----------
    values : `config.json`.
    defaults : of the model's class.
    text : the text of another file of the checkpoint by its name, or None where there is no such file.
    tensors : the checkpoint's, by name: some hyperparameters lie among them.
    mtp : whether the blocks that predict further tokens (multi-token prediction) are wanted.
    base : `config.json` of the model that this one drafts for.
    """

    def __init__(
        self,
        values: Mapping[str, Any],
        defaults: Mapping[str, Default] | None = None,
        text: Callable[[str], str | None] = lambda name: None,
        tensors: Mapping[str, Tensor] | None = None,
        mtp: bool = True,
        base: Mapping[str, Any] | None = None,
    ):
        self._values = values
        self._defaults = defaults or {}
        self.text = text
        self.tensors: Mapping[str, Tensor] = {} if tensors is None else tensors
        self.mtp = mtp
        self._base = base

    @property
    def base(self) -> Config:
        """The settings of the model that this one drafts for; empty where there is none."""
        return Config({} if self._base is None else text_model(self._base))

    def __contains__(self, name: str) -> bool:
        return self.get(name) is not None

    def get(self, *names: str, default: Any = None) -> Any:
        """The first of `names` that has a value.

        JSON's null is none, and stands against a default that is a plain value; one that is worked out fills it in.
        """
        for name in names:
            if (value := self._values.get(name)) is not None:
                return value
        for name in names:
            if name in self._defaults:
                value = self._defaults[name]
                if callable(value):
                    return value(self)
                if name not in self._values:
                    return value
        return default

    def require(self, *names: str, what: str = "") -> Any:
        """Like `get`, but having none of them is an `ArchitectureError`."""
        value = self.get(*names)
        if value is None:
            needed = f", which {what} needs" if what else ""
            others = f" (nor {', '.join(names[1:])})" if names[1:] else ""
            raise ArchitectureError(f"config.json has no {names[0]!r}{others}{needed}; add it, it is not guessed")
        return value

    def integer(self, *names: str, what: str = "") -> int:
        """A required whole number of at least 1."""
        return _whole(names[0], self.require(*names, what=what), least=1)

    def count(self, *names: str, default: int = 0) -> int:
        """A whole number of at least 0; `default` where there is none."""
        return _whole(names[0], self.get(*names, default=default), least=0)

    def number(self, *names: str, what: str = "", default: float | None = None) -> float:
        """A finite number; a required one without a default."""
        value = self.require(*names, what=what) if default is None else self.get(*names, default=default)
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not abs(value) < 1e38:
            raise ArchitectureError(f"config.json: {names[0]!r} must be a number, not {printable(repr(value))}")
        return value

    def with_values(self, **values: Any) -> Config:
        """The same config with other values on top."""
        return Config({**self._values, **values}, self._defaults, self.text, self.tensors, self.mtp, self._base)

    def with_mtp(self) -> Config:
        """The same config with the blocks that predict further tokens, for families that never go without."""
        return Config(self._values, self._defaults, self.text, self.tensors, base=self._base)

    def without_mtp(self) -> Config:
        """The same config without them, for classes that never have them."""
        return Config(self._values, self._defaults, self.text, self.tensors, False, self._base)

    def part(self, name: str) -> Config:
        """The settings of a part, such as ``"vision_config"``; empty where there are none.

        Raises
        ------
        ArchitectureError : it is no object.
        """
        values = self.get(name, default={})
        if not isinstance(values, dict):
            raise ArchitectureError(f"config.json: {name!r} must be an object, not {printable(repr(values))}")
        return Config(values, None, self.text, self.tensors, self.mtp)

    def list(self, name: str, length: int | None = None) -> list[Any]:
        """A required list, of `length` items where that is given."""
        value = self.require(name)
        if not isinstance(value, list) or (length is not None and len(value) != length):
            wanted = "a list" if length is None else f"a list of {length}, one for each layer"
            found = f"one of {len(value)}" if isinstance(value, list) else printable(repr(value))
            raise ArchitectureError(f"config.json: {name!r} must be {wanted}, not {found}")
        return value

    # Parts of models that see or hear.

    @property
    def vision(self) -> Config:
        return self.thinker.part("vision_config")

    @property
    def audio(self) -> Config:
        names = ("whisper_config", "speech_config")
        return self.thinker.part(next((name for name in names if name in self), "audio_config"))

    @property
    def thinker(self) -> Config:
        """The part of a model that reads, where another one speaks; otherwise the config itself."""
        return self.part("thinker_config") if "thinker_config" in self else self

    @property
    def text_part(self) -> Config:
        """The config with the language model's settings on top."""
        return Config(text_model(self._values), None, self.text, self.tensors, self.mtp)

    @property
    def processor(self) -> Config:
        """How images are prepared: preprocessor_config.json, and processor_config.json over it."""
        values: dict[str, Any] = {}
        for file, inner in (
            ("preprocessor_config.json", "media_proc_cfg"),
            ("processor_config.json", "image_processor"),
        ):
            try:
                found = json.loads(self.text(file) or "{}")
            except ValueError as e:
                raise ArchitectureError(f"{file} is not valid JSON: {printable(e)}") from None
            if not isinstance(found, dict):
                raise ArchitectureError(f"{file} must hold a JSON object, not {type(found).__name__}")
            own = found.get(inner)
            values |= found | (own if isinstance(own, dict) else {})
        return Config(values)

    # What nearly every transform asks for, under the names that configs give it.

    @property
    def layers(self) -> int:
        layers = self.integer("num_hidden_layers", "n_layers", "n_layer", "num_layers")
        if layers > _MAX_LAYERS:
            raise ArchitectureError(f"config.json: {layers} layers are beyond the limit of {_MAX_LAYERS}")
        return layers

    @property
    def width(self) -> int:
        return self.integer("hidden_size", "n_embd", "n_embed", "d_model", "dim")

    @property
    def heads(self) -> int:
        return self.integer("num_attention_heads", "n_head", "n_heads", "num_heads")

    @property
    def kv_heads(self) -> int:
        """Key and value heads; as many as query heads when the config has no number for them."""
        names = ("num_key_value_heads", "n_kv_heads", "n_head_kv", "num_kv_heads")
        return self.heads if self.get(*names) is None else self.integer(*names)

    @property
    def head_dim(self) -> int:
        return self.width // self.heads if self.get("head_dim") is None else self.integer("head_dim")


def _whole(name: str, value: Any, least: int) -> int:
    if type(value) is not int or not least <= value < 1 << 31:
        raise ArchitectureError(
            f"config.json: {name!r} must be a whole number from {least} to {(1 << 31) - 1}, not "
            f"{printable(repr(value), 60)}"
        )
    return value
