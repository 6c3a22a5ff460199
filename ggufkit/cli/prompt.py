"""What the verbs that take text share: where the prompt comes from, how tokens are chosen, what a terminal gets."""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ggufkit.errors import UsageError, os_errors

if TYPE_CHECKING:
    from ggufkit.runtime.diffusion import Diffusion
    from ggufkit.runtime.generate import Generation

__all__ = [
    "generation_options",
    "prompt_options",
    "read_prompt",
    "read_stdin",
    "runtime_options",
    "say",
    "show",
    "speed",
    "template_options",
]


def prompt_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add -p, -f and --no-escape; the command gets the text, or None without -p and -f, as `prompt`."""

    @click.option("-p", "--prompt", metavar="TEXT", help=r"The text; \n, \t, \', \", \\ and \xHH are read as escapes.")
    @click.option("-f", "--file", "path", type=click.Path(path_type=Path), help="Take the text of a file, as it is.")
    @click.option("--no-escape", is_flag=True, help="Read backslashes in -p as backslashes.")
    @functools.wraps(command)
    def wrapped(prompt: str | None, path: Path | None, no_escape: bool, **arguments: Any) -> Any:
        return command(prompt=read_prompt(prompt, path, escape=not no_escape), **arguments)

    return wrapped


def read_prompt(prompt: str | None, path: Path | None, escape: bool) -> str | None:
    """The text of -p or of the file of -f; bytes that are no UTF-8 become surrogate escapes."""
    if prompt is not None and path is not None:
        raise UsageError("-p and -f both give the text; leave one out")
    if path is not None:
        with os_errors(path, "read"):
            return path.read_bytes().decode("utf-8", "surrogateescape")
    return unescape(prompt) if prompt is not None and escape else prompt


def read_stdin() -> str:
    """The text on stdin; bytes that are no UTF-8 become surrogate escapes."""
    return sys.stdin.buffer.read().decode("utf-8", "surrogateescape")


_ESCAPE = re.compile(r"\\(n|r|t|'|\"|\\|x[0-9A-Fa-f]{1,2})")
_ESCAPED = {"n": "\n", "r": "\r", "t": "\t"}


def unescape(text: str) -> str:
    """Backslash escapes as llama.cpp's tools read them; others stay as they are."""
    return _ESCAPE.sub(
        lambda m: chr(int(m[1][1:], 16)) if m[1][0] == "x" else _ESCAPED.get(m[1], m[1]),
        text,
    )


def runtime_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --threads and --backend; the command gets them as `on`, the arguments of `runtime.model.load`."""

    @click.option(
        "-t",
        "--threads",
        type=click.IntRange(min=1),
        help="How many threads work. Default: GGUFKIT_THREADS or all CPUs.",
    )
    @click.option(
        "--backend",
        type=click.Choice(["auto", "cpu", "mlx"]),
        default="auto",
        show_default=True,
        help="What computes; auto: MLX on Apple Silicon, the CPU elsewhere.",
    )
    @functools.wraps(command)
    def wrapped(threads: int | None, backend: str, **arguments: Any) -> Any:
        return command(on={"threads": threads, "backend": backend}, **arguments)

    return wrapped


def template_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add what a chat template is given besides the messages; the command gets it as one dict, `variables`."""

    @click.option("--chat-template-kwargs", metavar="JSON", help="Give the chat template these, as a JSON object.")
    @click.option("--reasoning", type=click.Choice(["on", "off"]), help="Whether the model thinks aloud first.")
    @functools.wraps(command)
    def wrapped(chat_template_kwargs: str | None, reasoning: str | None, **arguments: Any) -> Any:
        import json

        try:
            variables = json.loads(chat_template_kwargs or "{}")
        except (ValueError, RecursionError) as e:
            raise UsageError(f"--chat-template-kwargs is not JSON: {e}") from None
        if not isinstance(variables, dict):
            raise UsageError("--chat-template-kwargs should be a JSON object, such as '{\"enable_thinking\": false}'")
        if reasoning is not None:
            variables["enable_thinking"] = reasoning == "on"
        return command(variables=variables, **arguments)

    return wrapped


# Flag of llama-cli, its type, and what it says; the name of the setting is the flag's.
_SAMPLERS: tuple[tuple[str, type, str], ...] = (
    ("--top-n-sigma", float, "Choose among tokens within this many standard deviations of the best logit; -1: all."),
    ("--typical-p", float, "Choose among the most typical tokens that have this probability together; 1: all."),
    ("--xtc-probability", float, "How often the best tokens but the last that reach the threshold are left out."),
    ("--xtc-threshold", float, "The probability that they reach. Default: 0.1."),
    ("--dynatemp-range", float, "How far the temperature goes down and up with the entropy."),
    ("--dynatemp-exponent", float, "How the entropy counts in that. Default: 1."),
    ("--dry-multiplier", float, "DRY: what a token that goes on with a repetition loses; 0: nothing."),
    ("--dry-base", float, "DRY: how much more for each further token. Default: 1.75."),
    ("--dry-allowed-length", int, "DRY: how many tokens may repeat. Default: 2."),
    ("--dry-penalty-last-n", int, "DRY: in how many tokens repetitions are looked for; -1: all."),
    ("--mirostat", int, "Keep the surprise of the text even: version 1 or 2 of Mirostat; 0: do not."),
    ("--mirostat-ent", float, "Mirostat: the surprise in bits. Default: 5."),
    ("--mirostat-lr", float, "Mirostat: how fast it learns. Default: 0.1."),
)
_SETTINGS = {"mirostat_ent": "mirostat_tau", "mirostat_lr": "mirostat_eta"}


def sampler_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the samplers that few ask for; the command gets their settings as one dict, `more`."""

    @functools.wraps(command)
    def wrapped(samplers: str | None, logit_bias: tuple[str, ...], **arguments: Any) -> Any:
        names = [flag[2:].replace("-", "_") for flag, _, _ in _SAMPLERS]
        more: dict[str, Any] = {_SETTINGS.get(name, name): arguments.pop(name) for name in names}
        if samplers:
            more["samplers"] = tuple(name.strip() for name in samplers.replace(";", ",").split(",") if name.strip())
        if logit_bias:
            more["logit_bias"] = dict(map(_bias, logit_bias))
        return command(more=more, **arguments)

    for flag, kind, text in reversed(_SAMPLERS):
        wrapped = click.option(flag, type=kind, help=text)(wrapped)
    order = "Use these samplers in this order: top_k;top_p;temperature, for example."
    wrapped = click.option("--samplers", metavar="NAMES", help=order)(wrapped)
    bias = "Add to a token's logit: 15043+1, 15043-inf."
    return click.option("-l", "--logit-bias", multiple=True, metavar="TOKEN±BIAS", help=bias)(wrapped)


def _bias(text: str) -> tuple[int, float]:
    """``15043+1`` → (15043, 1.0)"""
    found = re.fullmatch(r"([0-9]{1,9})([+-](?:inf|[0-9.]{1,20}))", text)
    try:
        if found:
            return int(found[1]), float(found[2])
    except ValueError:
        pass
    raise UsageError(f"{text!r} should be a token's number and what to add, such as 15043+1 or 15043-inf")


def grammar_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add what a text may have to obey; the command gets it as `grammar`, or None."""

    @click.option(
        "-j", "--json-schema", metavar="JSON", help="The text is JSON that obeys this schema; {} for any JSON."
    )
    @click.option(
        "-jf",
        "--json-schema-file",
        type=click.Path(path_type=Path),
        help="The text is JSON by the schema in this file.",
    )
    @click.option("--grammar", "rules", metavar="TEXT", help="The text obeys this grammar, GBNF or Lark.")
    @click.option(
        "--grammar-file", type=click.Path(path_type=Path), help="The text obeys this file's grammar, GBNF or Lark."
    )
    @functools.wraps(command)
    def wrapped(
        json_schema: str | None,
        json_schema_file: Path | None,
        rules: str | None,
        grammar_file: Path | None,
        **arguments: Any,
    ) -> Any:
        given = [value for value in (json_schema, json_schema_file, rules, grammar_file) if value is not None]
        if len(given) > 1:
            raise UsageError("--json-schema, --grammar and their files each say what the text obeys; give one of them")
        if not given:
            return command(grammar=None, **arguments)
        from ggufkit.runtime.constrain.grammar import MAX_CHARACTERS, Grammar
        from ggufkit.storage.regular import read_small

        [text] = given
        if isinstance(text, Path):
            text = read_small(text, MAX_CHARACTERS).decode("utf-8", "replace")
        parse = Grammar.parse if rules is not None or grammar_file is not None else Grammar.json_schema
        return command(grammar=parse(text), **arguments)

    return wrapped


def generation_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of generation; the command gets `context`, `how` for `Model.generate`, and `on` for `load`."""

    @click.option(
        "-n", "--predict", "--n-predict", type=int, default=-1, help="Generate at most this many tokens; -1: no limit."
    )
    @click.option(
        "-c",
        "--ctx-size",
        type=int,
        default=0,
        help="How many tokens the context holds. Default: the model's, up to 4096.",
    )
    @runtime_options
    @click.option(
        "-s", "--seed", type=int, default=-1, help="The same seed gives the same text; -1: another each time."
    )
    @click.option(
        "--temp", "--temperature", type=float, help="Temperature; 0 takes the best token always. Default: 0.8."
    )
    @click.option("--top-k", type=int, help="Choose among this many best tokens; 0: all. Default: 40.")
    @click.option(
        "--top-p",
        type=float,
        help="Choose among the fewest tokens that have this probability together; 1: all. Default: 0.95.",
    )
    @click.option(
        "--min-p",
        type=float,
        help="Choose among tokens with at least this share of the best one's probability; 0: all. Default: 0.05.",
    )
    @click.option("--repeat-penalty", type=float, help="Make recent tokens unlikelier; 1: do not. Default: 1.")
    @click.option(
        "--repeat-last-n", type=int, help="How many tokens the penalties take as recent; -1: all. Default: 64."
    )
    @click.option("--presence-penalty", type=float, help="Taken off the logit of recent tokens, once. Default: 0.")
    @click.option(
        "--frequency-penalty",
        type=float,
        help="Taken off the logit of recent tokens, for each time they occur. Default: 0.",
    )
    @sampler_options
    @click.option(
        "-r",
        "--reverse-prompt",
        "--stop",
        "stop",
        multiple=True,
        metavar="TEXT",
        help="End the generation before this text.",
    )
    @click.option("--special", is_flag=True, help="Show control tokens in the text.")
    @grammar_options
    @functools.wraps(command)
    def wrapped(predict: int, ctx_size: int, seed: int, stop: tuple[str, ...], special: bool, **rest: Any) -> Any:
        more = rest.pop("more")
        sampling = more | {
            name: rest.pop(option)
            for option, name in (
                ("temp", "temperature"),
                *((name, name) for name in ("top_k", "top_p", "min_p", "repeat_penalty", "repeat_last_n")),
                *((name, name) for name in ("presence_penalty", "frequency_penalty")),
            )
        }
        how = {
            "max_tokens": predict if predict >= 0 else None,
            "stop": tuple(unescape(text) for text in stop),
            "seed": seed if seed >= 0 else None,
            "show_special": special,
            "grammar": rest.pop("grammar"),
            **sampling,
        }
        return command(how=how, context=ctx_size or None, **rest)

    return wrapped


def say(text: str) -> None:
    """A part of the model's text on stdout, at once."""
    click.echo(show(text), nl=False)


_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def show(text: str) -> str:
    """The text for stdout: what is no character as U+FFFD, and on a terminal without what could steer it."""
    text = text.encode("utf-8", "replace").decode()
    if not sys.stdout.isatty():
        return text
    return _CONTROLS.sub(lambda m: f"\\x{ord(m[0]):02x}", text)


def speed(generation: Generation | Diffusion) -> str:
    """One line on what was done and how fast."""
    new = len(generation.prompt) - generation.reused
    line = f"{len(generation.prompt)} prompt tokens"
    if generation.reused:
        line += f", {generation.reused} of them known"
    if generation.prompt_seconds:  # and not interrupted before
        line += f" ({new / generation.prompt_seconds:.1f}/s)"
    n = len(generation.tokens)
    line += f", {n} generated"
    if generation.seconds and n > 1:
        line += f" ({(n - 1) / generation.seconds:.1f}/s)"
    if generation.ahead is not None:
        line += f", {generation.ahead.right} of {generation.ahead.guessed} guesses right"
    return line
