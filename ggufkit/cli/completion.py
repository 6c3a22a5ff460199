"""`ggufkit completion`: completion for shells."""

from __future__ import annotations

import click

from ggufkit.cli import cli

__all__ = ["command"]


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(shell: str) -> None:
    """Print what makes SHELL complete verbs, options, topics and files after `ggufkit`.

    For bash in ~/.bashrc, for zsh in ~/.zshrc after compinit, for fish in a file:

    \b
    eval "$(ggufkit completion bash)"
    eval "$(ggufkit completion zsh)"
    ggufkit completion fish > ~/.config/fish/completions/ggufkit.fish
    """
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(cli, {}, "ggufkit", "_GGUFKIT_COMPLETE").source())
