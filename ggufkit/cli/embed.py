"""`ggufkit embed`: llama-embedding's work, with its flags."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ggufkit.cli.common import echo_json
from ggufkit.cli.prompt import read_prompt, read_stdin, runtime_options
from ggufkit.errors import UsageError

if TYPE_CHECKING:
    from ggufkit.runtime.model import Model

__all__ = ["command"]


@click.command()
@click.argument("model")
@click.option("-p", "--prompt", metavar="TEXT", help="The text to read.")
@click.option("-f", "--file", "path", type=click.Path(path_type=Path), help="Take the text of a file.")
@click.option(
    "--embd-separator",
    "separator",
    default="\n",
    show_default="newline",
    help="What separates the texts of -p, -f or stdin.",
)
@click.option(
    "--pooling",
    type=click.Choice(["none", "mean", "cls", "last", "rank"]),
    help="How the vectors of tokens become that of the text; default the model's own way. rank: what the model's "
    "classification head says, of a text, or of a query and a document with a tab between.",
)
@click.option(
    "--embd-normalize",
    "power",
    type=int,
    default=2,
    show_default=True,
    help="Divide each vector by a norm: 2 its length, 1 the sum of absolute values, p the p-norm; "
    "0 makes the greatest number 32760, -1 leaves vectors as they are.",
)
@runtime_options
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def command(
    model: str,
    prompt: str | None,
    path: Path | None,
    separator: str,
    pooling: str | None,
    power: int,
    on: dict[str, Any],
    as_json: bool,
) -> None:
    """Turn texts into vectors, a line of numbers each; one text a line of -p, -f or stdin.

    \b
    ggufkit embed bge-small.gguf -p 'What is a GGUF file?'
    ggufkit embed bge-small.gguf -f questions.txt --json
    ggufkit embed --pooling rank bge-reranker.gguf -p $'What is a GGUF file?\tA file format of models.'
    """
    from ggufkit.cli.ahead import ready_to_run
    from ggufkit.runtime.model import load, normalized

    text = read_prompt(prompt, path, escape=True)
    text = read_stdin() if text is None else text
    texts = text.split(separator) if separator else [text]
    if len(texts) > 1 and not texts[-1]:
        texts.pop()  # what follows the last newline of a file
    if texts == [""]:
        raise UsageError("there is no text; give one with -p or -f, or on stdin")
    found = []
    ready_to_run(model, on)
    with load(model, **on) as loaded:
        ranks = (pooling or loaded.hyper.pooling) == "rank"
        labels = list(loaded.weights.head.labels) if loaded.weights.head is not None else []
        tokens = [_tokens(loaded, index, one, ranks) for index, one in enumerate(texts)]
        for index, made in enumerate(loaded.embed_all(tokens, pooling)):
            # (width,), (tokens, width) without pooling, (outputs,) of a head
            vectors = made if ranks else normalized(made, power)
            if as_json:
                numbers = {"scores": vectors.tolist(), "labels": labels} if ranks else {"embedding": vectors.tolist()}
                found.append({"index": index, "tokens": len(tokens[index]), **numbers})
                continue
            for vector in vectors.reshape(-1, vectors.shape[-1]):
                click.echo(" ".join(f"{value:.7g}" for value in vector))
    if as_json:
        echo_json({"model": model, "data": found})


def _tokens(model: Model, index: int, text: str, ranks: bool) -> list[int]:
    query, tab, document = text.partition("\t")
    tokens = model.pair_tokens(query, document) if ranks and tab else model.tokenizer.encode(text)
    if not tokens:
        raise UsageError(f"text {index} is empty, and the model has no token to mark its beginning")
    return tokens
