"""Texts that obey a grammar: what is compiled, what is refused and where, and that what is drawn obeys."""

from __future__ import annotations

import json
import re
import time

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import ggufkit
from ggufkit.cli import main
from ggufkit.errors import GgufkitError, UsageError
from ggufkit.jobs.convert import convert
from ggufkit.runtime.constrain.gbnf import lark_of
from ggufkit.runtime.constrain.grammar import Grammar
from ggufkit.runtime.constrain.mask import allowed, permits
from ggufkit.tokenizer.run.tokenizer import load_tokenizer

jsonschema = pytest.importorskip("jsonschema")
pytest.importorskip("llguidance")


@pytest.fixture(scope="module")
def model(fixtures, tmp_path_factory):
    return convert(fixtures / "pylib-llama", tmp_path_factory.mktemp("model") / "f16.gguf", "F16")


@pytest.fixture(scope="module")
def tokenizer(model):
    with ggufkit.open(model) as gguf:
        return load_tokenizer(gguf)


@pytest.fixture(scope="module")
def grammars(tokenizer):
    from ggufkit.runtime.constrain.matcher import Grammars

    return Grammars(tokenizer)


def fits(grammars, tokenizer, grammar: Grammar, text: str) -> bool:
    """Whether a grammar takes a text, byte by byte, and may end there."""
    constraint = grammars.start(grammar)
    try:
        for byte in text.encode():
            constraint.accept(tokenizer.vocab.ids[f"<0x{byte:02X}>"])  # a mask may have the longer tokens alone
    except GgufkitError:
        return False
    return permits(constraint.mask(), tokenizer.vocab.eos)


def drawn(grammars, tokenizer, grammar: Grammar, seed: int, limit: int = 400) -> str | None:
    """A text of random tokens that obeys; None if it has no end within the limit. Shorter tokens come more often."""
    rng = np.random.default_rng(seed)
    lengths = np.array([len(tokenizer.piece(i)) or 1 for i in range(len(tokenizer))])
    bias = np.where(np.isin(np.arange(len(tokenizer)), list(tokenizer.vocab.ends)), 6.0, -0.1 * lengths)
    constraint, ids = grammars.start(grammar), []
    while not constraint.done and len(ids) < limit:
        noise = (bias + rng.gumbel(size=len(tokenizer))).astype(np.float32)
        token = int(allowed(noise, constraint.mask()).argmax())
        if token in tokenizer.vocab.ends:
            return tokenizer.decode_bytes(ids).decode()
        constraint.accept(token)
        ids.append(token)
    # Past SentencePiece's habit of leaving out a first space: the bytes are what counts.
    return tokenizer.decode_bytes(ids).decode() if constraint.done else None


# A schema for each thing that people ask of structured output.
SCHEMAS = [
    {"type": "object", "properties": {"name": {"type": "string", "maxLength": 8}}, "required": ["name"]},
    {"type": "object", "properties": {"a": {"type": "integer", "minimum": 3, "maximum": 17}}, "required": ["a"]},
    {"type": "array", "items": {"enum": ["red", "green", 7, None]}, "minItems": 2, "maxItems": 4},
    {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{4}$"},
    {"type": "string", "format": "date"},
    {"type": "string", "format": "colour", "maxLength": 6},
    {"anyOf": [{"type": "boolean"}, {"type": "number", "exclusiveMinimum": 0, "maximum": 1}]},
    {"const": {"a": [1, 2]}},
    {"type": "object", "additionalProperties": {"type": "integer", "maximum": 9, "minimum": 0}, "maxProperties": 2},
    {
        "$defs": {"node": {"type": "object", "properties": {"next": {"$ref": "#/$defs/leaf"}}, "required": ["next"]}},
        "definitions": {},
        "$ref": "#/$defs/node",
    }
    | {"$defs": {"node": {"properties": {"n": {"type": "null"}}, "required": ["n"], "type": "object"}}},
    {"type": ["integer", "null"], "multipleOf": 5, "minimum": -20, "maximum": 20},
    {"allOf": [{"properties": {"a": {"type": "boolean"}}}, {"required": ["a"], "maxProperties": 1}], "type": "object"},
    {"type": "array", "prefixItems": [{"type": "integer", "maximum": 5, "minimum": 0}, {"const": "x"}], "items": False}
    | {"minItems": 2},
]


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: json.dumps(schema)[:60])
def test_what_is_drawn_obeys_its_schema(grammars, tokenizer, schema):
    grammar = Grammar.json_schema(schema)
    texts = [text for seed in range(4) if (text := drawn(grammars, tokenizer, grammar, seed)) is not None]
    assert texts
    for text in texts:
        jsonschema.validate(json.loads(text), schema)


# What llguidance does not know, with texts that obey and texts that do not.
REWRITTEN = [
    ({"type": ["string", "null"], "not": {"enum": ["ab", "abc", ""]}}, ["a", "b", "abcd", None], ["ab", "", "abc", 1]),
    ({"not": {"type": "object"}}, [1, [], "a"], [{}]),
    ({"type": "integer", "not": {"const": 3}}, [2, 4, -3], [3]),
    ({"type": "boolean", "not": {"const": True}}, [False], [True]),
    ({"type": "integer", "not": {"minimum": 3}}, [2], [3, 4]),
    ({"type": "string", "not": {"maxLength": 2}}, ["abc"], ["ab"]),
    ({"type": "object", "not": {"required": ["a", "b"]}}, [{}, {"a": 1}, {"b": 1}], [{"a": 1, "b": 1}]),
    (
        {"type": "object", "properties": {"a": {}}, "not": {"properties": {"a": {"const": 1}}}},
        [{"a": 2}],
        [{"a": 1}, {}],
    ),
    ({"not": {"not": {"type": "null"}}}, [None], [1]),
    ({"not": {"anyOf": [{"type": "null"}, {"const": "a"}]}}, ["b", 1], [None, "a"]),
    (
        {
            "type": "object",
            "properties": {"kind": {"enum": ["card", "cash"]}, "number": {"type": "integer"}},
            "required": ["kind"],
            "if": {"properties": {"kind": {"const": "card"}}},
            "then": {"required": ["number"]},
            "else": {"properties": {"number": False}},
        },
        [{"kind": "card", "number": 1}, {"kind": "cash"}],
        [{"kind": "card"}, {"kind": "cash", "number": 1}],
    ),
    ({"type": "object", "dependentRequired": {"a": ["b"]}}, [{}, {"b": 1}, {"a": 1, "b": 2}], [{"a": 1}]),
    (
        {"type": "object", "dependentSchemas": {"a": {"properties": {"b": {"type": "null"}}}}},
        [{}, {"a": 1, "b": None}, {"b": 1}],
        [{"a": 1, "b": 1}],
    ),
    ({"type": "object", "propertyNames": {"enum": ["a", "b"]}}, [{}, {"a": 1, "b": []}], [{"c": 1}]),
    ({"type": "object", "propertyNames": {"pattern": "^x_"}}, [{}, {"x_a": 1}], [{"a": 1}, {"x": 1}]),
    ({"type": "object", "propertyNames": {"maxLength": 1}}, [{}, {"a": 1}], [{"ab": 1}]),
    ({"type": "array", "contains": {"const": 1}}, [[1], [0, 1], ["a", 0, 0, 1]], [[], [0], [0, "a"]]),
    ({"type": "array", "contains": {"const": 1}, "maxContains": 1}, [[1], [0, 1, 0]], [[1, 1], [], [0]]),
    ({"type": "array", "contains": {"const": 1}, "minContains": 0}, [[], [0], [1, 1]], []),
    (
        {"type": "array", "uniqueItems": True, "items": {"enum": ["a", "b", "c"]}, "minItems": 1},
        [["c", "a"]],
        [[], ["a", "a"]],
    ),
    ({"type": "array", "uniqueItems": True, "maxItems": 1}, [[], [1]], [[1, 1]]),
    ({"oneOf": [{"type": "integer"}, {"minimum": 2}]}, [1, "a"], [3]),
    ({"type": "object", "properties": {"a": {}}, "unevaluatedProperties": False}, [{"a": 1}, {}], [{"b": 1}]),
    (
        {
            "allOf": [{"properties": {"a": {}}}],
            "type": "object",
            "properties": {"b": {}},
            "unevaluatedProperties": False,
        },
        [{"a": 1, "b": 2}],
        [{"c": 1}],
    ),
    ({"type": "array", "minItems": 1.0, "items": {"type": "null"}}, [[None]], [[]]),
]


@pytest.mark.parametrize(("schema", "good", "bad"), REWRITTEN, ids=lambda value: json.dumps(value)[:50])
def test_what_llguidance_does_not_know_is_said_otherwise(grammars, tokenizer, schema, good, bad):
    grammar = Grammar.json_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    for value in good + bad:
        assert validator.is_valid(value) == (value in good)
        assert fits(grammars, tokenizer, grammar, json.dumps(value)) == (value in good), value


VALUES = st.sampled_from([None, True, False, 0, 1, 2, "", "a", "ab", [], {}])
NAMES = st.sampled_from(["a", "b"])


def _larger(inner):
    return st.one_of(
        st.fixed_dictionaries({"not": inner}),
        st.fixed_dictionaries({"if": inner}, optional={"then": inner, "else": inner}),
        st.fixed_dictionaries({"type": st.just("object"), "properties": st.dictionaries(NAMES, inner, max_size=2)})
        | st.fixed_dictionaries({"propertyNames": inner, "additionalProperties": inner, "type": st.just("object")}),
        st.fixed_dictionaries({"type": st.just("array"), "contains": inner}, optional={"maxContains": st.just(1)}),
        st.fixed_dictionaries({"type": st.just("array"), "items": inner, "uniqueItems": st.just(True)}),
        st.fixed_dictionaries({"dependentSchemas": st.dictionaries(NAMES, inner, max_size=2)}),
        st.lists(inner, min_size=1, max_size=3).flatmap(
            lambda parts: st.sampled_from([{key: parts} for key in ("oneOf", "anyOf", "allOf")])
        ),
    )


SIMPLE = st.one_of(
    st.sampled_from(["null", "integer", "number", "string", "object", "array"]).map(lambda kind: {"type": kind}),
    st.lists(VALUES, min_size=1, max_size=3).map(lambda values: {"enum": values}),
    st.sampled_from([{}, {"minimum": 1}, {"maxLength": 1}, {"required": ["a"]}, {"dependentRequired": {"a": ["b"]}}]),
    st.booleans(),
)


@settings(max_examples=80, deadline=None)
@given(
    schema=st.recursive(SIMPLE, _larger, max_leaves=5),
    value=st.recursive(
        VALUES, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(NAMES, inner, max_size=2), max_leaves=4
    ),
)
def test_whatever_is_said_otherwise_allows_nothing_more(grammars, tokenizer, schema, value):
    try:
        grammar = Grammar.json_schema(schema)
        grammars.start(grammar)
    except UsageError:
        return
    if not jsonschema.Draft202012Validator(schema).is_valid(value):
        assert not fits(grammars, tokenizer, grammar, json.dumps(value))


@pytest.mark.parametrize(
    ("schema", "where"),
    [
        ({"type": "strin"}, "at #: Invalid type: strin"),
        ({"properties": {"x": {"properties": {"a/b": {"pattern": "(?=a)"}}}}}, "at #/properties/x/properties/a~1b: "),
        ({"$defs": {"q": {"type": "x"}}, "properties": {"a": {"$ref": "#/$defs/q"}}}, "at #/$defs/q: "),
        ({"type": "array", "items": {"not": {"pattern": "a"}}}, 'at #/items: nothing can be written by "not"'),
        ({"type": "array", "uniqueItems": True}, 'at #: nothing can be written by "uniqueItems"'),
        ({"not": {}}, "schema is false"),
        ({"anyOf": [{"type": "null"}, {"$ref": "https://example.org/s"}]}, "at #/anyOf/1: "),
        (False, "nothing obeys"),
        ([], "is an object"),
        ("{", "is not JSON"),
        ('"x"', "is an object"),
    ],
)
def test_a_schema_that_cannot_be_compiled_says_where(grammars, schema, where):
    with pytest.raises(UsageError, match=re.escape(where)):
        grammars.start(Grammar.json_schema(schema))


def nested(depth: int) -> dict:
    schema: dict = {"type": "integer"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


def choices(n: int) -> dict:
    """2^n ways to put it together."""
    parts = [{"properties": {f"{name}{i}": {"type": "string", "maxLength": i}}} for i in range(n) for name in "ab"]
    return {"type": "object", "allOf": [{"anyOf": parts[2 * i : 2 * i + 2]} for i in range(n)]}


def doubling(n: int) -> dict:
    both = [{"type": "array", "prefixItems": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(n)]
    return {"$ref": "#/$defs/d0", "$defs": {f"d{i}": part for i, part in enumerate([*both, {"type": "null"}])}}


BOMBS = {
    "deep": nested(2000),
    "choices": choices(24),
    "references": doubling(60),
    "itself": {"$ref": "#"},
    "long": {"type": "string", "maxLength": 10**15},
    "repeated": {"type": "string", "pattern": "((((((a{1,99}){1,99}){1,99}){1,99}){1,99}){1,99}){1,99}"},
    "items": {"type": "array", "minItems": 10**12, "items": {"type": "integer"}},
    "names": {"type": "object", "properties": {f"name{i}": {"enum": list(range(30))} for i in range(2000)}},
    "large": {"enum": ["x" * (1 << 19)]},
    "numbers": {"type": "number", "minimum": 1e300, "multipleOf": 1e-300},
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_of_a_schema_is_bounded(grammars, name):
    start = time.process_time()
    said = ""
    try:
        constraint = grammars.start(Grammar.json_schema(BOMBS[name]))
        constraint.mask()
    except GgufkitError as e:
        said = str(e)
    assert len(said) < 600
    assert time.process_time() - start < 3


@pytest.mark.parametrize(
    ("grammar", "texts", "others"),
    [
        ('root ::= "yes" | "no"', ["yes", "no"], ["y", "yesno", ""]),
        ('root ::= [a-z]* "abc"', ["abc", "abdabc", "abcabc", "xabc"], ["ab", "abcd"]),
        ("root ::= (a b)+ # twice\na ::= [^\\n\\x41]\nb ::= . \n", ["xx", "äöü1"], ["Ax", "x", "\nx"]),
        ('root ::= "a"{2,3} ("b" |\n "c"){2}', ["aabc", "aaacc"], ["abc", "aab", "aaaabb"]),
        ('ws ::= [ \\t]*\nroot ::= "\\"" ws "\\u00e4" "\\"" "\\\\"?', ['" \tä"', '"ä"\\'], ['"a"']),
        ('root ::= | "x" root', ["", "xxx"], ["y"]),
        ('start: "a" /[0-9]+/', ["a1", "a123"], ["a", "1"]),
    ],
)
def test_a_grammar_takes_its_texts_and_no_others(grammars, tokenizer, grammar, texts, others):
    parsed = Grammar.parse(grammar)
    assert [text for text in texts if not fits(grammars, tokenizer, parsed, text)] == []
    assert [text for text in others if fits(grammars, tokenizer, parsed, text)] == []


@pytest.mark.parametrize(
    ("grammar", "where"),
    [
        ("root ::= foo", "line 1, column 10 (foo): there is no rule called foo"),
        ('root ::= "a', "line 1, column 10"),
        ('root ::= "a"\n | "b"', "line 2, column 2"),
        ('root ::= ("a"', "is not closed"),
        ("root ::= [z-a]", "backwards"),
        ("root ::= []", "no character"),
        ("root ::= [a]{9999}", "at most 2000"),
        ('root ::= "\\q"', "no escape"),
        ("a ::= [a]", "root"),
        ("root ::= [a]\nroot ::= [b]", "two rules"),
        ("root ::= root", "cannot be compiled"),
        ("root ::= " + "(" * 5000 + "[a]", "parentheses"),
        ('start: "a" | b', "unknown name"),
        ("something else", "cannot be compiled"),
        ("", "cannot be compiled"),
    ],
)
def test_a_grammar_that_cannot_be_read_says_where(grammars, grammar, where):
    with pytest.raises(UsageError, match=re.escape(where)):
        grammars.start(Grammar.parse(grammar))


@given(st.text(alphabet='ab"[]()|*+?{}1,-^.\\x: =\nroot', max_size=40))
def test_any_text_is_a_grammar_or_refused(text):
    said = ""
    try:
        lark_of("root ::= " + text)
    except UsageError as e:
        said = str(e)
    assert "\n" not in said


PIECES = st.lists(st.sampled_from(["[a-c]", '"ab"', "[^b]", '"b"', '("a" | "bc")']), min_size=1, max_size=4)
SIGNS = st.sampled_from(["", "*", "+", "?", "{1,2}"])


@given(st.lists(st.tuples(PIECES, SIGNS), min_size=1, max_size=3), st.lists(st.text("abc", max_size=6), max_size=6))
@example([(["[^b]"], "*"), (["[a-c]", "[^b]"], "*")], [""])  # of many ways to read a token
def test_gbnf_takes_what_a_regular_expression_takes(grammars, tokenizer, parts, texts):
    gbnf = "root ::= " + " ".join(f"({' '.join(pieces)}){sign}" for pieces, sign in parts)
    pattern = re.compile("".join(f"({''.join(pieces)}){sign}" for pieces, sign in parts).translate({34: "", 32: ""}))
    for text in texts:
        expected = pattern.fullmatch(text) is not None
        try:
            found = fits(grammars, tokenizer, Grammar.parse(gbnf), text)
        except UsageError as e:
            if "Too many items" not in str(e):
                raise
            return  # too many ways to read a token
        assert found == expected, (gbnf, text)


@pytest.mark.parametrize(
    ("pattern", "text"), [("(yes|no)", "no"), (r"[0-9]{2}/\d+", "12/3"), (r"a\/b", "a/b"), ("", "")]
)
def test_regular_expressions(grammars, tokenizer, pattern, text):
    assert fits(grammars, tokenizer, Grammar.regex(pattern), text)
    assert not fits(grammars, tokenizer, Grammar.regex(pattern), text + "x")


def test_a_mask_has_a_bit_for_each_token():
    mask = np.array([0b101, 1 << 31], np.uint32)
    logits = np.arange(64, dtype=np.float32)
    left = np.flatnonzero(np.isfinite(allowed(logits, mask)))
    assert left.tolist() == [0, 2, 63]
    assert [t for t in range(64) if permits(mask, t)] == [0, 2, 63]
    assert np.isfinite(allowed(logits[:50], mask)).sum() == 2
    assert allowed(logits, None) is logits


def test_run_and_chat_obey(model, tmp_path, capsys):
    schema = {
        "type": "object",
        "properties": {"n": {"type": "integer"}},
        "required": ["n"],
        "additionalProperties": False,
    }
    (tmp_path / "s.json").write_text(json.dumps(schema))
    (tmp_path / "g.gbnf").write_text('root ::= "yes" | "no"')
    run = ["run", str(model), "-p", "def", "--no-perf", "--no-display-prompt", "--temp", "0", "-n", "64"]
    main([*run, "-jf", str(tmp_path / "s.json")])
    jsonschema.validate(json.loads(capsys.readouterr().out), schema)
    main([*run, "--grammar-file", str(tmp_path / "g.gbnf")])
    assert capsys.readouterr().out.strip() in ("yes", "no")
    main([*run, "--ignore-eos", "--grammar", "root ::= [0-9]{3}"])
    assert re.fullmatch("[0-9]{3}", capsys.readouterr().out.strip())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-j", "{}", "--grammar", "root ::= [a]"], "give one of them"),
        (["-j", '{"type": "x"}'], "at #: Invalid type"),
        (["--grammar", "root ::= a"], "no rule called a"),
        (["-jf", "nothing.json"], "does not exist"),
    ],
)
def test_what_cannot_be_obeyed_is_one_line(model, options, message, capsys):
    with pytest.raises(SystemExit):
        main(["run", str(model), "-p", "x", *options])
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
