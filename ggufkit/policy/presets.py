"""llama-quantize's file types, as data: a default format, and rules for the tensors that get another one.

Source: `llama_tensor_get_type_impl` and `llama_ftype_get_default_type` in src/llama-quant.cpp, QUANT_OPTIONS in
tools/quantize/quantize.cpp of llama.cpp.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from difflib import get_close_matches

from ggufkit.errors import PolicyError, printable
from ggufkit.formats.table import FORMATS, Format
from ggufkit.policy.roles import ATTN_VALUES as V
from ggufkit.policy.roles import Role
from ggufkit.policy.rules import (
    EIGHT_BIT,
    EIGHT_EXPERTS,
    FALCON_MIX,
    FIRST_EIGHTH,
    FIRST_FOUR,
    FIRST_SIXTEENTH,
    FIRST_TWO,
    FOUR_EXPERTS,
    GQA4,
    IMATRIX,
    IS_70B,
    MIDDLE,
    MORE_BITS,
    NO_IMATRIX,
    OTHER_STACKS,
    STACKED,
    Condition,
    Rule,
    no,
)

__all__ = ["ALIASES", "PRESETS", "Preset", "preset_by_name"]


@dataclass(frozen=True)
class Preset:
    """One file type.

    Attributes
    ----------
    name : llama-quantize's name.
    file_type : the number in `general.file_type`.
    format : the default.
    rules : the exceptions, first match wins.
    """

    name: str
    file_type: int
    format: Format
    rules: tuple[Rule, ...] = ()


K, Q, ATTN_OUT = (Role.ATTN_K,), (Role.ATTN_Q,), (Role.ATTN_OUTPUT,)
UP, GATE, DOWN = (Role.FFN_UP,), (Role.FFN_GATE,), (Role.FFN_DOWN,)
EMBD = (Role.TOKEN_EMBD,)
NOT_FALCON, NOT_EIGHT = no(FALCON_MIX), no(EIGHT_EXPERTS)

# The tensor that turns the last hidden state into logits: output.weight, or the embeddings where they serve as both.
LOGITS = Condition("gives the logits", lambda t, m: t.role is Role.OUTPUT or (m.tied and t.role is Role.TOKEN_EMBD))

NOT_FFN = Condition("no part of the feed-forward network", lambda t, m: t.role not in UP + GATE + DOWN)

# Counted among the tensors of its role, also in a mixture of experts, whose layers may have several.
FIRST_EIGHTH_COUNTED = Condition(
    "among the first ({t.ordinal}, of {m.layers} layers)", lambda t, m: t.ordinal < m.layers // 8
)


def _ragged(format: Format) -> Condition:
    n = format.block_size
    return Condition(f"its {{t.cols}} columns are not a multiple of {n}", lambda t, m: t.cols % n != 0)


def _everywhere(format: Format) -> Iterator[Rule]:
    """The rules of all quantized presets."""
    yield Rule("Q8_0", when=(EIGHT_BIT,))


def _logits(format: Format, better: str) -> Iterator[Rule]:
    """Rules of the tensor that gives the logits: `better`, or Q8_0 where that does not fit."""
    yield Rule("Q8_0", when=(LOGITS, FALCON_MIX))
    yield Rule("Q8_0", when=(LOGITS, _ragged(format)))
    yield Rule(format.name if format.name == "Q8_0" else better, when=(LOGITS,))


def _low(format: Format, *, embd: str, value: str, down: str, output: str = "") -> tuple[Rule, ...]:
    """The presets below three bits: everything but the bulk of the weights gets more."""
    return (
        *_everywhere(format),
        *_logits(format, "Q5_K"),
        Rule(embd, EMBD),
        Rule("Q4_K", V, (GQA4,)),
        Rule("Q4_K", V, (FOUR_EXPERTS,)),
        Rule(value, V),
        Rule("Q4_K", K, (EIGHT_EXPERTS,)),
        Rule(down, DOWN, (FIRST_EIGHTH_COUNTED,)),
        Rule("Q5_K", ATTN_OUT, (EIGHT_EXPERTS,)),
        *([Rule(output, ATTN_OUT)] if output else []),
    )


def _mix(format: Format, *rules: Rule, values: Iterable[Rule] = (), logits: str = "Q6_K") -> tuple[Rule, ...]:
    """The other quantized presets: `values` for the value projections, `rules` for the rest."""
    return (
        *_everywhere(format),
        *_logits(format, logits),
        Rule("Q8_0", V, (EIGHT_EXPERTS,)),
        Rule("Q8_0", K, (EIGHT_EXPERTS,)),
        *_with_70b(format, values),
        *rules,
    )


def _with_70b(format: Format, values: Iterable[Rule]) -> Iterator[Rule]:
    """`values`, and Q5_K in place of Q3_K and Q4_K in a 70B model: eight heads share the tensor, so it is small."""
    for rule in (*values, Rule(format.name, V)):
        if rule.format in ("Q3_K", "Q4_K"):
            yield replace(rule, format="Q5_K", when=(*rule.when, IS_70B))
        if rule.when or rule.format != format.name:
            yield rule


# With eight experts the attention is a small part of the model, and worth more bits.
SMALL_ATTENTION = Rule("Q5_K", ATTN_OUT, (NOT_FALCON, EIGHT_EXPERTS))


def _presets() -> Iterator[Preset]:
    f = FORMATS

    yield Preset("F32", 0, f["F32"])
    yield Preset("F16", 1, f["F16"])
    yield Preset("BF16", 32, f["BF16"])

    # An importance matrix tempts Q4_0 and Q5_0 into wild scales in the first ffn_down layers.
    yield Preset("Q4_0", 2, f["Q4_0"], _mix(f["Q4_0"], Rule("Q4_1", DOWN, (IMATRIX, FIRST_EIGHTH))))
    yield Preset("Q4_1", 3, f["Q4_1"], _mix(f["Q4_1"]))
    yield Preset("Q5_0", 8, f["Q5_0"], _mix(f["Q5_0"], Rule("Q5_1", DOWN, (IMATRIX, FIRST_EIGHTH))))
    yield Preset("Q5_1", 9, f["Q5_1"], _mix(f["Q5_1"]))
    yield Preset("Q8_0", 7, f["Q8_0"], _mix(f["Q8_0"]))
    yield Preset("Q1_0", 40, f["Q1_0"], _mix(f["Q1_0"]))
    yield Preset("Q2_0", 41, f["Q2_0"], _mix(f["Q2_0"], Rule("Q4_K", EMBD)))
    yield Preset("TQ1_0", 36, f["TQ1_0"], _mix(f["TQ1_0"], Rule("Q4_K", EMBD)))
    yield Preset("TQ2_0", 37, f["TQ2_0"], _mix(f["TQ2_0"], Rule("Q4_K", EMBD)))
    yield from _k_presets(f)
    yield from _iq_presets(f)

    yield Preset(
        "MXFP4_MOE",
        38,
        f["MXFP4"],
        (
            *_everywhere(f["MXFP4"]),
            Rule("Q8_0", when=(LOGITS,)),
            Rule("Q8_0", when=(OTHER_STACKS, NOT_FFN)),
            Rule("MXFP4", when=(STACKED,)),
            Rule("Q8_0"),
        ),
    )
    # llama-quantize does not offer it; the number is llama.cpp's.
    yield Preset("NVFP4", 39, f["NVFP4"], _mix(f["NVFP4"]))


def _k_presets(f: dict[str, Format]) -> Iterator[Preset]:
    yield Preset(
        "Q2_K",
        10,
        f["Q2_K"],
        _mix(
            f["Q2_K"],
            Rule("Q3_K", DOWN),
            SMALL_ATTENTION,
            Rule("Q3_K", ATTN_OUT, (NOT_FALCON,)),
            values=[Rule("Q4_K", V, (GQA4,)), Rule("Q3_K", V)],
        ),
    )
    yield Preset(
        "Q2_K_S",
        21,
        f["Q2_K"],
        _mix(f["Q2_K"], Rule("Q4_K", DOWN, (FIRST_EIGHTH,)), values=[Rule("Q4_K", V, (GQA4,))]),
    )
    yield Preset("Q3_K_S", 11, f["Q3_K"], _mix(f["Q3_K"], SMALL_ATTENTION))
    yield Preset(
        "Q3_K_M",
        12,
        f["Q3_K"],
        _mix(
            f["Q3_K"],
            Rule("Q5_K", DOWN, (FIRST_SIXTEENTH,)),
            Rule("Q4_K", DOWN, (NOT_FALCON,)),
            Rule("Q4_K", DOWN, (MORE_BITS,)),
            SMALL_ATTENTION,
            Rule("Q4_K", ATTN_OUT, (NOT_FALCON,)),
            values=[Rule("Q5_K", V, (FIRST_TWO,)), Rule("Q4_K", V)],
        ),
    )
    yield Preset(
        "Q3_K_L",
        13,
        f["Q3_K"],
        _mix(
            f["Q3_K"],
            Rule("Q4_K", DOWN, (FALCON_MIX,)),
            Rule("Q5_K", DOWN),
            Rule("Q4_K", ATTN_OUT, (FALCON_MIX,)),
            Rule("Q5_K", ATTN_OUT, (NOT_EIGHT,)),
            values=[Rule("Q5_K", V)],
        ),
    )
    yield Preset(
        "Q4_K_S",
        14,
        f["Q4_K"],
        _mix(
            f["Q4_K"],
            Rule("Q5_K", DOWN, (NOT_FALCON, FIRST_EIGHTH)),
            SMALL_ATTENTION,
            values=[Rule("Q5_K", V, (FIRST_FOUR,))],
        ),
    )
    yield Preset(
        "Q4_K_M",
        15,
        f["Q4_K"],
        _mix(
            f["Q4_K"],
            Rule("Q6_K", DOWN, (FALCON_MIX, FIRST_SIXTEENTH)),
            Rule("Q5_K", DOWN, (FALCON_MIX, MORE_BITS)),
            Rule("Q6_K", DOWN, (NOT_FALCON, MORE_BITS)),
            SMALL_ATTENTION,
            values=[Rule("Q6_K", V, (MORE_BITS,))],
        ),
    )
    yield Preset("Q5_K_S", 16, f["Q5_K"], _mix(f["Q5_K"]))
    yield Preset(
        "Q5_K_M",
        17,
        f["Q5_K"],
        _mix(f["Q5_K"], Rule("Q6_K", DOWN, (MORE_BITS,)), values=[Rule("Q6_K", V, (MORE_BITS,))]),
    )
    yield Preset("Q6_K", 18, f["Q6_K"], _mix(f["Q6_K"]))


def _iq_presets(f: dict[str, Format]) -> Iterator[Preset]:
    one = {"embd": "Q2_K", "value": "Q2_K", "down": "Q2_K", "output": "IQ2_XXS"}
    two = {"embd": "Q2_K", "value": "Q2_K", "down": "Q2_K"}
    more = {"embd": "IQ3_S", "value": "IQ3_S", "down": "IQ3_S", "output": "IQ3_S"}
    yield Preset("IQ1_S", 24, f["IQ1_S"], _low(f["IQ1_S"], **one))
    yield Preset("IQ1_M", 31, f["IQ1_M"], _low(f["IQ1_M"], **one))
    yield Preset("IQ2_XXS", 19, f["IQ2_XXS"], _low(f["IQ2_XXS"], **two))
    yield Preset("IQ2_XS", 20, f["IQ2_XS"], _low(f["IQ2_XS"], **two))
    yield Preset("IQ2_S", 28, f["IQ2_XS"], _low(f["IQ2_XS"], **more))
    yield Preset("IQ2_M", 29, f["IQ2_S"], _low(f["IQ2_S"], **more))
    yield Preset(
        "IQ3_XXS",
        23,
        f["IQ3_XXS"],
        _mix(
            f["IQ3_XXS"],
            Rule("IQ3_S", EMBD),
            Rule("IQ2_S", K),
            Rule("IQ2_S", Q),
            Rule("Q4_K", DOWN, (NO_IMATRIX, FIRST_EIGHTH)),
            Rule("Q3_K", DOWN, (NO_IMATRIX,)),
            SMALL_ATTENTION,
            Rule("IQ3_S", ATTN_OUT, (NOT_FALCON,)),
            values=[Rule("Q4_K", V, (GQA4,)), Rule("IQ3_S", V, (NO_IMATRIX,))],
            logits="Q5_K",
        ),
    )
    yield Preset(
        "IQ3_XS",
        22,
        f["IQ3_S"],
        _mix(
            f["IQ3_S"],
            Rule("IQ3_XXS", K),
            Rule("IQ3_XXS", Q),
            Rule("IQ3_XXS", GATE, (MIDDLE,)),
            Rule("IQ3_XXS", UP, (MIDDLE,)),
            SMALL_ATTENTION,
            values=[Rule("Q4_K", V, (GQA4,))],
        ),
    )
    yield Preset("IQ3_S", 26, f["IQ3_S"], _mix(f["IQ3_S"], SMALL_ATTENTION, values=[Rule("Q4_K", V, (GQA4,))]))
    yield Preset(
        "IQ3_M",
        27,
        f["IQ3_S"],
        _mix(
            f["IQ3_S"],
            Rule("Q4_K", DOWN, (FIRST_EIGHTH,)),
            Rule("Q4_K", DOWN, (EIGHT_EXPERTS, MORE_BITS)),
            SMALL_ATTENTION,
            Rule("Q4_K", ATTN_OUT, (NOT_FALCON,)),
            values=[Rule("Q4_K", V)],
        ),
    )
    for name, file_type in ("IQ4_NL", 25), ("IQ4_XS", 30):
        yield Preset(
            name,
            file_type,
            f[name],
            _mix(
                f[name],
                Rule("Q5_K", DOWN, (NO_IMATRIX, FIRST_EIGHTH)),
                SMALL_ATTENTION,
                values=[Rule("Q5_K", V, (GQA4,))],
            ),
        )


PRESETS: dict[str, Preset] = {preset.name: preset for preset in _presets()}

# llama-quantize's short names.
ALIASES = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}


def preset_by_name(name: str) -> Preset:
    """The preset called `name`, in upper or lower case, or with this file type number.

    Raises
    ------
    PolicyError : there is none; the message names the nearest.
    """
    key = ALIASES.get(name.upper(), name.upper())
    if key in PRESETS:
        return PRESETS[key]
    if name.isascii() and name.isdigit():
        for preset in PRESETS.values():
            if preset.file_type == int(name):
                return preset
    near = get_close_matches(name.upper(), [*PRESETS, *ALIASES, "COPY"], n=3, cutoff=0.5)
    hint = f"did you mean {', '.join(near)}?" if near else f"known: {', '.join(PRESETS)}, COPY"
    raise PolicyError(f"no type is called {printable(repr(name))}; {hint}")
