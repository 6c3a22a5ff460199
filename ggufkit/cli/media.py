"""Options of the verbs that take images and sound."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

__all__ = ["media_options", "mmproj_option"]


def mmproj_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --mmproj to a command that has `runtime_options`: it is one more of the arguments of `load` in `on`."""

    @click.option("--mmproj", "-mm", metavar="FILE", help="The encoders with which the model sees or hears.")
    @functools.wraps(command)
    def wrapped(mmproj: str | None, on: dict[str, Any], **arguments: Any) -> Any:
        return command(on={**on, "mmproj": mmproj}, **arguments)

    return wrapped


def media_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --mmproj, see `mmproj_option`, and --image and --audio, whose files the command gets as `media`."""

    @mmproj_option
    @click.option(
        "--image",
        "--audio",
        "media",
        multiple=True,
        type=click.Path(path_type=Path),
        help="An image, or sound in a WAV file; may be given again. They stand where the text has <__media__>, in "
        "their order, or before it.",
    )
    @functools.wraps(command)
    def wrapped(media: tuple[Path, ...], **arguments: Any) -> Any:
        return command(media=media, **arguments)

    return wrapped
