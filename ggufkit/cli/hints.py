"""What to do about an error, in the flags of the verb that met it."""

from __future__ import annotations

import click

from ggufkit.errors import GgufkitError

__all__ = ["in_flags"]

# An option in Python, with its value where one option is several flags → the parameters of verbs that stand for it.
_PARAMETERS = {
    "context": ("context", "ctx_size"),
    "limits=Limits(header=…)": ("max_header",),
    "limits=Limits(versions=(1, 2, 3))": ("allow_v1",),
    "limits=Limits(complete=False)": ("partial",),
    "output": ("output", "outfile", "target"),
    "shards=False": ("one_shard",),
    "variant": ("chat_template",),
    "template": ("chat_template_file",),
}


def in_flags(error: GgufkitError, command: click.Command | None) -> str:
    """The message of an error, with its hint in the flags of `command`."""

    def spell(name: str, value: str) -> str | None:
        parameters = command.params if command is not None else []
        wanted = _PARAMETERS.get(f"{name}={value}", _PARAMETERS.get(name, (name,)))
        for parameter in parameters:
            if parameter.name in wanted:
                return _spelled(parameter, value)
        return None

    return error.spelled(lambda hint: hint.spelled(spell))


def _spelled(parameter: click.Parameter, value: str) -> str:
    if not isinstance(parameter, click.Option):
        return parameter.human_readable_name
    flag = parameter.opts[0]
    return flag if parameter.is_flag or not value or "…" in value else f"{flag} {value}"
