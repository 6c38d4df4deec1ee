"""The words of a command: what click lets pass and we refuse, and those that a file adds.

``--config FILE`` becomes words before click reads any, so that a value from a file meets every
check of a typed one. Keys are names of options; values have the types of TOML.
"""

from __future__ import annotations

import json
import math
import tomllib
from typing import TYPE_CHECKING, Any, Final, cast

import click

from hellofmt.archive import read_file
from hellofmt.errors import UserInputError, did_you_mean, printable, shown_path
from hellofmt_cli.byte_sizes import ByteSize
from hellofmt_cli.console import console

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

CONFIG: Final = "config"
"""Name of the parameter ``--config``."""

_KINDS: Final[dict[type, str]] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a string",
}


def checked_words(ctx: click.Context, args: list[str]) -> list[str]:
    """The words that click shall read: those of ``--config``, where they are not typed, and typed.

    An empty word is a shell's variable that was not set; as a path it would mean the current
    folder. Ranges let NaN pass. Of an option that is typed twice the first value is dropped.
    """
    values, _, order = ctx.command.make_parser(ctx).parse_args(list(args))
    for parameter in set(order):
        _check(ctx, parameter, values.get(parameter.name or ""))
        is_one = isinstance(parameter, click.Option) and not (
            parameter.is_flag or parameter.multiple or parameter.count
        )
        if is_one and order.count(parameter) > 1:
            console.warn(
                f"`{parameter.opts[-1]}` is given {order.count(parameter)} times; the last counts"
            )
    if not isinstance(values.get(CONFIG), str):
        return args
    # Arguments are always in the order, with a value or none.
    typed = {
        parameter
        for parameter in order
        if isinstance(parameter, click.Option) or any(_words(values.get(parameter.name or "")))
    }
    return _with_file(ctx, args, values[CONFIG], typed)


def _check(ctx: click.Context, parameter: click.Parameter, value: object) -> None:
    for word in _words(value):
        if not word:
            text = "expected a value, got an empty word (a variable of the shell that is not"
            raise click.BadParameter(f"{text} set?)", ctx, parameter)
        if isinstance(parameter.type, click.types.FloatParamType) and _is_not_finite(word):
            raise click.BadParameter(f"expected a finite number, got {word}", ctx, parameter)


def _words(value: object) -> Iterator[str]:
    """The words of a parameter's value, which may have several."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (tuple, list)):
        for part in cast("Sequence[object]", value):
            yield from _words(part)


def _is_not_finite(word: str) -> bool:
    try:
        return not math.isfinite(float(word))
    except ValueError:
        # Click says what is wrong with it.
        return False


def _with_file(
    ctx: click.Context, args: list[str], path: str, typed: set[click.Parameter]
) -> list[str]:
    """Put before ``args`` what the file says and they do not."""
    try:
        document = tomllib.loads(read_text(path))
    except tomllib.TOMLDecodeError as error:
        raise _refused(path, f"expected TOML: {printable(error)}") from None
    known = {_key(parameter): parameter for parameter in _settings(ctx)}
    options: list[str] = []
    arguments: list[str] = []
    for key, value in document.items():
        parameter = known.get(key)
        if parameter is None:
            raise _refused(
                path,
                f"`{printable(key)}` is no option of `{ctx.command_path}`",
                advice=did_you_mean(key, known) or "`--print-config` prints all that are",
            )
        try:
            words = _words_of(parameter, value)
            _check(ctx, parameter, words)
            is_list = parameter.multiple or parameter.nargs != 1
            got = parameter.process_value(ctx, words if is_list else value)
        except click.BadParameter as error:
            raise _refused(path, f"`{printable(key)}`: {error.message}") from None
        # A default that is spelled out is no different run, and none of what a record keeps.
        if parameter in typed or got == parameter.get_default(ctx):
            continue
        if isinstance(parameter, click.Argument):
            arguments += words
        elif isinstance(value, bool):
            options += parameter.opts[-1:] if value else parameter.secondary_opts
        else:
            for each in words if parameter.multiple else [words]:
                options += [parameter.opts[-1], *_words(each)]
    return [*options, *args, *(["--", *arguments] if arguments else [])]


def _words_of(parameter: click.Parameter, value: object) -> list[str]:
    """The words of a value of TOML, if it has the option's type."""
    kind = str
    if isinstance(parameter, click.Option) and parameter.is_flag:
        kind = bool
    elif isinstance(parameter.type, click.types.IntParamType) or (
        isinstance(parameter.type, ByteSize) and not isinstance(value, str)
    ):
        kind = int
    elif isinstance(parameter.type, click.types.FloatParamType):
        kind = float
    is_list = parameter.multiple or parameter.nargs != 1
    items = cast("list[object]", value if is_list and isinstance(value, list) else [value])
    number = parameter.nargs if parameter.nargs > 1 else len(items)
    fits = all(type(item) is kind or (kind is float and type(item) is int) for item in items)
    if not fits or is_list != isinstance(value, list) or len(items) != number:
        many = "" if parameter.nargs < 2 else f" of {parameter.nargs}"
        expected = f"an array{many}, each {_KINDS[kind]}" if is_list else _KINDS[kind]
        raise click.BadParameter(f"expected {expected}, got {printable(repr(value), 80)}")
    return [str(item) for item in items]


def _settings(ctx: click.Context) -> Iterator[click.Parameter]:
    """The parameters that a file may set."""
    return (parameter for parameter in ctx.command.params if parameter.expose_value)


def _key(parameter: click.Parameter) -> str:
    return parameter.opts[-1].lstrip("-")


def _refused(path: str, fact: str, advice: str = "") -> UserInputError:
    return UserInputError.make("E_OPTION", f"`{shown_path(path)}`: {fact}", advice=advice)


def config_text(ctx: click.Context) -> str:
    """Every option of the command as a file for ``--config``; what is not set is a comment."""
    lines = [f"# {ctx.command_path} --config FILE; paths are relative to the current folder"]
    for parameter in _settings(ctx):
        value: Any = ctx.params[parameter.name or ""]
        # A string of JSON is one of TOML, but for this character.
        text = json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
        lines.append(f"# {_key(parameter)} =" if value is None else f"{_key(parameter)} = {text}")
    try:
        return "\n".join(lines).encode().decode()
    except UnicodeEncodeError:
        raise UserInputError.make("E_OPTION", "a value is not Unicode, as TOML has to be") from None


def read_text(path: str) -> str:
    """A whole UTF-8 text file."""
    try:
        return read_file(path).decode("utf-8")
    except UnicodeDecodeError:
        raise UserInputError.make("E_DATA", f"`{shown_path(path)}`: not UTF-8") from None
