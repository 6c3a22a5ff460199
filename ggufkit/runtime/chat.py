"""Chat templates: a conversation becomes the text that the model was trained on.

    [{"role": "user", "content": "Hello"}]   →   "<|im_start|>user\\nHello<|im_end|>\\n<|im_start|>assistant\\n"

A template is a Jinja program from a stranger's file: `sandbox` runs it, with what transformers' `apply_chat_template`
gives it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ggufkit.errors import GGUFError, GgufkitError, Hint, UsageError, printable
from ggufkit.sandbox.jinja import BrokenTemplate, FailedTemplate, RefusedByTemplate, check, render

if TYPE_CHECKING:
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
        self.source, self.where = source, where
        self.tokens = dict(tokens or {})
        try:
            check(source)
        except BrokenTemplate as e:
            raise self._fail(f"is broken{f', line {e.line}' if e.line else ''}: {printable(e)}") from None

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
        given = {"tools": None, "documents": None, **self.tokens, **variables}
        given |= {"messages": list(messages), "add_generation_prompt": add_generation_prompt}
        try:
            return render(self.source, given)
        except TypeError as e:
            raise UsageError(f"a chat template gets what JSON can hold: {printable(e)}") from None
        except RefusedByTemplate as e:
            raise UsageError(f"the model's chat template refuses this conversation: {printable(e)}") from None
        except (BrokenTemplate, FailedTemplate) as e:
            raise self._fail(f"failed: {printable(e)}") from None

    def prompt(self, messages: Sequence[Message], **variables: Any) -> str:
        """The text of a conversation that has in it what the user said last.

        A template of a model that sees, too, may take what is said as a list of parts only: then it gets
        [{"type": "text", "text": …}].

        Raises
        ------
        GGUFError, UsageError : see `render`; or what the user says is left out either way.
        """
        failure = None
        try:
            text = self.render(messages, **variables)
            if _says(text, messages):
                return text
        except GGUFError as e:
            text, failure = "", e
        try:
            in_parts = self.render(_in_parts(messages), **variables)
            if _says(in_parts, messages):
                return in_parts
        except GgufkitError:
            in_parts = None
        if failure is not None:
            raise failure
        # It may have been changed on its way, to JSON for one. Would a plain word be there?
        probe = _with_probe(messages)
        if _says(self.render(probe, **variables), [_PROBE]):
            return text
        if in_parts is not None and _says(self.render(_in_parts(probe), **variables), [_PROBE]):
            return in_parts
        raise UsageError("the model's chat template leaves out what the user says, as a text and as a list of parts")

    def _fail(self, what: str) -> GgufkitError:
        hint = "give another one with {template}"
        return GGUFError(f"the chat template ({KEY}) {what}", self.where or None, hint=hint)


_PROBE: Message = {"role": "user", "content": "ggufkitprobe"}


def _says(text: str, messages: Sequence[Message]) -> bool:
    """Whether a text has in it what the user said last, where that is a text."""
    said = [m["content"] for m in messages if m.get("role") == "user" and isinstance(m.get("content"), str)]
    return not said or said[-1].strip().lower() in text.lower()


def _in_parts(messages: Sequence[Message]) -> list[Message]:
    return [
        {**m, "content": [{"type": "text", "text": m["content"]}]} if isinstance(m.get("content"), str) else m
        for m in messages
    ]


def _with_probe(messages: Sequence[Message]) -> list[Message]:
    """The conversation with another last word of the user."""
    last = max(i for i, m in enumerate(messages) if m.get("role") == "user" and isinstance(m.get("content"), str))
    return [*messages[:last], {**messages[last], **_PROBE}, *messages[last + 1 :]]


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
