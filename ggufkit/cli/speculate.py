"""Options of the verbs that write text, for what works beside the model: drafts that guess ahead, LoRA adapters."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from ggufkit.runtime.model import Model
    from ggufkit.runtime.speculate import Ahead

__all__ = ["adapter", "guessing", "lora_option", "speculation_options"]


def speculation_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --draft, --draft-max and --lookup; the command gets them as one dict, `guess`, for `guessing`."""

    @click.option("-md", "--draft", "--model-draft", "draft", metavar="FILE", help="A small model that guesses ahead.")
    @click.option("--lookup", is_flag=True, help="Guess what followed in the text before: for code that is edited.")
    @click.option("--draft-max", type=click.IntRange(1), default=32, show_default=True, help="Guess so many at most.")
    @functools.wraps(command)
    def wrapped(draft: str | None, lookup: bool, draft_max: int, **arguments: Any) -> Any:
        return command(guess={"draft": draft, "lookup": lookup, "most": draft_max}, **arguments)

    return wrapped


def lora_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --lora to a command that has `runtime_options`: it is one more of the arguments of `load` in `on`."""

    @click.option("--lora", multiple=True, metavar="FILE[:SCALE]", help="Run with a LoRA adapter; may be given again.")
    @functools.wraps(command)
    def wrapped(lora: tuple[str, ...], on: dict[str, Any], **arguments: Any) -> Any:
        return command(on={**on, "lora": [adapter(text) for text in lora]}, **arguments)

    return wrapped


def adapter(text: str) -> tuple[str, float]:
    """``FILE`` or ``FILE:SCALE``."""
    path, colon, scale = text.rpartition(":")
    try:
        return (path, float(scale)) if colon else (text, 1.0)
    except ValueError:
        return text, 1.0


@contextmanager
def guessing(
    model: Model, on: dict[str, Any], *, draft: str | None, lookup: bool, most: int
) -> Iterator[Callable[[int], Ahead | None]]:
    """A function that gives what guesses in a text, for a context of so many tokens.

    Parameters
    ----------
    on : the arguments of `runtime.model.load`, for the draft.
    """
    from ggufkit.runtime.model import load
    from ggufkit.runtime.speculate import Ahead, Draft, FirstToKnow, Guesser, Lookup, require_same_vocabulary

    with ExitStack() as stack:
        small = None
        if draft is not None:
            small = stack.enter_context(load(draft, **{**on, "lora": (), "mmproj": None}))
            require_same_vocabulary(model, small)
        known: list[Draft] = []  # one for all texts: what it has read it need not read again

        def start(context: int) -> Ahead | None:
            guessers: list[Guesser] = [Lookup()] if lookup else []
            if small is not None:
                known[:] = known or [Draft(small, small.new_cache(context))]
                guessers.append(known[0])
            return Ahead(FirstToKnow(*guessers), most) if guessers else None

        yield start
