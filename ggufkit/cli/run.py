"""`ggufkit run`: a model continues a text."""

from __future__ import annotations

from typing import Any

import click

from ggufkit.cli.progress import note
from ggufkit.cli.prompt import generation_options, prompt_options, read_stdin, say, speed
from ggufkit.errors import UsageError

__all__ = ["command"]


@click.command()
@click.argument("model")
@prompt_options
@generation_options
@click.option("--no-display-prompt", is_flag=True, help="Print only what the model writes, without the prompt.")
@click.option("--ignore-eos", is_flag=True, help="Go on after the model's end of text.")
@click.option("--no-perf", is_flag=True, help="Say nothing about speed.")
def command(
    model: str,
    prompt: str | None,
    how: dict[str, Any],
    context: int | None,
    on: dict[str, Any],
    no_display_prompt: bool,
    ignore_eos: bool,
    no_perf: bool,
) -> None:
    """Let MODEL continue a text. Flags are llama-cli's.

    The text is that of -p or -f, or else comes from stdin. Ctrl-C ends the generation.

    \b
    ggufkit run model.gguf -p 'def main(' -n 64
    ggufkit run model.gguf -p 'import os\\n' -n 32 --temp 0 --no-display-prompt
    """
    from ggufkit.cli.ahead import ready_to_run
    from ggufkit.runtime.model import load

    if prompt is None:
        prompt = read_stdin()
        if not prompt:
            raise UsageError("there is no prompt; give one with -p or -f, or on stdin")
    ready_to_run(model, on)
    with load(model, **on) as loaded:
        generation = loaded.generate(prompt, context=context, ignore_ends=ignore_eos, **how)
        try:
            if not no_display_prompt:
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
