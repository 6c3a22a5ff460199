"""A rule: which tensors → which format, and why.

The first rule that matches a tensor decides. What a rule asks for is written as data, so the reason that the user
reads is put together from the same words that were tested.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ggufkit.policy.hyperparameters import Hyperparameters
from ggufkit.policy.roles import Role, TensorRole

__all__ = [
    "EIGHT_BIT",
    "EIGHT_EXPERTS",
    "FALCON_MIX",
    "FIRST_EIGHTH",
    "FIRST_FOUR",
    "FIRST_SIXTEENTH",
    "FIRST_TWO",
    "FOUR_EXPERTS",
    "GQA4",
    "IMATRIX",
    "IS_70B",
    "MIDDLE",
    "MORE_BITS",
    "NO_IMATRIX",
    "OTHER_STACKS",
    "STACKED",
    "Condition",
    "Rule",
    "no",
]


@dataclass(frozen=True)
class Condition:
    """Something that is true of a tensor and its model, or not.

    Attributes
    ----------
    text : how it reads in a reason; `{t.…}` and `{m.…}` stand for facts of the tensor and the model.
    holds : the test.
    """

    text: str
    holds: Callable[[TensorRole, Hyperparameters], bool]


def no(condition: Condition) -> Condition:
    """The opposite. Exceptions need no words where they do not apply, so its text is empty."""
    return Condition("", lambda t, m: not condition.holds(t, m))


@dataclass(frozen=True)
class Rule:
    """Tensors of some roles that meet all conditions get a format.

    Attributes
    ----------
    format : the format's name, or "" to keep the source's.
    roles : the roles it is for; empty for all.
    when : the conditions.
    why : a reason in the user's own words, in place of the composed one.
    """

    format: str
    roles: tuple[Role, ...] = ()
    when: tuple[Condition, ...] = ()
    why: str = ""

    def matches(self, t: TensorRole, m: Hyperparameters) -> bool:
        return (not self.roles or t.role in self.roles) and all(c.holds(t, m) for c in self.when)

    def reason(self, t: TensorRole, m: Hyperparameters) -> str:
        if self.why:
            return self.why
        texts = [c.text.format(t=t, m=m) for c in self.when if c.text]
        return f"{t.role.value}: {', '.join(texts)}" if texts else t.role.value


def _more_bits(t: TensorRole, m: Hyperparameters) -> bool:
    eighth = t.count // 8
    return t.position < eighth or t.position >= 7 * t.count // 8 or (t.position - eighth) % 3 == 2


# Depth. GGML divides whole numbers: the first eighth of 28 layers are 3.
FIRST_TWO = Condition("one of the first two layers", lambda t, m: t.position < 2)
FIRST_FOUR = Condition("one of the first four layers", lambda t, m: t.position < 4)
FIRST_SIXTEENTH = Condition(
    "first sixteenth of the layers ({t.position} of {t.count})", lambda t, m: t.position < t.count // 16
)
FIRST_EIGHTH = Condition(
    "first eighth of the layers ({t.position} of {t.count})", lambda t, m: t.position < t.count // 8
)
MIDDLE = Condition(
    "middle three quarters of the layers ({t.position} of {t.count})",
    lambda t, m: t.count // 8 <= t.position < 7 * t.count // 8,
)
MORE_BITS = Condition(
    "first eighth, last eighth and every third layer get more bits ({t.position} of {t.count})", _more_bits
)

# The model.
GQA4 = Condition("{m.gqa} query heads share a key-value head", lambda t, m: m.gqa >= 4)
FOUR_EXPERTS = Condition("{m.experts} experts share it", lambda t, m: m.experts >= 4)
EIGHT_EXPERTS = Condition("8 experts share it", lambda t, m: m.experts == 8)
IS_70B = Condition("small and sensitive in a 70B model", lambda t, m: m.is_70b)
IMATRIX = Condition("with an importance matrix", lambda t, m: m.imatrix)
NO_IMATRIX = Condition("without an importance matrix", lambda t, m: not m.imatrix)

# The tensor.
STACKED = Condition("a stack of {t.matrices} matrices", lambda t, m: t.matrices > 1)


# The architecture.
FALCON_MIX = Condition("{m.architecture} model", lambda t, m: m.traits.falcon_mix)
EIGHT_BIT = Condition("{m.architecture} model", lambda t, m: any(part in t.name for part in m.traits.eight_bit))
OTHER_STACKS = Condition("{m.architecture} model", lambda t, m: not m.traits.stacks_are_experts)
