"""What somebody asks to be done to a model: the types of its tensors, and what else a quantization may change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ggufkit.formats.table import Format
from ggufkit.gguf.header import Value
from ggufkit.policy.decision import Decision
from ggufkit.policy.presets import PRESETS, Preset, preset_by_name
from ggufkit.policy.rules import Rule

if TYPE_CHECKING:
    from ggufkit.importance.imatrix_file import Imatrix

__all__ = ["Recipe", "UserRule", "recipe_of"]


@dataclass(frozen=True)
class UserRule:
    """A rule that the user wrote, and where; it must match something."""

    rule: Rule
    source: str


@dataclass(frozen=True)
class Recipe:
    """What to do to a model.

    Attributes
    ----------
    preset : the base.
    rules : tried before the preset's, in order; only for quantized presets, as in llama-quantize.
    output, token_embd : formats of these tensors, before anything else.
    leave_output : keep `output.weight` as it is.
    pure : the preset's default for everything, without its rules.
    copy : keep everything as it is.
    default : in place of the preset's default format.
    imatrix : importance of the columns.
    allow_requantize : decode tensors that are quantized already, at the cost of quality.
    prune_layers : numbers of layers to leave out.
    overrides : metadata to set, in order.
    lattice : "auto" keeps the scales of tensors that were trained for their format, "on" looks for them in every block,
        "off" in none; see `jobs.lattice`.
    types : tensor name → what it becomes, before all else; of tensors that are not kept.
    """

    preset: Preset
    rules: tuple[UserRule, ...] = ()
    output: Format | None = None
    token_embd: Format | None = None
    leave_output: bool = False
    pure: bool = False
    copy: bool = False
    default: Format | None = None
    imatrix: Imatrix | None = None
    allow_requantize: bool = False
    prune_layers: tuple[int, ...] = ()
    overrides: tuple[tuple[str, Value], ...] = ()
    lattice: str = "auto"
    types: Mapping[str, Decision] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """As names of files have it."""
        return "COPY" if self.copy else self.preset.name


def recipe_of(type: str) -> Recipe:
    """What a preset's name stands for; ``COPY`` keeps every tensor as it is.

    Raises
    ------
    PolicyError : there is no such preset.
    """
    if type.upper() == "COPY":
        return Recipe(PRESETS["F32"], copy=True)
    return Recipe(preset_by_name(type))
