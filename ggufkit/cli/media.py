"""Options of the verbs that take images and sound."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

__all__ = ["media_options"]


def media_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --mmproj, one more argument of `load` in `on`, and --image; the command gets the files as `media`."""

    @click.option("--mmproj", "-mm", metavar="FILE", help="The encoders with which the model sees or hears.")
    @click.option(
        "--image",
        "media",
        multiple=True,
        type=click.Path(path_type=Path),
        help="Show the model an image; may be given again. They stand where the text has <__media__>, or before it.",
    )
    @functools.wraps(command)
    def wrapped(mmproj: str | None, media: tuple[Path, ...], on: dict[str, Any], **arguments: Any) -> Any:
        return command(media=media, on={**on, "mmproj": mmproj}, **arguments)

    return wrapped
