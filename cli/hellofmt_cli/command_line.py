"""The command that runs, as a record keeps it: what decides the result, without paths."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any, Final

import click
from click.core import ParameterSource

if TYPE_CHECKING:
    from collections.abc import Callable

_WITHOUT_EFFECT: Final = frozenset(
    {
        "as_json",
        "checkpoint",
        "checkpoint_every",
        "curve",
        "expect",
        "force",
        "limit",
        "output",
        "table",
        "wandb",
        "work",
        "workers",
    }
)
"""Parameters that change nothing but where something is written or what is said on the way."""

_WORDS: Final = frozenset(
    {"license", "method", "name", "note", "prompts", "sources", "targets", "version"}
)
"""Parameters whose values are words and not paths, whatever characters they have."""


def recorded_command(reduced: Callable[[str], str]) -> str:
    """The current command as typed, in one order, without what only says where to write."""
    ctx = click.get_current_context()
    arguments: list[str] = []
    options: list[str] = []
    for param in ctx.command.params:
        name = param.name or ""
        if name in _WITHOUT_EFFECT or name not in ctx.params:
            continue
        if ctx.get_parameter_source(name) is not ParameterSource.COMMANDLINE:
            continue
        value: Any = ctx.params[name]
        if isinstance(param, click.Argument):
            arguments += [reduced(str(word)) for word in (value if param.nargs != 1 else [value])]
        elif isinstance(param, click.Option):
            options += _option(param, value, str if name in _WORDS else reduced)
    return shlex.join(["hello", ctx.info_name or "", *arguments, *options])


def _option(param: click.Option, value: Any, shown: Callable[[str], str]) -> list[str]:
    """The words of one option."""
    if param.is_flag:
        return [param.opts[-1] if value else param.secondary_opts[-1]]
    words: list[str] = []
    for one in value if param.multiple else [value]:
        parts = one if param.nargs != 1 else [one]
        words += [param.opts[-1], *(shown(str(part)) for part in parts)]
    return words
