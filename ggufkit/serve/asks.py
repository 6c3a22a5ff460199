"""What a request asks of a model, whatever dialect it came in: prompt, choice of tokens, how to read the reply."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ggufkit.runtime.constrain.grammar import Grammar
from ggufkit.runtime.sampling import SAMPLERS, Sampling, sampling_of
from ggufkit.serve.bodies import Body
from ggufkit.serve.conversation import Conversation, named_tool
from ggufkit.serve.engine.request import ContextTooLong, Request
from ggufkit.serve.models import Served
from ggufkit.serve.replies.forced import after_thoughts, forced_calls
from ggufkit.serve.replies.parser import Incremental, ReplyParser
from ggufkit.serve.settings import Settings

__all__ = ["Ask", "Choosing", "chat_ask", "choosing_of", "grammar_of", "text_ask"]

Parser = Incremental


@dataclass(frozen=True)
class Choosing:
    """How tokens are chosen, and when to end.

    Attributes
    ----------
    max_tokens : None for as many as the context holds.
    logprobs : see `engine.Request`.
    prompt_logprobs : the same of the prompt's tokens.
    grammar : what the text must obey, or None.
    n : how many answers.
    adapters : see `engine.Request`.
    """

    sampling: Sampling = field(default_factory=Sampling)
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    grammar: Grammar | None = None
    n: int = 1
    ignore_ends: bool = False
    reuse: bool = True
    adapters: Mapping[str, float] | None = None


@dataclass(frozen=True)
class Ask:
    """Requests for the engine, one an answer, each with a parser of its reply.

    Attributes
    ----------
    prompt : as text, where it was one.
    requests, parsers : of each answer.
    """

    prompt: str
    requests: list[Request]
    parsers: list[Parser]


# Field of a request → setting; the same names in all dialects that have them.
_NUMBERS: tuple[tuple[str, str, float, float], ...] = (
    ("temperature", "temperature", 0, 100),
    ("top_p", "top_p", 0, 1),
    ("min_p", "min_p", 0, 1),
    ("typical_p", "typical_p", 0, 1),
    ("typ_p", "typical_p", 0, 1),
    ("top_n_sigma", "top_n_sigma", -1e6, 1e6),
    ("repeat_penalty", "repeat_penalty", 1e-3, 1e3),
    ("repetition_penalty", "repeat_penalty", 1e-3, 1e3),
    ("frequency_penalty", "frequency_penalty", -1e3, 1e3),
    ("presence_penalty", "presence_penalty", -1e3, 1e3),
    ("xtc_probability", "xtc_probability", 0, 1),
    ("xtc_threshold", "xtc_threshold", 0, 1),
    ("dynatemp_range", "dynatemp_range", 0, 1e6),
    ("dynatemp_exponent", "dynatemp_exponent", 0, 1e3),
    ("dry_multiplier", "dry_multiplier", 0, 1e6),
    ("dry_base", "dry_base", 1, 1e6),
    ("mirostat_tau", "mirostat_tau", 0, 1e3),
    ("mirostat_eta", "mirostat_eta", 0, 1e3),
)
_WHOLE: tuple[tuple[str, str, int, int], ...] = (
    ("top_k", "top_k", -1, (1 << 31) - 1),
    ("repeat_last_n", "repeat_last_n", -1, (1 << 31) - 1),
    ("dry_allowed_length", "dry_allowed_length", 0, (1 << 31) - 1),
    ("dry_penalty_last_n", "dry_penalty_last_n", -1, (1 << 31) - 1),
    ("mirostat", "mirostat", 0, 2),
)
_MAX_BIAS, _BIAS_TEXT = 1024, 256  # tokens, and characters of one


def choosing_of(body: Body, served: Served, settings: Settings, limit_names: Sequence[str]) -> Choosing:
    """What a body says of how tokens are chosen.

    Parameters
    ----------
    limit_names : fields that may say how many tokens come, the first that is there counts.

    Raises
    ------
    Problem, UsageError : a value is out of its range.
    """
    wanted: dict[str, Any] = {}
    for name, setting, low, high in _NUMBERS:
        if (value := body.number(name, low, high)) is not None:
            wanted[setting] = float(value)
    for name, setting, least, most in _WHOLE:
        if (value := body.whole(name, least, most)) is not None:
            wanted[setting] = value
    seed = body.whole("seed", -(1 << 63), (1 << 64) - 1)
    if seed is not None and seed != -1:  # llama-server's word for any
        wanted["seed"] = seed % (1 << 64)
    if order := body.items("samplers", 32):
        wanted["samplers"] = tuple(name for name in map(str, order) if name in SAMPLERS)
    if bias := _bias(body, served):
        wanted["logit_bias"] = bias
    limit = None
    for name in limit_names:
        limit = body.whole(name, -1, 1 << 31) if limit is None else limit
    stops = tuple(text for text in body.texts("stop", settings.stops) if text)
    return Choosing(
        sampling_of(served.gguf, **wanted),
        None if limit is None or limit < 0 else limit,
        stops,
        n=body.whole("n", 1, settings.choices, 1),
        ignore_ends=body.flag("ignore_eos"),
        reuse=body.flag("cache_prompt", True),
        adapters=_adapters(body, served),
    )


def _adapters(body: Body, served: Served) -> dict[str, float] | None:
    """llama-server's ``"lora": [{"id": 0, "scale": 0.5}]``; those that are not named count for nothing."""
    if "lora" not in body:
        return None
    known = served.engine.model.adapters
    found: dict[str, float] = {}
    for one in body.objects("lora", 64):
        number = one.whole("id", 0, (1 << 31) - 1)
        if number is None or number >= len(known):
            have = f"numbers go to {len(known) - 1}" if known else "the model runs without any"
            raise one.wrong("id", f"is the number of no adapter; {have}")
        found[known[number].name] = float(one.number("scale", -1e3, 1e3, 1.0))
    return found


def _bias(body: Body, served: Served) -> dict[int, float]:
    """``{"15043": -100}``, or llama-server's ``[[15043, -1], [" Hello", false]]``."""
    value = body.get("logit_bias", (dict, list))
    pairs = list(value.items()) if isinstance(value, dict) else value or []
    if len(pairs) > _MAX_BIAS:
        raise body.wrong("logit_bias", f"has {len(pairs)} tokens; at most {_MAX_BIAS} are taken")
    found: dict[int, float] = {}
    for pair in pairs:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise body.wrong("logit_bias", "should have a token and a number each")
        token, bias = pair
        if isinstance(bias, bool):
            bias = None if bias else float("-inf")
        if not isinstance(bias, (int, float)) or not (bias == float("-inf") or abs(bias) <= 1e6):
            raise body.wrong("logit_bias", "should have a number for each token")
        if isinstance(value, dict) and re.fullmatch(r"-?[0-9]{1,11}", token):
            token = int(token)
        if isinstance(token, str):
            if len(token) > _BIAS_TEXT:
                raise body.wrong("logit_bias", f"has a text of {len(token)} characters; at most {_BIAS_TEXT} are taken")
            for one in served.tokenizer.encode(token, add_special=False):
                found[one] = float(bias)
        elif isinstance(token, int) and 0 <= token < served.engine.model.vocabulary:
            found[token] = float(bias)
        else:
            raise body.wrong("logit_bias", f"names a token {token!r:.40} that the model does not have")
    return found


def grammar_of(body: Body) -> Grammar | None:
    """What a body says that the text must obey: `response_format`, `json_schema`, `grammar`, `regex`.

    Raises
    ------
    Problem, UsageError : it says two things, or one that cannot be read.
    """
    found: list[Grammar] = []
    form = body.at("response_format")
    if form is not None:
        kind = form.choice("type", ("text", "json_object", "json_schema", "regex", "grammar"), "text")
        if kind == "json_object":
            schema = form.get("schema", dict)
            found.append(Grammar.json_object() if schema is None else Grammar.json_schema(schema))
        elif kind == "json_schema":
            outer = form.at("json_schema") or form
            schema = outer.get("schema", (dict, bool))
            if schema is None:
                raise outer.wrong("schema", "is missing")
            found.append(Grammar.json_schema(schema))
        elif kind == "regex":
            found.append(Grammar.regex(form.need_text("pattern")))
        elif kind == "grammar":
            found.append(Grammar.parse(form.need_text("grammar")))
    if "json_schema" in body:
        found.append(Grammar.json_schema(body.get("json_schema", dict)))
    if body.text("grammar"):
        found.append(Grammar.parse(body.text("grammar")))
    if body.text("regex"):
        found.append(Grammar.regex(body.text("regex")))
    if len(found) > 1:
        raise body.wrong("response_format", "and grammar, json_schema, regex: give one of them")
    return found[0] if found else None


def text_ask(served: Served, prompt: str | Sequence[int], choosing: Choosing) -> Ask:
    """A text to be continued.

    Raises
    ------
    UsageError : it has no tokens, or the grammar cannot be compiled.
    """
    from ggufkit.runtime.generate import prompt_tokens

    with served.encoding(prompt if isinstance(prompt, str) else ""):
        tokens = prompt_tokens(served.tokenizer, prompt)
    return _ask(
        served, prompt if isinstance(prompt, str) else "", tokens, choosing, [ReplyParser() for _ in range(choosing.n)]
    )


def chat_ask(
    served: Served,
    conversation: Conversation,
    choosing: Choosing,
    *,
    tool_choice: str | Mapping[str, str] = "auto",
    many_calls: bool = True,
    apart: bool = True,
) -> Ask:
    """A conversation to be answered.

    Parameters
    ----------
    tool_choice : "auto", "none", "required", or ``{"name": …}``.
    many_calls : several calls may come at once.
    apart : thoughts are told apart from text.

    Raises
    ------
    Problem, GgufkitError : it cannot be rendered, or the schema of a tool or of the answer cannot be compiled.
    """
    if tool_choice == "none":
        conversation = dataclasses.replace(conversation, tools=())
    elif not isinstance(tool_choice, str):
        chosen = named_tool(conversation.tools, tool_choice["name"])
    text, tokens = conversation.prompt(served)
    if len(tokens) >= served.engine.context:
        raise ContextTooLong(len(tokens), served.engine.context)
    manner = served.manner
    schemas = conversation.schemas
    thinking = manner.thinks(text)
    if conversation.tools and tool_choice != "auto":
        wanted = schemas if tool_choice == "required" else {chosen[0]["function"]["name"]: schemas[tool_choice["name"]]}  # type: ignore[index]
        forced = forced_calls(manner, wanted, served.partition, many_calls, thinking)
        choosing = dataclasses.replace(choosing, grammar=forced)
    elif choosing.grammar is not None:
        grammar = choosing.grammar
        grammar.check()  # its own places, before thoughts come before it
        choosing = dataclasses.replace(choosing, grammar=after_thoughts(grammar, manner, served.partition, thinking))
    parsers = [manner.parser(schemas, text, apart) for _ in range(choosing.n)]
    return _ask(served, text, tokens, choosing, parsers, served.marks)


def _ask(
    served: Served,
    prompt: str,
    tokens: list[int],
    choosing: Choosing,
    parsers: Sequence[Parser],
    shown: frozenset[int] = frozenset(),
) -> Ask:
    requests = [
        Request(
            tokens,
            choosing.max_tokens,
            _with_seed(choosing.sampling, number),
            choosing.stop,
            ignore_ends=choosing.ignore_ends,
            show_special=shown,
            logprobs=choosing.logprobs,
            prompt_logprobs=choosing.prompt_logprobs,
            constraint=None if choosing.grammar is None else served.constraint(choosing.grammar),
            reuse=choosing.reuse,
            adapters=choosing.adapters,
        )
        for number in range(choosing.n)
    ]
    return Ask(prompt, requests, list(parsers))


def _with_seed(sampling: Sampling, number: int) -> Sampling:
    """Another seed for each answer."""
    if not number or sampling.seed is None:
        return sampling
    return dataclasses.replace(sampling, seed=(sampling.seed + number) % (1 << 64))
