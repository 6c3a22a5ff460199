"""`ggufkit new-metadata`: a copy of a model with other metadata, with the flags of gguf-new-metadata."""

from __future__ import annotations

from typing import Any

import click

from ggufkit.cli.common import model_options, open_model
from ggufkit.cli.editing import parse_value, read_text
from ggufkit.errors import UsageError, printable
from ggufkit.gguf.edit.tokens import TOKENS, find_token, special_key
from ggufkit.gguf.header import Value, ValueType
from ggufkit.gguf.reader import GGUF

__all__ = ["command"]

TEMPLATE = "tokenizer.chat_template"


@click.command("new-metadata")
@click.argument("source", metavar="GGUF_IN")
@click.argument("target", metavar="GGUF_OUT")
@click.option("--general-name", metavar="TEXT", help="Set general.name.")
@click.option("--general-description", metavar="TEXT", help="Set general.description.")
@click.option("--chat-template", metavar="TEXT", help="Set the chat template.")
@click.option("--chat-template-file", metavar="PATH", help="Set the chat template from a file.")
@click.option("--chat-template-config", metavar="PATH", help="Set the chat template from a tokenizer_config.json.")
@click.option("--pre-tokenizer", metavar="NAME", help="Set tokenizer.ggml.pre.")
@click.option("--set", "pairs", multiple=True, metavar="KEY=TYPE:VALUE", help="Set any key, as `ggufkit set` does.")
@click.option("--remove-metadata", "--rm", "removed", multiple=True, metavar="KEY", help="Leave a key out.")
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
@click.option("--force", is_flag=True, help="Replace GGUF_OUT if it exists.")
@model_options
def command(
    source: str,
    target: str,
    pairs: tuple[str, ...],
    removed: tuple[str, ...],
    special_token: tuple[tuple[str, str], ...],
    special_token_by_id: tuple[tuple[str, str], ...],
    force: bool,
    how: dict[str, Any],
    **texts: str | None,
) -> None:
    """Copy the model GGUF_IN to GGUF_OUT with other metadata.

    GGUF_IN may be split or on a server; GGUF_OUT is one file. To change a file in its place see `ggufkit set`.

    \b
    ggufkit new-metadata model.gguf new.gguf --general-name Tiny --special-token eos '<|im_end|>'
    """
    from ggufkit.cli.progress import byte_bar
    from ggufkit.gguf.copy import copy_model
    from ggufkit.gguf.shards import SPLIT_KEYS

    with open_model(source, how) as model:
        changes = {**text_changes(texts), **special_changes(model, special_token, special_token_by_id)}
        for pair in pairs:
            key, sign, text = pair.partition("=")
            if not sign:
                raise UsageError(f"{printable(pair)} is no KEY=VALUE")
            changes[key] = parse_value(text, key, model.fields.get(key))
        if unknown := [key for key in removed if key not in model.fields]:
            raise UsageError(f"{printable(model.path)} has no key {printable(unknown[0])} to leave out")
        metadata: dict[str, Any] = dict(model.fields)
        for key in (*removed, *(SPLIT_KEYS if len(model.parts) > 1 else ())):
            metadata.pop(key, None)
        if TEMPLATE in changes:  # it replaces all that there are
            metadata = {key: value for key, value in metadata.items() if not key.startswith(TEMPLATE)}
        total = sum(info.nbytes for info in model.info.values())
        with byte_bar(total, "copying") as advance:
            copy_model(model, target, {**metadata, **changes}, force=force, advance=advance)
    click.echo(target)


def text_changes(texts: dict[str, str | None]) -> dict[str, Value]:
    """The keys that have an option of their own."""
    template = texts["chat_template"]
    if (path := texts["chat_template_file"]) is not None:
        template = read_text(path)
    if (path := texts["chat_template_config"]) is not None:
        template = config_template(path)
    found = {
        "general.name": texts["general_name"],
        "general.description": texts["general_description"],
        "tokenizer.ggml.pre": texts["pre_tokenizer"],
        TEMPLATE: template,
    }
    return {key: Value(ValueType.STRING, text) for key, text in found.items() if text is not None}


def config_template(path: str) -> str:
    import json

    try:
        template = json.loads(read_text(path)).get("chat_template")
    except (ValueError, AttributeError) as e:
        raise UsageError(f"{printable(path)} is not a JSON object: {printable(e)}") from None
    if not isinstance(template, str):
        raise UsageError(f"{printable(path)} has no chat_template, or several")
    return template


def special_changes(
    model: GGUF, by_text: tuple[tuple[str, str], ...], by_id: tuple[tuple[str, str], ...]
) -> dict[str, Value]:
    if not (by_text or by_id):
        return {}
    tokens = model.fields.get(TOKENS)
    if tokens is None or tokens.item_type is not ValueType.STRING:
        raise UsageError(f"{printable(model.path)} has no tokens")
    chosen: dict[str, int] = {}
    for name, text in by_text:
        ids = find_token(tokens, text)
        if not ids:
            raise UsageError(f"no token is {printable(repr(text))}")
        if len(ids) > 1:
            listed = ", ".join(map(str, ids[:10]))
            raise UsageError(f"the tokens {listed} are all {printable(repr(text))}; choose with --special-token-by-id")
        chosen[special_key(name)] = ids[0]
    for name, text in by_id:
        if not (text.isascii() and text.isdecimal() and int(text) < len(tokens)):
            raise UsageError(f"{printable(text)} is no token: they are 0 to {len(tokens) - 1}")
        chosen[special_key(name)] = int(text)
    return {key: Value(ValueType.UINT32, number) for key, number in chosen.items()}
