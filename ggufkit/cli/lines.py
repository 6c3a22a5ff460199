"""Messages that a user types, or that come from a pipe."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Iterator

import click

__all__ = ["read_message", "typed_ahead"]


@contextlib.contextmanager
def typed_ahead() -> Iterator[None]:
    """What is typed while the model answers stays for the next message: Ctrl-C does not throw it away."""
    with contextlib.suppress(ImportError):
        import termios

        if sys.stdin.isatty():
            before = termios.tcgetattr(sys.stdin)
            kept = [*before[:3], before[3] | termios.NOFLSH, *before[4:]]
            termios.tcsetattr(sys.stdin, termios.TCSANOW, kept)
            try:
                yield
            finally:
                termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
            return
    yield


def read_message() -> str | None:
    """The next message, or None at the end of the input: a line, and those after a backslash at its end.

    Ctrl-C keeps what was typed and shows it again; on an empty line it is the end.
    """
    read = _typed if sys.stdin.isatty() else _piped
    lines: list[str] = []
    while (line := read(bool(lines))) is not None:
        if not line.endswith("\\"):
            return "\n".join([*lines, line])
        lines.append(line[:-1])
    return "\n".join(lines) if lines else None


def _piped(_: bool) -> str | None:
    line = sys.stdin.readline()
    return line.rstrip("\n") if line else None


def _typed(goes_on: bool) -> str | None:
    try:
        import readline
    except ImportError:  # no line editor: the terminal's own
        readline = None  # type: ignore[assignment]
    shown = ""
    while True:
        if readline is not None:
            readline.set_startup_hook(functools.partial(readline.insert_text, shown))
        try:
            return input("  " if goes_on else "> ")
        except (EOFError, KeyboardInterrupt) as e:
            click.echo(err=True)
            shown = readline.get_line_buffer() if readline is not None else ""
            if isinstance(e, EOFError) or not shown:
                return None
        finally:
            if readline is not None:
                readline.set_startup_hook(None)
