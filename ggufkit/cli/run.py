"""`ggufkit run`: a model continues a text."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from ggufkit.cli.media import media_options
from ggufkit.cli.progress import note
from ggufkit.cli.prompt import generation_options, prompt_options, read_stdin, say, speed, template_options
from ggufkit.cli.speculate import guessing, lora_option, speculation_options
from ggufkit.cli.text import cache_options, kept_cache, prompt_cache_option
from ggufkit.errors import UsageError

if TYPE_CHECKING:
    from ggufkit.runtime.kv.cache import Cache

__all__ = ["command"]


@click.command()
@click.argument("model")
@prompt_options
@click.option("--chat", is_flag=True, help="Give the text to the model as a message, through its chat template.")
@template_options
@generation_options
@lora_option
@media_options
@cache_options
@speculation_options
@prompt_cache_option
@click.option("--passes", type=int, help="Passes over each 32 tokens of a text by diffusion; 16 unless given.")
@click.option("--no-display-prompt", is_flag=True, help="Print only what the model writes, without the prompt.")
@click.option("--ignore-eos", is_flag=True, help="Go on after the model's end of text.")
@click.option("--no-perf", is_flag=True, help="Say nothing about speed.")
def command(
    model: str,
    prompt: str | None,
    chat: bool,
    variables: dict[str, Any],
    how: dict[str, Any],
    context: int | None,
    on: dict[str, Any],
    media: tuple[Path, ...],
    types: tuple[str, str],
    guess: dict[str, Any],
    saved: Path | None,
    passes: int | None,
    no_display_prompt: bool,
    ignore_eos: bool,
    no_perf: bool,
) -> None:
    """Let MODEL continue a text. Flags are llama-cli's.

    The text is that of -p or -f, or else comes from stdin. Ctrl-C ends the generation.

    \b
    ggufkit run model.gguf -p 'def main(' -n 64
    ggufkit run model.gguf --chat -p 'What is GGUF?' --reasoning off
    ggufkit run model.gguf -f code.py -n 256 --lookup
    ggufkit run model.gguf -f long.txt -n 64 --cache small --prompt-cache long.cache
    ggufkit run model.gguf -p 'import os\\n' -n 32 --temp 0 --no-display-prompt
    ggufkit run gemma3.gguf --mmproj mmproj-gemma3.gguf --image cat.png --chat -p 'What is this?'
    """
    from ggufkit.cli.ahead import ready_to_run
    from ggufkit.runtime.chat import read_template
    from ggufkit.runtime.model import load
    from ggufkit.runtime.seen import with_markers

    if prompt is None:
        prompt = read_stdin()
        if not prompt:
            raise UsageError("there is no prompt; give one with -p or -f, or on stdin")
    ready_to_run(model, on, types)
    with load(model, **on) as loaded, guessing(loaded, on, **guess) as ahead:
        given: str | list[int] = prompt
        if chat:
            template = read_template(loaded.gguf, loaded.tokenizer.vocab)
            said = with_markers(prompt, len(media))
            text = template.prompt([{"role": "user", "content": said}], **variables)
            given = loaded.chat_tokens(text, media)
        elif media:
            given = loaded.tokens(prompt, media)
        how |= {"ignore_ends": ignore_eos, "ahead": ahead, "passes": passes}
        generation = loaded.generate(given, context=context, types=types, **how)
        with kept_cache(cast("Cache", generation.cache), saved):
            try:
                if not (no_display_prompt or chat):
                    say(prompt)
                for piece in generation:
                    say(piece)
            finally:
                click.echo()
    if generation.reason == "context":
        size = generation.cache.length
        note(f"the context of {size} tokens is full; give a larger one with -c")
    if not no_perf:
        note(speed(generation))
