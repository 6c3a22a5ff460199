"""Patterns of users' rules: what `re` finds is found, in bounded time."""

import re
import time
import warnings

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ggufkit.errors import PolicyError
from ggufkit.policy.custom import name_condition
from ggufkit.policy.pattern import Pattern, _Graph, parser

atoms = st.sampled_from(["a", "b", ".", "[ab]", "[^a]", r"\d", r"\w", r"\s", "A", "1", r"\.", "_", "[a-c_]", "[^\\d]"])


def larger(inner):
    return st.one_of(
        st.builds("{}{}".format, inner, inner),
        st.builds("({}|{})".format, inner, inner),
        st.builds("(?:{}){}".format, inner, st.sampled_from(["*", "+", "?", "{1,2}", "{2}", "*?", "{0,3}", "{2,}"])),
        st.builds("{}{}".format, st.sampled_from(["^", "$", r"\b", r"\B"]), inner),
        st.builds("(?{}{})".format, st.sampled_from("=!"), inner),
        st.builds("(?<{}{})".format, st.sampled_from("=!"), atoms),
    )


@given(st.recursive(atoms, larger, max_leaves=8), st.text("abAB1._\n", min_size=1, max_size=8))
def test_the_graph_finds_what_re_finds(text, name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            wanted = re.compile(text, re.IGNORECASE).search(name) is not None
            tree = parser.parse(text, re.IGNORECASE)
        except re.error:
            assume(False)
    assert _Graph(tree).search(name) == wanted
    assert Pattern(text).search(name) == wanted


@pytest.mark.parametrize(
    "text",
    [
        "(a|aa)+$",
        "(a+)+$",
        "(a*)*b",
        "(.*)*x",
        r"(\w|\w\w)*!b",
        "a?" * 30 + "a" * 64,
        "(a|a)" * 30 + "b",
        "a*a*a*a*a*a*a*a*a*a*b",
        "((a?){30}){2}b",
        "(?=(a|aa)+c)b",
        "(?!(a|aa)+$)b",
        "(([a-z])+.)+[A-Z]([a-z])+$",
        "(a{1,30}){1,30}b",
    ],
)
def test_no_pattern_takes_long(text):
    start = time.process_time()
    Pattern(text).search("a" * 63)
    assert time.process_time() - start < 1


@pytest.mark.parametrize("text", [r"(a)\1(b|c)*(d|e)*", "(a{1,90}){1,90}(b+)+", "(a)?(?(1)b|c)", "(" * 2000])
def test_what_cannot_be_bounded_is_refused_with_its_place(text):
    with pytest.raises(PolicyError, match="--tensor-type"):
        name_condition(text, "--tensor-type")
