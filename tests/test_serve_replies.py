"""Replies taken apart: every style reads what it writes, however it is cut, and what is no call is text."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import ggufkit
from ggufkit.runtime.chat import ChatTemplate
from ggufkit.serve.replies.detect import Manner, manner_of
from ggufkit.serve.replies.functionary import FunctionaryParser
from ggufkit.serve.replies.harmony import HarmonyParser
from ggufkit.serve.replies.muse import MuseParser
from ggufkit.serve.replies.parser import ReplyParser
from ggufkit.serve.replies.pieces import CallBegins, CallText, Piece, Said, Thought
from ggufkit.serve.replies.styles import FUNCTIONARY, HARMONY, MUSE, STYLES, THOUGHTS
from ggufkit.serve.replies.writing import described, written

TOOLS = {
    "look": {
        "type": "object",
        "properties": {"at": {"type": "string"}, "far": {"type": "integer"}, "how": {}},
        "required": ["at"],
    },
    "listen": {"type": "object", "properties": {}},
}
THINK = THOUGHTS[-1]
BY_NAME = {style.name: style for style in STYLES}


def apart(parser, text: str, cuts: list[int] | None = None) -> list[Piece]:
    """The pieces of a text that comes in parts, neighbours of a kind joined."""
    found: list[Piece] = []
    places = sorted({0, len(text), *(cut for cut in cuts or [] if cut < len(text))})
    parts = [text[lo:hi] for lo, hi in pairwise(places)]
    for piece in [*(piece for part in parts for piece in parser.feed(part)), *parser.close()]:
        last = found[-1] if found else None
        if type(piece) is type(last) and not isinstance(piece, CallBegins):
            found[-1] = type(piece)(last.text + piece.text)
        else:
            found.append(piece)
    return found


def calls_in(pieces: list[Piece]) -> list[tuple[str, object]]:
    """(name, arguments) of each call."""
    found: list[tuple[str, str]] = []
    for piece in pieces:
        if isinstance(piece, CallBegins):
            found.append((piece.name, ""))
        elif isinstance(piece, CallText):
            found[-1] = (found[-1][0], found[-1][1] + piece.text)
    return [(name, json.loads(text)) for name, text in found]


def said_in(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces if isinstance(piece, Said))


CALLS = [("look", {"at": 'the "sky", {far} away', "far": 3}), ("listen", {}), ("look", {"at": "sea"})]


@pytest.mark.parametrize("style", STYLES, ids=lambda style: style.name)
def test_a_style_reads_what_it_writes(style):
    for calls in (CALLS[:1], CALLS[1:2], CALLS):
        if len(calls) > 1 and style.name in ("gigachat", "gigachat-3", "command-r"):
            continue  # these write one
        text = written(style, calls)
        for cut in (1, 2, 3, 7, len(text)):
            pieces = apart(ReplyParser(style, THINK, TOOLS), text, list(range(0, len(text), cut)))
            assert calls_in(pieces) == calls, text
            assert said_in(pieces) == ""


VALUES = st.one_of(st.text(max_size=8), st.integers(-99, 99), st.booleans(), st.lists(st.integers(0, 9), max_size=2))
CUTS = st.lists(st.integers(0, 80))
HARMONY_WORDS = st.sampled_from(["<|channel|>", "analysis", "<|message|>", "<|end|>", "to=functions.look"])
TEXTS = st.text(alphabet="ab<>/|{}[]\"'\\: \n_toolcafunin=", max_size=12)


@given(st.sampled_from(STYLES), st.data())
def test_text_and_calls_come_back_however_they_are_cut(style, data):
    words = st.text(alphabet="abc .\n<", max_size=6)
    before = data.draw(words)
    # In a style with tags a value ends where its closing tag does.
    strings = st.text(alphabet="ab {}:,é\\\n", max_size=8) if style.parameter or style.quote else st.text(max_size=8)
    strings = strings.filter(lambda text: text == text.strip("\n") and "\ud800" not in text)
    arguments = data.draw(st.fixed_dictionaries({"at": strings}, optional={"far": st.integers(-99, 99)}))
    text = ("" if style.bare else before) + written(style, [("look", arguments)])
    cuts = data.draw(st.lists(st.integers(0, len(text)), max_size=6))
    pieces = apart(ReplyParser(style, THINK, TOOLS), text, cuts)
    assert calls_in(pieces) == [("look", arguments)], text
    if not style.bare:
        assert said_in(pieces) == before.rstrip()


@given(
    st.sampled_from(STYLES), st.booleans(), st.lists(st.one_of(TEXTS, st.just("MARK"))), st.lists(st.integers(0, 80))
)
def test_any_text_is_read_alike_however_it_is_cut(style, thinking, words, cuts):
    marks = [*style.marks, "<think>", "</think>", '{"name": "look", "arguments": {']
    text = "".join(marks[i % len(marks)] if word == "MARK" else word for i, word in enumerate(words))
    whole = apart(ReplyParser(style, THINK, TOOLS, thinking), text)
    assert apart(ReplyParser(style, THINK, TOOLS, thinking), text, cuts) == whole


@given(st.lists(st.one_of(TEXTS, HARMONY_WORDS)), CUTS)
@example(["assistant", ":" * 250, "<|message|>", "late"], [100])
@example(["<|channel|>analysis<|message|>Let me see"], [9])
@example(["<|constrain|>json<|message|>{}"], [9])
def test_harmony_is_read_alike_however_it_is_cut(words, cuts):
    text = "".join(words)
    assert apart(HarmonyParser(TOOLS), text, cuts) == apart(HarmonyParser(TOOLS), text)


def muse(name: str, elements: str) -> str:
    inner = f'<atem:invoke name="{name}">\n{elements}</atem:invoke>\n'
    return f"<|start|>assistant to={name}<|message|><atem:function_calls>\n{inner}</atem:function_calls>"


AT, FAR = '<atem:parameter name="at">sky</atem:parameter>\n', '<atem:parameter name="far">3</atem:parameter>\n'
REPLIES = [
    (
        MuseParser,
        " to=self<|message|>Let me see<|eom|>" + muse("look", AT + FAR) + "<|eom|>" + muse("listen", "") + "<|eot|>",
        [Thought("Let me see"), ("look", {"at": "sky", "far": 3}), ("listen", {})],
    ),
    (MuseParser, " to=user<|message|>It rains.<|eot|>", [Said("It rains.")]),
    (MuseParser, "<|message|>It rains.<|eot|>", [Said("It rains.")]),
    (MuseParser, "It rains.", [Said("It rains.")]),
    (MuseParser, " to=look<|message|>no call<|eot|>", [Said("no call")]),
    (FunctionaryParser, "all\nIt rains >>> here.", [Said("It rains >>> here.")]),
    (FunctionaryParser, 'look\n{"at": ">>>all"}>>>listen\n{}', [("look", {"at": ">>>all"}), ("listen", {})]),
    (FunctionaryParser, 'all\nI look.>>>look\n{"at": "sea"}', [Said("I look."), ("look", {"at": "sea"})]),
    (FunctionaryParser, "look\nno call", [Said("look\nno call")]),
    (FunctionaryParser, "It rains.", [Said("It rains.")]),
]


@pytest.mark.parametrize(("parser", "reply", "expected"), REPLIES, ids=range(len(REPLIES)))
def test_families_with_parsers_of_their_own(parser, reply, expected):
    for cut in (1, 2, 5, 11, len(reply)):
        pieces = apart(parser(TOOLS), reply, list(range(0, len(reply), cut)))
        calls = iter(calls_in(pieces))
        found = [
            piece if isinstance(piece, (Said, Thought)) else next(calls)
            for piece in pieces
            if not isinstance(piece, CallText)
        ]
        assert found == expected


@given(
    st.sampled_from([MuseParser, FunctionaryParser]),
    st.lists(
        st.one_of(TEXTS, st.sampled_from([" to=look", *MuseParser.MARKS, ">>>", "look\n", "all\n", '{"a": "', AT]))
    ),
    CUTS,
)
def test_they_are_read_alike_however_they_are_cut(parser, words, cuts):
    text = "".join(words)
    assert apart(parser(TOOLS), text, cuts) == apart(parser(TOOLS), text)


def test_elements_within_elements():
    mark = "]<]minimax[>["
    arguments = {"at": "sky", "deep": {"a": [1, "x"], "b": True, "none": None}, "list": [{"c": 1.5}], "no": [], "d": {}}
    schema = {
        "type": "object",
        "properties": {"at": {"type": "string"}, "no": {"type": "array"}, "d": {"type": "object"}, "deep": {}},
    }
    text = written(BY_NAME["minimax-m3"], [("look", arguments)])
    assert f"{mark}<deep>{mark}<a>{mark}<item>1{mark}</item>" in text
    assert calls_in(apart(ReplyParser(BY_NAME["minimax-m3"], None, {"look": schema}), text)) == [("look", arguments)]
    broken = text.replace(f"{mark}</a>", "", 1)
    assert said_in(apart(ReplyParser(BY_NAME["minimax-m3"], None, {"look": schema}), broken)) == broken.rstrip()
    deep = f"{mark}<a>" * 200 + f"{mark}</a>" * 200
    bomb = f'{mark}<tool_call>\n{mark}<invoke name="look">{deep}{mark}</invoke>\n{mark}</tool_call>'
    assert said_in(apart(ReplyParser(BY_NAME["minimax-m3"], None, {"look": schema}), bomb)) == bomb


@given(st.text(max_size=60), st.lists(st.integers(0, 60)))
def test_without_tools_and_thoughts_text_stays_as_it_is(text, cuts):
    assert said_in(apart(ReplyParser(), text, cuts)) == text
    assert said_in(apart(ReplyParser(BY_NAME["hermes"], None, {}), text + "<tool_call>", cuts)) == text + "<tool_call>"


@pytest.mark.parametrize(
    ("style", "text", "said"),
    [
        ("hermes", "a <tool_call>no</tool_call> b", "a <tool_call>no</tool_call> b"),
        ("hermes", "a <tool_call>", "a <tool_call>"),
        ("hermes", '<tool_call>{"arguments": {}}</tool_call>', '<tool_call>{"arguments": {}}</tool_call>'),
        ("hermes", '<tool_call>[{"name": "look"}]', '<tool_call>[{"name": "look"}]'),
        ("llama", '{"name": "unknown", "parameters": {}}', '{"name": "unknown", "parameters": {}}'),
        ("llama", '{"answer": 42}', '{"answer": 42}'),
        ("llama", 'see {"name": "look", "parameters": {}}', 'see {"name": "look", "parameters": {}}'),
        ("mistral", "[TOOL_CALLS]look", "[TOOL_CALLS]look"),
        ("qwen3-coder", "<tool_call>\n<function=look", "<tool_call>\n<function=look"),
        (
            "lfm2",
            "<|tool_call_start|>[look(x + 1)]<|tool_call_end|>",
            "<|tool_call_start|>[look(x + 1)]<|tool_call_end|>",
        ),
        ("gemma-4", '<|tool_call>call:look{at:<|"|>a<tool_call|>', '<|tool_call>call:look{at:<|"|>a<tool_call|>'),
    ],
)
def test_what_does_not_parse_is_text(style, text, said):
    assert apart(ReplyParser(BY_NAME[style], None, TOOLS), text) == [Said(said)]


def test_thoughts_are_told_apart():
    text = "<think>\nLet me see.\n</think>\n\nIt rains. <think>no</think>"
    expected = [Thought("Let me see."), Said("It rains. <think>no</think>")]
    assert apart(ReplyParser(None, THINK), text, [3, 9, 22]) == expected
    assert apart(ReplyParser(None, THINK, thinking=True), text.removeprefix("<think>")) == expected
    assert apart(ReplyParser(None, THINK), "I think <think> so") == [Said("I think <think> so")]
    assert apart(ReplyParser(None, THINK, thinking=True), "cut off") == [Thought("cut off")]


def test_a_call_that_is_cut_off_has_no_end():
    cut = '<tool_call>{"name": "look", "arguments": {"at": "s'
    assert apart(ReplyParser(BY_NAME["hermes"], None, TOOLS), cut)[-1] == CallText('{"at": "s')
    cut = "<tool_call>\n<function=look>\n<parameter=at>\nthe sk"
    assert apart(ReplyParser(BY_NAME["qwen3-coder"], None, TOOLS), cut)[-1] == CallText('{"at": "the sk')


def test_values_get_the_types_of_the_schema():
    tools = {"f": {"properties": {"s": {"type": "string"}, "n": {"type": ["integer", "null"]}, "l": {"type": "array"}}}}
    text = "<tool_call>f\n" + "".join(
        f"<arg_key>{key}</arg_key>\n<arg_value>{value}</arg_value>\n"
        for key, value in {"s": "12", "n": "None", "l": '["a"]', "x": "True", "y": "1.5", "z": "a b"}.items()
    )
    [(_, arguments)] = calls_in(apart(ReplyParser(BY_NAME["glm"], None, tools), text + "</tool_call>"))
    assert arguments == {"s": "12", "n": None, "l": ["a"], "x": True, "y": 1.5, "z": "a b"}


def test_harmony():
    text = (
        "<|channel|>analysis<|message|>Let me see<|end|><|start|>assistant"
        '<|channel|>commentary to=functions.look <|constrain|>json<|message|>{"at": "sky"}<|call|>'
        "<|start|>assistant<|channel|>final<|message|>It rains.<|return|>"
    )
    pieces = apart(HarmonyParser(TOOLS), text, [5, 30, 60, 100, 150, 170])
    assert pieces == [Thought("Let me see"), CallBegins("look"), CallText('{"at": "sky"}'), Said("It rains.")]
    turned = ' to=functions.look<|channel|>commentary json<|message|>{"at": "sea"}<|call|>'
    assert calls_in(apart(HarmonyParser(TOOLS), turned)) == [("look", {"at": "sea"})]
    assert apart(HarmonyParser(TOOLS), "plain text") == [Said("plain text")]


def call_template(style) -> ChatTemplate:
    """A template that writes calls in a style, with its marks in it."""
    body = written(style, [("NAME", {"at": "AT", "far": 77})])
    body = (
        body.replace("NAME", "{{ c.name }}")
        .replace("AT", "{{ c.arguments.at }}")
        .replace("77", "{{ c.arguments.far }}")
    )
    body = "{% raw %}" + body.replace("{{ ", "{% endraw %}{{ ").replace(" }}", " }}{% raw %}") + "{% endraw %}"
    return ChatTemplate(
        "{{ tools | tojson if tools else '' }}{% for m in messages %}[{{ m.role }}]{{ m.content }}"
        "{% if m.tool_calls %}{% set c = m.tool_calls[0].function %}" + body + "{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )


@pytest.mark.parametrize("style", STYLES, ids=lambda style: style.name)
def test_a_template_tells_its_style(style):
    manner = manner_of(call_template(style))
    assert written(manner.style, CALLS[:1]) == written(style, CALLS[:1])
    assert manner.shows_tools
    assert manner.writes_calls


def test_a_template_that_knows_no_tools_gets_the_plainest_style():
    manner = manner_of(ChatTemplate("{% for m in messages %}{{ m.content }}{% endfor %}"))
    assert manner == Manner(BY_NAME["hermes"])
    text = described(manner.style, [{"type": "function", "function": {"name": "look", "parameters": TOOLS["look"]}}])
    assert "look" in text
    assert "<tool_call>" in text


@pytest.fixture(scope="module")
def tokenizer(fixtures, tmp_path_factory):
    from ggufkit.jobs.convert import convert
    from ggufkit.tokenizer.run.tokenizer import load_tokenizer

    path = convert(fixtures / "pylib-llama", tmp_path_factory.mktemp("model") / "m.gguf", "Q8_0")
    with ggufkit.open(path) as gguf:
        return load_tokenizer(gguf)


SHORT = {
    "look": {
        "properties": {"at": {"type": "string", "enum": ["sky", "sea"]}, "far": {"type": "integer", "enum": [1, 2]}},
        "required": ["at"],
    },
    "listen": {"properties": {}},
}


@pytest.mark.parametrize("style", [*STYLES, HARMONY, MUSE, FUNCTIONARY], ids=lambda style: style.name)
def test_what_is_forced_is_read(tokenizer, style):
    pytest.importorskip("llguidance")
    if "\u2581" in style.call:
        pytest.skip("to the bundled tokenizer this sign is a space")
    from ggufkit.runtime.constrain.mask import allowed
    from ggufkit.runtime.constrain.matcher import Grammars
    from ggufkit.serve.replies.forced import forced_calls

    grammars, manner = Grammars(tokenizer), Manner(style, THINK if style in STYLES else None, True)
    seen = set()
    for seed in range(4):
        grammar = forced_calls(manner, SHORT, tokenizer.partition, many=False, thinking=False)
        constraint, ids, rng = grammars.start(grammar), [], np.random.default_rng(seed)
        ends = np.isin(np.arange(len(tokenizer)), list(tokenizer.vocab.ends))
        while not constraint.done and len(ids) < 300:
            noise = np.where(ends, 20, 0) + rng.gumbel(size=len(tokenizer))
            token = int(allowed(noise.astype(np.float32), constraint.mask()).argmax())
            if ends[token]:
                break
            constraint.accept(token)
            ids.append(token)
        text = tokenizer.decode_bytes(ids).decode("utf-8", "replace")
        if any(mark in text for mark in ("<think>", "analysis", "to=self")):
            continue  # random thoughts have no end
        calls = calls_in(apart(manner.parser(SHORT, ""), text))
        assert len(calls) == 1, text
        name, arguments = calls[0]
        assert arguments.get("at", "sky") in ("sky", "sea")
        assert set(arguments) <= {"at", "far"}
        seen.add(name)
    assert seen <= {"look", "listen"}


@pytest.mark.parametrize("thinking", [True, False])
@pytest.mark.parametrize(
    ("grammar", "text"), [("schema", '{"a": 1}'), ("regex", "12/3"), ("gbnf", "yes"), ("lark", "yes")]
)
def test_thoughts_may_come_before_what_obeys(tokenizer, grammar, text, thinking):
    pytest.importorskip("llguidance")
    from ggufkit.errors import GgufkitError
    from ggufkit.runtime.constrain.grammar import Grammar
    from ggufkit.runtime.constrain.matcher import Grammars
    from ggufkit.serve.replies.forced import after_thoughts

    wanted = {
        "schema": Grammar.json_schema({"properties": {"a": {"const": 1}}, "required": ["a"], "type": "object"}),
        "regex": Grammar.regex("[0-9]+/[0-9]"),
        "gbnf": Grammar.parse('root ::= "yes" | no\nno ::= "no"'),
        "lark": Grammar.parse('start: "yes" | no\nno: "no"'),
    }[grammar]
    grammars = Grammars(tokenizer)
    made = after_thoughts(wanted, Manner(BY_NAME["hermes"], THINK), tokenizer.partition, thinking)

    def fits(reply: str) -> bool:
        constraint = grammars.start(made)
        try:
            for byte in reply.encode():
                constraint.accept(tokenizer.vocab.ids[f"<0x{byte:02X}>"])
        except GgufkitError:
            return False
        return bool(constraint.mask()[tokenizer.vocab.eos >> 5] >> (tokenizer.vocab.eos & 31) & 1)

    thoughts = "I see {\n" if thinking else "<think>I see {\n"
    assert fits(f"{thoughts}</think>\n\n{text}")
    assert fits(text) is not thinking
    assert not fits(f"{thoughts}</think>x{text}")
    assert after_thoughts(wanted, Manner(BY_NAME["hermes"]), tokenizer.partition, False) is wanted
