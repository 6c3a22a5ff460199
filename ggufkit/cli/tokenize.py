"""`ggufkit tokenize`: the tokens of a text."""

from __future__ import annotations

from typing import Any

import click

from ggufkit.cli.common import echo_json, model_options, open_model
from ggufkit.cli.prompt import prompt_options, read_stdin
from ggufkit.errors import printable

__all__ = ["command"]


@click.command()
@click.argument("model")
@prompt_options
@click.option("--ids", is_flag=True, help="Print only the ids, as [1, 2, 3].")
@click.option("--no-bos", is_flag=True, help="Leave out the BOS, EOS or separator that the model wants.")
@click.option("--no-parse-special", is_flag=True, help="Read control tokens in the text (<|im_start|>) as letters.")
@click.option("--show-count", is_flag=True, help="Print the number of tokens, too.")
@click.option("--json", "as_json", is_flag=True, help="Ids and texts as JSON.")
@model_options
def command(
    model: str,
    prompt: str | None,
    ids: bool,
    no_bos: bool,
    no_parse_special: bool,
    show_count: bool,
    as_json: bool,
    how: dict[str, Any],
) -> None:
    """Show the tokens of a text as MODEL sees it: the ids and texts that llama-tokenize shows.

    The text is that of -p or -f, or else comes from stdin. Only the file's header is read.

    \b
    ggufkit tokenize model.gguf -p 'def main():\\n'
    ggufkit tokenize model.gguf -f prompt.txt --ids
    """
    from ggufkit.tokenizer.run.tokenizer import load_tokenizer

    with open_model(model, how) as gguf:
        tokenizer = load_tokenizer(gguf)
    if prompt is None:
        prompt = read_stdin()
    tokens = tokenizer.encode(prompt, add_special=not no_bos, parse_special=not no_parse_special)
    if as_json:
        texts = [tokenizer.piece(token, special=True).decode("utf-8", "replace") for token in tokens]
        echo_json({"count": len(tokens), "tokens": [{"id": i, "text": t} for i, t in zip(tokens, texts, strict=True)]})
        return
    if ids:
        click.echo(str(tokens))
    else:
        lines = (
            f"{token:6d} -> '{printable(tokenizer.piece(token, special=True).decode('utf-8', 'replace'))}'"
            for token in tokens
        )
        for line in lines:
            click.echo(line)
    if show_count:
        click.echo(f"Total number of tokens: {len(tokens)}")
