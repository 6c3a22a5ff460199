"""Options of the verbs that take images and sound."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

__all__ = ["media_options"]


def media_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --mmproj, one more argument of `load` in `on`, and --image and --audio, whose files are `media`."""

    @click.option("--mmproj", "-mm", metavar="FILE", help="The encoders with which the model sees or hears.")
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
    def wrapped(mmproj: str | None, media: tuple[Path, ...], on: dict[str, Any], **arguments: Any) -> Any:
        return command(media=media, on={**on, "mmproj": mmproj}, **arguments)

    return wrapped
