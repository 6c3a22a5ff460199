"""Rules of users: on the command line, in lists, in TOML; every mistake is named with its place."""

from __future__ import annotations

import pytest

from ggufkit.errors import PolicyError
from ggufkit.formats.table import FORMATS
from ggufkit.gguf.header import Value, ValueType
from ggufkit.policy.custom import (
    layer_numbers,
    metadata_override,
    tensor_type_file,
    tensor_type_rule,
)
from ggufkit.policy.decide import decide
from ggufkit.policy.hyperparameters import Hyperparameters
from ggufkit.policy.policy_file import parse_policy, read_policy
from ggufkit.policy.presets import PRESETS
from ggufkit.policy.recipe import Recipe, recipe_of

SHAPES = {
    "output.weight": (1000, 512),
    "token_embd.weight": (1000, 512),
    **{f"blk.{i}.attn_v.weight": (256, 512) for i in range(6)},
    **{f"blk.{i}.ffn_down_exps.weight": (4, 512, 256) for i in range(6)},
}


def types(rules, preset: str = "Q4_0") -> dict[str, str]:
    """The types of the tensors that the rules decide; the last part of a reason says which are."""
    tensors = [(name, shape, FORMATS["F16"]) for name, shape in SHAPES.items()]
    found = decide(tensors, Hyperparameters("llama", layers=6), Recipe(PRESETS[preset], tuple(rules)))
    plain = decide(tensors, Hyperparameters("llama", layers=6), Recipe(PRESETS[preset]))
    return {name: d.format.name for name, d in found.items() if d != plain[name]}


def test_tensor_type_is_a_pattern_in_any_case():
    rules = [tensor_type_rule(text, text) for text in (r"BLK\.[12]\.ATTN_V=q8_0", "exps=iq4_nl", "attn_v=Q5_0")]
    expected = {f"blk.{i}.attn_v.weight": "Q8_0" if i in (1, 2) else "Q5_0" for i in range(6)}
    assert expected | {f"blk.{i}.ffn_down_exps.weight": "IQ4_NL" for i in range(6)} == types(rules)


def test_tensor_type_file_is_separated_by_any_space(tmp_path):
    (tmp_path / "rules").write_text("attn_v=q8_0 output=q6_k\n\n  exps=q5_1\n")
    rules = list(tensor_type_file(tmp_path / "rules"))
    assert [rule.rule.format for rule in rules] == ["Q8_0", "Q6_K", "Q5_1"]
    (tmp_path / "rules").write_text("attn_v=q8_0\nexps=q9\n")
    with pytest.raises(PolicyError, match=r"rules:2: exps=q9: no tensor type is called 'q9'"):
        list(tensor_type_file(tmp_path / "rules"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("attn_v", "is no REGEX=TYPE"),
        ("=Q8_0", "is no REGEX=TYPE"),
        ("attn_v=", "is no REGEX=TYPE"),
        ("attn_v=Q4_K_M", "did you mean Q4_K"),
        ("attn_v=I32", "weights cannot become I32"),
        ("attn_v=Q8_K", "weights cannot become Q8_K"),
        ("attn_(v=Q8_0", "no regular expression"),
    ],
)
def test_malformed_tensor_type_is_refused(text, message):
    with pytest.raises(PolicyError, match=message):
        tensor_type_rule(text, "--tensor-type")


def test_copy_is_a_choice_and_keeps_everything():
    assert recipe_of("copy").copy
    assert recipe_of("COPY").name == "COPY"
    assert recipe_of("q4_k").name == "Q4_K_M"


@pytest.mark.parametrize("text", ["", "a", "1,,2", "-1", "1-3"])
def test_malformed_layers_are_refused(text):
    with pytest.raises(PolicyError, match="not a number of a layer"):
        layer_numbers(text, "--prune-layers")
    assert layer_numbers("5, 3,3", "") == (3, 5)


@pytest.mark.parametrize(
    ("text", "type", "value"),
    [
        ("a=int:4294967295", ValueType.UINT32, 4294967295),
        ("a=float:1e-5", ValueType.FLOAT32, 1e-5),
        ("a=bool:false", ValueType.BOOL, False),
        ("a=str:x:y=z", ValueType.STRING, "x:y=z"),
    ],
)
def test_metadata_override_is_typed(text, type, value):
    assert metadata_override(text, "") == ("a", Value(type, value))


@pytest.mark.parametrize(
    "text",
    [
        "a",
        "a=1",
        "=int:1",
        "a=int:",
        "a=int:-1",
        "a=int:4294967296",
        "a=float:nan",
        "a=bool:1",
        "a=u8:1",
        pytest.param("a=str:" + "x" * 128, id="long"),
    ],
)
def test_malformed_override_is_refused(text):
    with pytest.raises(PolicyError, match="--override-kv: "):
        metadata_override(text, "--override-kv")


POLICY = """\
# mine
base = "Q4_0"

[[rule]]
type = "Q8_0"
role = ["attn_v", "attn_k"]
layers = [-2, -1]
why = '''
[[rule]]
is no rule here'''

[[ rule ]]  # the second
type = "keep"
name = "^output"
cols = ">= 512"
weights = "< 1_000_000"

[[rule]]
type = "Q5_1"
dims = 3
layers = 0
"""


def test_policy_file_decides_by_role_layer_shape_and_name(tmp_path):
    (tmp_path / "mine.toml").write_text(POLICY)
    policy = read_policy(tmp_path / "mine.toml")
    assert policy.base == PRESETS["Q4_0"]
    assert types(policy.rules) == {
        "output.weight": "F16",
        "blk.4.attn_v.weight": "Q8_0",
        "blk.5.attn_v.weight": "Q8_0",
        "blk.0.ffn_down_exps.weight": "Q5_1",
    }
    assert [rule.rule.why for rule in policy.rules] == [
        r"mine.toml:4: [[rule]]\nis no rule here",
        "mine.toml:12: name ^output, cols >= 512, weights < 1_000_000",
        "mine.toml:18: dims 3, layers 0",
    ]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("base", "bass", "f:2: unknown key 'bass'; did you mean base?"),
        ('base = "Q4_0"', "base = 4", "f:2: base: 4 is no text"),
        ('"Q4_0"', '"Q4_9"', "f:2: base: no type is called 'Q4_9'"),
        ('"Q8_0"', '"Q8_9"', "f:5: type: no tensor type is called 'Q8_9'"),
        ("attn_k", "attn", "f:6: role: 'attn' is none of output"),
        ("[-2, -1]", "[3, 1]", "f:7: layers: layer 3 comes after 1"),
        ("[-2, -1]", "[\n1,\ntrue]", r"f:9: layers: \[1, True\] is no layer"),
        ('"keep"', '""', "f:13: type: '' is no text"),
        ("^output", "^(output", "f:14: name: .* is no regular expression"),
        (">= 512", "=> 512", "f:15: cols: '=> 512' is not a number"),
        ("weights", "size", "f:16: unknown key 'size'"),
        ('type = "Q5_1"', "", "f:18: the rule has no type"),
        ('type = "Q5_1"', "type", "f:19: no TOML"),
        ("dims = 3", "dims = 3.5", "f:20: dims: 3.5 is not a number"),
        ("[[rule]]\ntype", "[rule]\ntype", "f:12: no TOML"),
        (POLICY, "rule = 3", "f:1: rules are tables"),
        (POLICY, 'rule = [{type = "Q8_0"},\n{type = "Q"}]', "f:2: type: no tensor type is called 'Q'"),
        (POLICY, "[other]", "f:1: unknown key 'other'"),
        (POLICY, "x = " + "[" * 3000, "f: too deeply nested"),
    ],
)
def test_policy_file_names_the_line_of_a_mistake(old, new, message):
    assert old in POLICY
    with pytest.raises(PolicyError, match=f"^{message}"):
        parse_policy(POLICY.replace(old, new), "f")


def test_policy_file_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "f").write_bytes(b"a = 1\n\xff")
    with pytest.raises(PolicyError, match=r"f:2: no UTF-8 text: byte 0xff"):
        read_policy(tmp_path / "f")
    (tmp_path / "f").write_bytes(bytes((4 << 20) + 1))
    with pytest.raises(PolicyError, match="no file of rules"):
        read_policy(tmp_path / "f")
