"""Facts, rules and decisions on small models made up here."""

from __future__ import annotations

import pytest

from ggufkit.arch.registry import traits_of
from ggufkit.errors import PolicyError
from ggufkit.formats.table import FORMATS
from ggufkit.policy.decide import decide, requires_importance
from ggufkit.policy.hyperparameters import Hyperparameters, hyperparameters_of
from ggufkit.policy.presets import ALIASES, PRESETS, preset_by_name
from ggufkit.policy.recipe import Recipe, UserRule
from ggufkit.policy.roles import Role, TensorRole, layer_of, role_of, trimmed
from ggufkit.policy.rules import MORE_BITS, Condition, Rule

F16, F32 = FORMATS["F16"], FORMATS["F32"]


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("output.weight", Role.OUTPUT),
        ("output_norm.weight", Role.OTHER),
        ("token_embd.weight", Role.TOKEN_EMBD),
        ("per_layer_token_embd.weight", Role.TOKEN_EMBD),
        ("blk.0.attn_v.weight", Role.ATTN_V),
        ("blk.0.attn_v.bias", Role.OTHER),
        ("blk.3.attn_kv_b.weight", Role.ATTN_KV_B),
        ("blk.3.attn_qkv.weight", Role.ATTN_QKV),
        ("blk.3.ffn_down_exps.weight", Role.FFN_DOWN),
        ("blk.3.ffn_gate_inp.weight", Role.FFN_GATE),
        ("enc.blk.1.attn_output.weight", Role.ATTN_OUTPUT),
        ("v.blk.1.attn_q.weight", Role.ATTN_Q),
    ],
)
def test_role_comes_from_the_name(name, role):
    assert role == role_of(name)


def test_layer_and_shape():
    assert [layer_of("blk.12.attn_q.weight"), layer_of("enc.blk.1.x"), layer_of("output.weight")] == [12, None, None]
    assert [trimmed((1, 64)), trimmed((1, 2, 1, 3)), trimmed(())] == [(64,), (2, 1, 3), ()]


def test_facts_take_the_first_layer_of_arrays_and_know_tied_embeddings():
    metadata = {
        "general.architecture": "llama",
        "llama.block_count": 80,
        "llama.attention.head_count": [64, 32],
        "llama.attention.head_count_kv": [8, 0],
    }
    names = ["token_embd.weight", "blk.0.attn_v.weight", "blk.1.attn_qkv.weight"]
    model = hyperparameters_of(metadata, names, traits_of("llama"), imatrix=True)
    assert Hyperparameters("llama", 80, 64, 8, 0, 2, tied=True, imatrix=True, traits=traits_of("llama")) == model
    assert (model.gqa, model.is_70b) == (8, True)
    assert not hyperparameters_of({**metadata, "llama.attention.head_count_kv": 64}, names, traits_of("llama")).is_70b


def test_more_bits_are_the_ends_and_every_third_layer():
    chosen = [
        i
        for i in range(32)
        if MORE_BITS.holds(TensorRole("", Role.FFN_DOWN, (), position=i, count=32), Hyperparameters())
    ]
    assert chosen == [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31]


def decisions(preset: str, shapes: dict[str, tuple[int, ...]], model: Hyperparameters | None = None, **options) -> dict:
    tensors = [(name, shape, F16 if len(shape) > 1 else F32) for name, shape in shapes.items()]
    metadata = {"general.architecture": "llama", "llama.block_count": 8}
    return decide(
        tensors, model or hyperparameters_of(metadata, shapes, traits_of("llama")), Recipe(PRESETS[preset], **options)
    )


SMALL = {
    "output.weight": (100, 256),
    "token_embd.weight": (100, 256),
    "blk.0.attn_norm.weight": (256,),
    "blk.0.attn_q.weight": (256, 256),
    "blk.0.attn_v.weight": (256, 256),
    "blk.0.ffn_down.weight": (256, 256),
}


def names(found: dict) -> dict[str, str]:
    return {name: d.format.name for name, d in found.items()}


def test_decisions_explain_themselves():
    found = decisions("Q4_K_M", SMALL)
    assert {name: d.reason for name, d in found.items()} == {
        "output.weight": "output: gives the logits",
        "token_embd.weight": "default of Q4_K_M",
        "blk.0.attn_norm.weight": "kept: one dimension",
        "blk.0.attn_q.weight": "default of Q4_K_M",
        "blk.0.attn_v.weight": "attn_v: first eighth, last eighth and every third layer get more bits (0 of 1)",
        "blk.0.ffn_down.weight": "ffn_down: first eighth, last eighth and every third layer get more bits (0 of 8)",
    }
    assert list(names(found).values()) == ["Q6_K", "Q4_K", "F32", "Q4_K", "Q6_K", "Q6_K"]


@pytest.mark.parametrize(
    ("preset", "cols", "format"),
    [
        ("Q4_K_S", 256, "Q4_K"),
        ("Q4_K_S", 96, "Q5_0"),
        ("Q5_K_S", 96, "Q5_1"),
        ("Q6_K", 96, "Q8_0"),
        ("IQ4_XS", 96, "IQ4_NL"),
        ("TQ2_0", 96, "Q4_0"),
        ("Q2_0", 96, "Q4_0"),
        ("Q4_K_S", 48, "F16"),
        ("Q8_0", 48, "F16"),
        ("Q1_0", 96, "F16"),
    ],
)
def test_odd_widths_fall_back(preset, cols, format):
    decision = decisions(preset, {"output.weight": (9, 256), "blk.0.attn_q.weight": (8, cols)})["blk.0.attn_q.weight"]
    assert format == decision.format.name
    assert cols == 256 or f"these are {cols}" in decision.reason


def test_row_of_ones_counts_as_one_dimension():
    assert names(decisions("Q8_0", {"blk.0.ffn_gate_inp_shexp.weight": (1, 64)})) == {
        "blk.0.ffn_gate_inp_shexp.weight": "F16"
    }


def user_rule(format: str, *parts: str) -> UserRule:
    has = Condition("", lambda t, m: any(part in t.name for part in parts))
    return UserRule(Rule(format, when=(has,), why="mine"), f"--tensor-type {parts[0]}={format}")


def test_rules_of_the_user_come_first_and_do_not_count():
    shapes = {"output.weight": (9, 256)} | {f"blk.{i}.attn_v.weight": (8, 256) for i in range(6)}
    found = decisions("Q3_K_M", shapes, rules=(user_rule("Q8_0", "blk.0."), user_rule("", "blk.3.")))
    # The preset gives its first two layers Q5_K; the user's are not among those.
    assert list(names(found).values()) == ["Q6_K", "Q8_0", "Q5_K", "Q5_K", "F16", "Q4_K", "Q4_K"]


def test_types_asked_for_win():
    found = decisions("Q4_K_M", SMALL, output=FORMATS["Q8_0"], token_embd=FORMATS["Q5_K"])
    assert list(names(found).values())[:2] == ["Q8_0", "Q5_K"]
    tied = {name: shape for name, shape in SMALL.items() if name != "output.weight"}
    assert decisions("Q4_K_M", tied, output=FORMATS["F16"])["token_embd.weight"].format == F16
    assert decisions("Q4_K_M", SMALL, leave_output=True)["output.weight"].format == F16
    assert set(names(decisions("Q4_K_M", SMALL, pure=True)).values()) == {"Q4_K", "F32"}
    assert set(names(decisions("F32", SMALL, copy=True)).values()) == {"F16", "F32"}


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (user_rule("Q8_0", "attn_quark"), r"--tensor-type attn_quark=Q8_0 matches no tensor"),
        (user_rule("Q8_0", "attn_norm"), r"matches only tensors that are never quantized, such as blk\.0\.attn_norm"),
    ],
)
def test_rule_that_matches_nothing_is_refused(rule, message):
    with pytest.raises(PolicyError, match=message):
        decisions("Q4_K_M", SMALL, rules=(rule,))


def test_rules_for_a_preset_of_plain_numbers_are_refused():
    with pytest.raises(PolicyError, match="F16 is none"):
        decisions("F16", SMALL, rules=(user_rule("Q8_0", "attn_q"),))


def test_presets_have_distinct_numbers_and_known_formats():
    assert len({p.file_type for p in PRESETS.values()}) == len(PRESETS) == 36
    assert all(rule.format in FORMATS for p in PRESETS.values() for rule in p.rules)
    for alias, name in ALIASES.items():
        assert PRESETS[name] == preset_by_name(alias.lower())
    assert PRESETS["Q4_K_M"] == preset_by_name("15")


@pytest.mark.parametrize(("name", "near"), [("Q4_K_N", "Q4_K_M"), ("q9", "known"), ("99", "known"), ("copi", "COPY")])
def test_unknown_type_names_the_nearest(name, near):
    with pytest.raises(PolicyError, match=near):
        preset_by_name(name)


def test_importance_is_required_where_llama_cpp_requires_it():
    q2k, iq3 = FORMATS["Q2_K"], FORMATS["IQ3_XXS"]
    assert requires_importance("blk.0.attn_q.weight", q2k, PRESETS["Q2_K_S"])
    assert not requires_importance("blk.0.attn_q.weight", q2k, PRESETS["Q2_K"])
    assert requires_importance("blk.0.attn_q.weight", iq3, PRESETS["Q8_0"])
    assert not requires_importance("token_embd.weight", iq3, PRESETS["Q8_0"])
    assert requires_importance("token_embd.weight", FORMATS["IQ2_XXS"], PRESETS["Q8_0"])
