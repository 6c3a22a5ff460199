"""`ggufkit set`: change metadata, tokens and special tokens."""

from __future__ import annotations

from typing import Any

import click

from ggufkit.cli.editing import edit_options, editing, parse_value, read_text, value_of_text
from ggufkit.errors import UsageError, printable

__all__ = ["command"]

_TEMPLATE = "tokenizer.chat_template"


@click.command()
@click.argument("file")
@click.argument("pairs", nargs=-1, metavar="[KEY=TYPE:VALUE]…")
@click.option(
    "--from-file", nargs=2, multiple=True, metavar="KEY PATH", help="Set KEY to the text, or the array, in a file."
)
@click.option("--token", nargs=2, multiple=True, metavar="ID TEXT", help="Change the text of a token.")
@click.option(
    "--special",
    multiple=True,
    metavar="NAME=TOKEN",
    help="Make a token, given by text or ID, a special one: bos, eos and others.",
)
@click.option(
    "--special-token",
    nargs=2,
    multiple=True,
    metavar="NAME TEXT",
    help="Set a special token (bos, eos, …) by its text.",
)
@click.option(
    "--special-token-by-id",
    nargs=2,
    multiple=True,
    metavar="NAME ID",
    help="Set a special token (bos, eos, …) by its ID.",
)
@click.option("--chat-template", metavar="TEXT", help="Set the chat template.")
@click.option("--chat-template-file", metavar="PATH", help="Set the chat template from a file.")
@edit_options
def command(
    file: str,
    pairs: tuple[str, ...],
    from_file: tuple[tuple[str, str], ...],
    token: tuple[tuple[str, str], ...],
    special: tuple[str, ...],
    special_token: tuple[tuple[str, str], ...],
    special_token_by_id: tuple[tuple[str, str], ...],
    chat_template: str | None,
    chat_template_file: str | None,
    how: dict[str, Any],
) -> None:
    """Change the metadata of FILE, in its place when the header still fits there.

    TYPE is u8, i8, u16, i16, u32, i32, u64, i64, f32, f64, bool, str or arr[TYPE]; a key that exists has one already.
    An array is JSON, or @PATH: a file with JSON or an item a line.

    \b
    ggufkit set model.gguf general.name=Tiny llama.context_length=8192 my.note=str:hello
    ggufkit set model.gguf --from-file tokenizer.chat_template template.jinja --spare 64K
    ggufkit set model.gguf --special eos='<|im_end|>' --token 301 '<|tool|>' --force
    """
    assignments = [split(pair) for pair in pairs]
    specials = [(name, number_or_text(text)) for name, text in map(split, special)]
    specials += [*special_token, *((name, number(text)) for name, text in special_token_by_id)]
    tokens = [(number(i), text) for i, text in token]
    texts = [(key, read_text(path)) for key, path in from_file]
    if chat_template is not None:
        texts.append((_TEMPLATE, chat_template))
    if chat_template_file is not None:
        texts.append((_TEMPLATE, read_text(chat_template_file)))
    if not (assignments or specials or tokens or texts or how["spare"] is not None):
        raise UsageError("nothing to set: give KEY=VALUE, --from-file, --token, --special or --spare")
    with editing(file, how) as e:
        for key, text in assignments:
            e.set(key, parse_value(text, key, e.fields.get(key), e.fields))
        for key, text in texts:
            e.set(key, value_of_text(text, key, e.fields.get(key)))
        for i, text in tokens:
            e.set_token(i, text)
        for name, which in specials:
            e.set_special(name, which)


def split(pair: str) -> tuple[str, str]:
    key, sign, text = pair.partition("=")
    if not sign or not key:
        raise UsageError(f"{printable(pair)} is no KEY=VALUE")
    return key, text


def number(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 12):
        raise UsageError(f"{printable(text)} is no token ID")
    return int(text)


def number_or_text(text: str) -> int | str:
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 12 else text
