"""`ggufkit chat`: talk to a model."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ggufkit.cli.hints import in_flags
from ggufkit.cli.lines import read_message, typed_ahead
from ggufkit.cli.progress import note
from ggufkit.cli.prompt import generation_options, say, speed, template_options
from ggufkit.cli.speculate import guessing, lora_option, speculation_options
from ggufkit.cli.text import cache_options, kept_cache, prompt_cache_option
from ggufkit.errors import GGUFError, GgufkitError, UsageError, os_errors, printable
from ggufkit.storage.files import AtomicFile
from ggufkit.storage.regular import read_small

if TYPE_CHECKING:
    from ggufkit.runtime.chat import ChatTemplate
    from ggufkit.runtime.kv.cache import Cache
    from ggufkit.runtime.model import Model
    from ggufkit.runtime.speculate import Ahead

__all__ = ["command"]

HELP = (
    "/regenerate answers again, /file PATH sends a file, /save PATH keeps the talk as JSON, /reset starts anew, "
    "/exit or Ctrl-D ends; Ctrl-C ends an answer"
)


_MAX_FILE = 16 << 20  # bytes of a message


@click.command()
@click.argument("model")
@click.option("-sys", "--system", "--system-prompt", metavar="TEXT", help="What the model is told first.")
@click.option("-p", "--prompt", metavar="TEXT", help="The first message.")
@click.option("--chat-template", metavar="NAME", help="Use this one of several templates in the file.")
@click.option(
    "--chat-template-file",
    type=click.Path(path_type=Path),
    help="Use the Jinja template in this file, instead of the model's own.",
)
@template_options
@generation_options
@lora_option
@cache_options
@speculation_options
@prompt_cache_option
@click.option("--no-perf", is_flag=True, help="Say nothing about speed.")
def command(
    model: str,
    system: str | None,
    prompt: str | None,
    chat_template: str | None,
    chat_template_file: Path | None,
    variables: dict[str, Any],
    how: dict[str, Any],
    context: int | None,
    on: dict[str, Any],
    types: tuple[str, str],
    guess: dict[str, Any],
    saved: Path | None,
    no_perf: bool,
) -> None:
    """Talk to MODEL, on the CPU. Flags are llama-cli's.

    A message is a line; a backslash at its end goes on with the next one. Ctrl-C ends an answer and keeps
    what you have typed. What was said before is kept and not computed again. From a pipe, every line is a message.

    \b
    ggufkit chat model.gguf --system 'You answer briefly.'
    echo 'What is GGUF?' | ggufkit chat model.gguf --no-perf
    """
    from ggufkit.cli.ahead import ready_to_run
    from ggufkit.runtime.chat import ChatTemplate, read_template, special_tokens
    from ggufkit.runtime.model import load

    if chat_template and chat_template_file:
        raise UsageError("--chat-template and --chat-template-file both give the template; leave one out")
    ready_to_run(model, on, types)
    with load(model, **on) as loaded, guessing(loaded, on, **guess) as ahead:
        vocab = loaded.tokenizer.vocab
        if chat_template_file:
            template = ChatTemplate(_source(chat_template_file), str(chat_template_file), special_tokens(vocab))
        else:
            template = read_template(loaded.gguf, vocab, chat_template)
        cache = loaded.new_cache(loaded.context(context), *types)
        chat = Chat(loaded, template, system, cache, how, not no_perf, variables, ahead)
        with kept_cache(cache, saved), typed_ahead():
            if sys.stdin.isatty():
                note(HELP)
            chat.run(prompt)


def _source(path: Path) -> str:
    with os_errors(path, "read"):
        raw = path.read_bytes()
    try:
        return raw.decode()
    except UnicodeDecodeError as e:
        raise GGUFError(f"the chat template is no UTF-8 at byte {e.start}", path) from None


class Chat:
    """A conversation on the terminal."""

    def __init__(
        self,
        model: Model,
        template: ChatTemplate,
        system: str | None,
        cache: Cache,
        how: dict[str, Any],
        perf: bool,
        variables: dict[str, Any],
        ahead: Callable[[int], Ahead | None],
    ):
        self.ahead = ahead
        self.variables = variables
        self.model, self.template, self.how, self.perf = model, template, how, perf
        self.start = [{"role": "system", "content": system}] if system else []
        self.messages = list(self.start)
        self.cache = cache

    def run(self, first: str | None) -> None:
        """Messages and answers until the end of the input."""
        message = first
        while True:
            if message is None:
                message = read_message()
            if message is None or message.strip() in ("/exit", "/quit"):
                return
            word, _, rest = message.strip().partition(" ")
            if word in ("/regenerate", "/save", "/file"):
                try:
                    self.obey(word, rest.strip())
                except GgufkitError as e:
                    note(in_flags(e, command))
            elif message.strip() == "/reset":
                self.messages = list(self.start)
                note("a new conversation")
            elif message.strip() in ("/help", "/?"):
                note(HELP)
            elif message.strip():
                self.answer(message)
            message = None

    def obey(self, word: str, path: str) -> None:
        """/regenerate, /save PATH or /file PATH."""
        if word == "/regenerate":
            said = [i for i, message in enumerate(self.messages) if message["role"] == "user"]
            if not said:
                raise UsageError("nothing was said yet")
            message = self.messages[said[-1]]["content"]
            del self.messages[said[-1] :]
            self.answer(message)
        elif not path:
            raise UsageError(f"{word} needs the path of a file")
        elif word == "/file":
            self.answer(read_small(path, _MAX_FILE).decode("utf-8", "replace"))
        else:
            with AtomicFile(path) as output:
                output.file.write(json.dumps(self.messages, ensure_ascii=False, indent=1).encode())
            note(f"{len(self.messages)} messages are in {printable(path)}")

    def answer(self, message: str) -> None:
        """The model's answer to a message. A message that does not fit is taken back; the conversation goes on."""
        self.messages.append({"role": "user", "content": message})
        try:
            tokens = self.model.chat_tokens(self.template.prompt(self.messages, **self.variables))
            generation = self.model.generate(tokens, cache=self.cache, ahead=self.ahead, **self.how)
        except GgufkitError as e:
            self.messages.pop()
            if len(self.messages) == len(self.start):  # not even the first message: nothing can be said
                raise
            click.echo(f"ggufkit: {in_flags(e, command)}; /reset starts anew", err=True)
            return
        pieces: list[str] = []
        with contextlib.suppress(KeyboardInterrupt):
            for piece in generation:
                pieces.append(piece)
                say(piece)
        click.echo()
        self.messages.append({"role": "assistant", "content": "".join(pieces)})
        if generation.reason == "context":
            size = self.cache.length
            note(f"the context of {size} tokens is full; /reset, or a larger one with -c")
        if self.perf:
            note(speed(generation))
