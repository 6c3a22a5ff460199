"""Chat templates: a conversation becomes the text that the model was trained on.

    [{"role": "user", "content": "Hello"}]   →   "<|im_start|>user\\nHello<|im_end|>\\n<|im_start|>assistant\\n"

A template is a Jinja program from a stranger's file, so it runs in Jinja's immutable sandbox. It gets what
transformers' `apply_chat_template` gives: `messages`, `tools`, `add_generation_prompt`, the texts of the special
tokens, `raise_exception`, `strftime_now`, a `tojson` that does not escape HTML, loop controls and the
`{% generation %}` tag.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from ggufkit.errors import GGUFError, GgufkitError, Hint, UsageError, printable

if TYPE_CHECKING:
    from jinja2 import Environment

    from ggufkit.gguf.reader import GGUF
    from ggufkit.tokenizer.run.vocab import Vocab

__all__ = ["ChatTemplate", "Message", "read_template", "template_names"]

Message = Mapping[str, Any]  # {"role": "user", "content": "…"}
KEY = "tokenizer.chat_template"


class ChatTemplate:
    """A compiled template.

    Parameters
    ----------
    source : Jinja text.
    where : the file, for messages.
    tokens : special tokens for the template, e.g. ``{"bos_token": "<s>"}``.

    Raises
    ------
    GGUFError : the template is not valid Jinja.
    """

    def __init__(self, source: str, where: str = "", tokens: Mapping[str, str] | None = None):
        from jinja2 import TemplateSyntaxError

        self.source, self.where = source, where
        self.tokens = dict(tokens or {})
        try:
            self._template = _environment().from_string(source)
        except TemplateSyntaxError as e:
            raise self._fail(f"is broken, line {e.lineno}: {printable(e.message)}") from None
        except (RecursionError, ValueError, OverflowError) as e:
            raise self._fail(f"is broken: {printable(e)}") from None

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = True, **variables: Any) -> str:
        """The text of a conversation.

        Parameters
        ----------
        messages : with `role` and `content`.
        add_generation_prompt : end with what makes the model answer.
        variables : more for the template: `tools`, `enable_thinking`, …

        Raises
        ------
        GGUFError : the template fails.
        UsageError : the template refuses the conversation.
        """
        from jinja2 import TemplateError

        given = {"tools": None, "documents": None, **self.tokens, **variables}
        try:
            return self._template.render(messages=messages, add_generation_prompt=add_generation_prompt, **given)
        except _Refused as e:
            raise UsageError(f"the model's chat template refuses this conversation: {printable(e)}") from None
        except TemplateError as e:  # undefined names, what the sandbox forbids
            raise self._fail(f"failed: {printable(e.message or type(e).__name__)}") from None
        except Exception as e:  # whatever the program in the template does wrong
            raise self._fail(f"failed: {type(e).__name__}: {printable(e)}") from None

    def _fail(self, what: str) -> GgufkitError:
        hint = "give another one with {template}"
        return GGUFError(f"the chat template ({KEY}) {what}", self.where or None, hint=hint)


def template_names(model: GGUF) -> list[str]:
    """The names of a file's templates besides the default one."""
    prefix = KEY + "."
    return [key.removeprefix(prefix) for key in model.fields if key.startswith(prefix)]


def read_template(model: GGUF, vocab: Vocab, name: str | None = None) -> ChatTemplate:
    """The chat template of an open file.

    Parameters
    ----------
    name : of one of several, e.g. ``"tool_use"``; None for the default one.

    Raises
    ------
    GGUFError : the file has none, or none of that name.
    """
    key = KEY if name is None else f"{KEY}.{name}"
    source = model.get(key, str, None)
    if source is None:
        names = template_names(model)
        if name is not None:
            have = f"it has {', '.join(map(printable, names))}" if names else "it has no named ones"
            raise GGUFError(f"there is no chat template named {printable(name)}; {have}", model.path)
        named = f", only {', '.join(map(printable, names))}" if names else ""
        ways = ["choose one with {variant}"] if names else []
        raise GGUFError(
            f"the model has no chat template ({KEY}){named}; it continues text",
            model.path,
            hint=Hint(*ways, "give a template with {template}"),
        )
    return ChatTemplate(source, model.path, special_tokens(vocab))


def special_tokens(vocab: Vocab) -> dict[str, str]:
    """Names that templates use → the tokens' texts."""
    named = {"bos": vocab.bos, "eos": vocab.eos, "unk": vocab.unk, "sep": vocab.sep, "pad": vocab.pad}
    return {f"{name}_token": "" if token is None else vocab.texts[token] for name, token in named.items()}


class _Refused(Exception):
    """`raise_exception` in a template."""


@functools.cache
def _environment() -> Environment:
    from jinja2 import nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class GenerationTag(Extension):
        """`{% generation %}` marks what the assistant says, for training; here it is its content."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Parser) -> list[nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, GenerationTag]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise _Refused(message)
