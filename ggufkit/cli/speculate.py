"""Options of the verbs that may guess tokens ahead."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from ggufkit.runtime.model import Model
    from ggufkit.runtime.speculate import Ahead

__all__ = ["guessing", "speculation_options"]


def speculation_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --draft, --draft-max and --lookup; the command gets them as one dict, `guess`, for `guessing`."""

    @click.option("-md", "--draft", "--model-draft", "draft", metavar="FILE", help="A small model that guesses ahead.")
    @click.option("--lookup", is_flag=True, help="Guess what followed in the text before: for code that is edited.")
    @click.option("--draft-max", type=click.IntRange(1), default=32, show_default=True, help="Guess so many at most.")
    @functools.wraps(command)
    def wrapped(draft: str | None, lookup: bool, draft_max: int, **arguments: Any) -> Any:
        return command(guess={"draft": draft, "lookup": lookup, "most": draft_max}, **arguments)

    return wrapped


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
    from ggufkit.runtime.speculate import Ahead, Draft, Lookup, require_same_vocabulary

    with ExitStack() as stack:
        small = None
        if draft is not None:
            small = stack.enter_context(load(draft, **on))
            require_same_vocabulary(model, small)
        known: list[Draft] = []  # one for all texts: what it has read it need not read again

        def start(context: int) -> Ahead | None:
            if small is not None:
                known[:] = known or [Draft(small, small.new_cache(context))]
                return Ahead(known[0], most)
            return Ahead(Lookup(), most) if lookup else None

        yield start
