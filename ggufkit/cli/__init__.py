"""The command line: `ggufkit VERB`, one module per verb.

`main` is the console script. A verb's module is imported when the verb is called, so that `ggufkit inspect`
starts without NumPy. Errors leave here as one line on stderr: exit 1 for a `GgufkitError` or a failed check,
2 for wrong usage, 130 after Ctrl-C.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import os
import sys
import warnings
from typing import TYPE_CHECKING, Any

import click

from ggufkit import __version__
from ggufkit.errors import GgufkitError, UsageError

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

__all__ = ["ALIASES", "GROUPS", "VERBS", "cli", "main"]

# What `ggufkit --help` shows: the verbs by what they are for, each with its one line. A verb's module is
# `ggufkit.cli.<verb>` and defines `command`, a `click.Command`; "-" in a verb is "_" in the module's name.
GROUPS: dict[str, dict[str, str]] = {
    "Make": {
        "convert": "Convert a Hugging Face checkpoint to GGUF.",
        "quantize": "Make a model smaller, with llama-quantize's presets and bytes.",
        "imatrix": "Make an importance matrix: which weights matter when a model reads a text.",
        "calibrate": "Learn from a text how to quantize a model well, and at which cost.",
        "export-mlx": "Write a model as a folder for mlx-lm.",
        "export-hf": "Write a model as a folder for transformers and vLLM.",
    },
    "Look": {
        "inspect": "Show what is in a model.",
        "explore": "Write a page about a model: its bytes, types, weights, tokens, memory.",
        "get": "Print one metadata value.",
        "validate": "Look for everything that is wrong with a model.",
        "diff": "Compare two models.",
        "hash": "Hash a model's tensors, layers and all of it, or check a manifest.",
        "plan": "Show which type each tensor would get, why, and how large the file would be.",
        "fit": "Show how much memory a model takes, on which device it fits, and with which context.",
        "tokenize": "Show the tokens of a text as a model sees it.",
    },
    "Change": {
        "set": "Change metadata, tokens and special tokens.",
        "rm": "Remove metadata or tensors.",
        "rename": "Give a metadata key or a tensor another name.",
        "undo": "Take back the last edit of a file.",
        "new-metadata": "Copy a model with other metadata.",
        "split": "Split a model into several files.",
        "merge": "Merge the files of a split model into one.",
        "endian": "Write a model in the other byte order.",
    },
    "Run": {
        "run": "Let a model continue a text.",
        "chat": "Talk to a model.",
        "embed": "Turn texts into vectors.",
        "serve": "Serve models over HTTP, to the clients that people have.",
    },
    "Measure": {
        "bench": "Measure how fast a model runs, in tokens per second.",
        "perplexity": "Measure how well a model predicts a text, or how far it is from another.",
        "compare": "Compare models of one source: size, KL divergence, perplexity, in a table and a plot.",
        "simulate": "Write a page that shows what each way to quantize does to a block of weights.",
        "formats": "List the tensor types, or measure what each would do to a model's weights.",
        "verify": "Check that a quantized model is exactly what its source gives.",
    },
    "Help": {
        "help": "Read the manual: help lists its topics.",
        "completion": "Print what completes verbs, options and files in a shell.",
        "warm": "Compile the kernels that a model needs, or all of them.",
        "doctor": "Show what ggufkit sees of this machine, for a report.",
    },
}
VERBS = {verb: line for verbs in GROUPS.values() for verb, line in verbs.items()}
ALIASES = {"info": "inspect", "show": "inspect", "ls": "inspect"}


class _Verbs(click.Group):
    """A group that imports the module of a verb only when it is called.

    Attributes
    ----------
    called : the verb that was called last, in whose flags the hint of an error is shown.
    """

    called: click.Command | None = None

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        verb = ALIASES.get(name, name)
        if verb not in VERBS:
            return None
        command: click.Command = importlib.import_module(f"ggufkit.cli.{verb.replace('-', '_')}").command
        command.name = verb
        return with_common_options(command)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        width = max(map(len, VERBS))
        for group, verbs in GROUPS.items():
            with formatter.section(group):
                formatter.write_dl([(verb.ljust(width), line) for verb, line in verbs.items()])

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        finally:
            self.called = self.get_command(ctx, ctx.invoked_subcommand or "")

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in VERBS and args[0] not in ALIASES and not args[0].startswith("-"):
            from difflib import get_close_matches

            near = get_close_matches(args[0], VERBS, n=2)
            hint = f" Did you mean {' or '.join(near)}?" if near else " `ggufkit --help` lists the verbs."
            ctx.fail(f"No such command {args[0]!r}.{hint}")
        return super().resolve_command(ctx, args)


def _be_quiet(ctx: click.Context, option: click.Parameter, wanted: bool) -> None:
    if wanted:
        ctx.find_root().meta["ggufkit.quiet"] = True


def _quiet_option() -> click.Option:
    return click.Option(
        ["-q", "--quiet"],
        is_flag=True,
        expose_value=False,
        callback=_be_quiet,
        help="Nothing on stderr but errors: no progress, no notes.",
    )


def with_common_options(command: click.Command) -> click.Command:
    """The command with what every verb has: --quiet, and file names where a shell completes an argument."""
    if any("--quiet" in option.opts for option in command.params):
        return command
    short = any("-q" in option.opts for option in command.params)
    quiet = _quiet_option()
    if short:
        quiet.opts = ["--quiet"]
    command.params.append(quiet)
    for parameter in command.params:
        if isinstance(parameter, click.Argument) and parameter.type is click.STRING:
            parameter._custom_shell_complete = parameter._custom_shell_complete or _file_names
    return command


def _file_names(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    from click.shell_completion import CompletionItem

    return [CompletionItem(incomplete, type="file")]


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="ggufkit")
def cli() -> None:
    """Convert, inspect, patch and run GGUF models.

    `ggufkit VERB --help` tells about a verb, `ggufkit help` lists the topics of the manual.
    """


cli.params.append(_quiet_option())


def main(args: list[str] | None = None) -> Any:
    """Run the command line with `args` (default: `sys.argv[1:]`) and exit."""
    # To look for garbage takes a quarter of the time to import Numba, and a sixth of a second at the end.
    gc.set_threshold(200_000)
    # NumPy says what it thinks of numbers in Python's own words; ours come where they are used.
    warnings.simplefilter("ignore", RuntimeWarning)
    atexit.register(gc.freeze)
    try:
        cli.main(args=args, prog_name="ggufkit", standalone_mode=False)
        if sys.stdout is not None:  # started with a closed stdout
            sys.stdout.flush()
    except click.ClickException as e:
        e.show()
        sys.exit(e.exit_code)
    except GgufkitError as e:
        from ggufkit.cli.hints import in_flags

        click.echo(f"ggufkit: {in_flags(e, cli.called)}", err=True)
        sys.exit(2 if isinstance(e, UsageError) else 1)
    except (KeyboardInterrupt, click.Abort) as e:
        # click turns the one into the other. After long work the message says how to continue.
        how = str(e.__cause__ or e)
        click.echo(f"ggufkit: interrupted{f'; {how}' if how else ''}", err=True)
        sys.exit(130)
    except BrokenPipeError:
        # The reader of our output went away (`| head`); nothing is left to tell it.
        _drop_output()
        sys.exit(1)
    except OSError as e:
        # Files raise a FileError. This is our own output, sent to a full disk.
        _drop_output()
        click.echo(f"ggufkit: cannot write the output: {e.strerror or e}", err=True)
        sys.exit(1)


def _drop_output() -> None:
    """What is still in stdout's buffer goes nowhere, instead of failing again at the exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
