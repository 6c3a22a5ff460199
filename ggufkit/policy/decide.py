"""From a model and what the user asked for to one `Decision` a tensor."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from ggufkit.errors import PolicyError, printable
from ggufkit.formats.table import FORMATS, Format
from ggufkit.policy.decision import Decision
from ggufkit.policy.hyperparameters import Hyperparameters
from ggufkit.policy.keep import reason_to_keep
from ggufkit.policy.presets import Preset
from ggufkit.policy.recipe import Recipe, UserRule
from ggufkit.policy.roles import ATTN_VALUES, Role, TensorRole, layer_of, role_of, trimmed

__all__ = ["decide", "requires_importance"]

# A tensor's name, shape in NumPy order, and format in the source.
Named = tuple[str, tuple[int, ...], Format]


@dataclass
class _Counter:
    """Places of tensors among their like. A preset counts the tensors that it decides on."""

    model: Hyperparameters
    seen: Counter[Role] = field(default_factory=Counter)

    def subject(self, name: str, shape: tuple[int, ...]) -> TensorRole:
        role, layer = role_of(name), layer_of(name)
        ordinal = self.seen[_kind(role)]
        count = self.model.value_tensors if role in ATTN_VALUES else self.model.layers
        position = ordinal
        # A layer of a mixture of experts may have several tensors of a role: their number would mislead.
        if role in (Role.FFN_UP, Role.FFN_GATE, Role.FFN_DOWN) and self.model.experts > 1 and layer is not None:
            position = layer
        return TensorRole(name, role, trimmed(shape), layer, ordinal, position, count)

    def decided(self, subject: TensorRole) -> None:
        self.seen[_kind(subject.role)] += 1


def _kind(role: Role) -> Role:
    return Role.ATTN_V if role in ATTN_VALUES else role


def decide(
    tensors: Sequence[tuple[str, tuple[int, ...], Format]], model: Hyperparameters, recipe: Recipe
) -> dict[str, Decision]:
    """Choose a format for every tensor.

    Parameters
    ----------
    tensors : (name, shape in NumPy order, format in the source), in the order of the output file. Presets count
        tensors, so the order matters.
    model : its hyperparameters.
    recipe : what the user asked for.

    Returns
    -------
    dict from name to `Decision`, in the same order

    Raises
    ------
    PolicyError : a rule of the user matches no tensor that can be quantized.
    """
    default = recipe.default or recipe.preset.format
    if recipe.rules and not default.is_quantized:
        raise PolicyError(
            f"{recipe.rules[0].source}: rules refine quantized types, and {default.name} is none; "
            "name a quantized type such as Q8_0"
        )
    counter = _Counter(model)
    matched: set[int] = set()
    decisions = {}
    for name, shape, format in tensors:
        subject = counter.subject(name, shape)
        if (kept := _kept(subject, model, recipe)) is not None:
            decisions[name] = Decision(format, f"kept: {kept}")
        else:
            decisions[name] = _choose(subject, format, model, recipe, default, counter, matched)
    _check_all_matched(recipe.rules, matched, tensors, model)
    return decisions


def _kept(t: TensorRole, model: Hyperparameters, recipe: Recipe) -> str | None:
    if recipe.copy:
        return "only copied"
    if recipe.leave_output and t.role is Role.OUTPUT:
        return "the output tensor is left as it is"
    return reason_to_keep(t.name, t.shape, model)


def _choose(
    t: TensorRole,
    source: Format,
    model: Hyperparameters,
    recipe: Recipe,
    default: Format,
    counter: _Counter,
    matched: set[int],
) -> Decision:
    rule = None
    for i, user in enumerate(recipe.rules):
        if user.rule.matches(t, model):
            matched.add(i)
            rule = rule or user.rule
    # llama.cpp: a rule of the user may name the large per-layer table apart from the token embeddings.
    embd_by_rule = rule is not None and t.name == "per_layer_token_embd.weight"
    if t.role is Role.TOKEN_EMBD and recipe.token_embd is not None and not embd_by_rule:
        return _fitting(Decision(recipe.token_embd, "type asked for the token embeddings"), t)
    if t.role is Role.OUTPUT and recipe.output is not None:
        return _fitting(Decision(recipe.output, "type asked for the output tensor"), t)
    if not default.is_quantized:
        return Decision(default, f"default of {recipe.preset.name}")
    if rule is not None:
        format = FORMATS[rule.format] if rule.format else source
        return _fitting(Decision(format, rule.reason(t, model)), t)
    if recipe.pure:
        return _fitting(Decision(default, f"all tensors {default.name}"), t)
    decision = _of_preset(t, model, recipe, default)
    counter.decided(t)
    return _fitting(decision, t)


def _of_preset(t: TensorRole, model: Hyperparameters, recipe: Recipe, default: Format) -> Decision:
    if t.role is Role.TOKEN_EMBD and model.tied and recipe.output is not None:
        return Decision(recipe.output, "type asked for the output tensor; the embeddings serve as both")
    for rule in recipe.preset.rules:
        if rule.matches(t, model):
            return Decision(FORMATS[rule.format], rule.reason(t, model))
    return Decision(default, f"default of {recipe.preset.name}")


def _fitting(decision: Decision, t: TensorRole) -> Decision:
    """`decision`, or the fallback where a row is not a whole number of blocks."""
    wanted = decision.format
    if t.cols % wanted.block_size == 0:
        return decision
    fallback = FORMATS[wanted.fallback] if wanted.fallback else FORMATS["F16"]
    if t.cols % fallback.block_size:
        fallback = FORMATS["F16"]
    why = f"{wanted.name} needs columns in multiples of {wanted.block_size}, these are {t.cols}"
    return Decision(fallback, f"{decision.reason}; {why}")


def _check_all_matched(
    rules: Sequence[UserRule],
    matched: set[int],
    tensors: Iterable[tuple[str, tuple[int, ...], Format]],
    model: Hyperparameters,
) -> None:
    counter = _Counter(model)
    for i, user in enumerate(rules):
        if i in matched:
            continue
        hits = [name for name, shape, _ in tensors if user.rule.matches(counter.subject(name, shape), model)]
        if hits:
            what = f"matches only tensors that are never quantized, such as {printable(hits[0])}"
        else:
            what = "matches no tensor of this model"
        raise PolicyError(f"{user.source} {what}; correct or remove it")


# Encoded without importance, these are poor enough that llama.cpp refuses.
_POOR_WITHOUT = ("IQ3_XXS", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ1_M", "IQ1_S")


def requires_importance(name: str, format: Format, preset: Preset) -> bool:
    """Whether a tensor must not be encoded to `format` without importance.

    Source: `tensor_requires_imatrix` in src/llama-quant.cpp; the encoders of some formats need it for every tensor.
    """
    if format.needs_importance:
        return True
    if role_of(name) in (Role.TOKEN_EMBD, Role.OUTPUT):
        return False
    return format.name in _POOR_WITHOUT or (format.name == "Q2_K" and preset.name == "Q2_K_S")
