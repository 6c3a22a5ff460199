"""The process that runs what strangers wrote: a request a line on stdin, an answer a line on stdout, JSON.

    {"source": …}                                 →  {"loads": false}                 it compiles
    {"source": …, "variables": …, "limit": …}     →  {"text": …} or {"refused": …}
                                                     {"broken": …, "line": …}, {"failed": …}
    {"grammar": …}                                →  {"error": …}                     "" where llguidance compiles it

The templates get what transformers' `apply_chat_template` gives: `messages`, `tools`, `add_generation_prompt`, the
texts of the special tokens, `raise_exception`, `strftime_now`, a `tojson` that does not escape HTML, loop controls and
the `{% generation %}` tag, in Jinja's immutable sandbox. Before each request the clock of the process is wound up: when
it has computed for too long, the system ends it. Nothing of ggufkit is imported here.
"""

from __future__ import annotations

import json
import signal
import sys
from contextlib import suppress
from datetime import datetime
from typing import Any, NoReturn

sys.path.pop(0)  # this folder

from jinja2 import TemplateError, TemplateSyntaxError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

_MEMORY = 128 << 20  # bytes, beyond what the process has at its start


class _Refused(Exception):
    """`raise_exception` in a template."""


class _TooLong(Exception):
    """The text is beyond its limit."""


class _Generation(Extension):
    """`{% generation %}` marks what the assistant says, for training; here it is its content."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: object) -> NoReturn:
    raise _Refused(message)


def _environment() -> ImmutableSandboxedEnvironment:
    made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation])
    made.filters["tojson"] = _tojson
    made.globals["raise_exception"] = _raise_exception
    made.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return made


def _limit_memory() -> None:
    with suppress(ImportError, OSError, ValueError):
        import resource

        with open("/proc/self/statm") as file:
            now = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + _MEMORY, now + _MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _wind_up(seconds: float) -> None:
    with suppress(AttributeError):
        signal.setitimer(signal.ITIMER_PROF, seconds)  # of computing; its signal ends the process


def _grammar_error(grammar: str) -> str:
    from llguidance import LLMatcher

    error: str = LLMatcher.validate_grammar(grammar)
    return error


def _answer(environment: ImmutableSandboxedEnvironment, request: dict[str, Any]) -> dict[str, Any]:
    source = request["source"]
    try:
        if "variables" not in request:
            tree = environment.parse(source)
            environment.compile(tree)
            loading = (nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends)
            return {"loads": any(tree.find(kind) is not None for kind in loading)}
        template = environment.from_string(source)
    except TemplateSyntaxError as e:
        return {"broken": str(e.message), "line": e.lineno}
    except (TemplateError, RecursionError, MemoryError, SyntaxError, OverflowError, ValueError) as e:
        return {"broken": f"{type(e).__name__}: {e}" if str(e) else _PLAIN.get(type(e), type(e).__name__), "line": None}
    try:
        parts, left = [], request["limit"]
        for part in template.generate(request["variables"]):
            left -= len(part)
            if left < 0:
                raise _TooLong
            parts.append(part)
        return {"text": "".join(parts)}
    except _TooLong:
        return {"failed": f"its text has more than {request['limit']} characters"}
    except _Refused as e:
        return {"refused": str(e)[:1000]}
    except TemplateError as e:  # undefined names, what the sandbox forbids
        return {"failed": str(e.message or type(e).__name__)[:1000]}
    except Exception as e:  # whatever the program in the template does wrong
        return {"failed": _PLAIN.get(type(e)) or f"{type(e).__name__}: {str(e)[:1000]}"}


_PLAIN = {MemoryError: "it takes too much memory", RecursionError: "it is nested too deeply"}


def main() -> None:
    environment = _environment()
    _limit_memory()
    for line in sys.stdin:
        request = json.loads(line)
        _wind_up(request["seconds"])
        try:
            if "grammar" in request:
                text = json.dumps({"error": _grammar_error(request["grammar"])})
            else:
                text = json.dumps(_answer(environment, request))
        except MemoryError:
            text = json.dumps({"failed": _PLAIN[MemoryError]})
        _wind_up(0)
        sys.stdout.write(text + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
