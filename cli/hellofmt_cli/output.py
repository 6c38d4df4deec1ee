"""What commands print, and how: sizes, aligned pages, JSON documents, progress.

Data goes to stdout, progress and warnings to stderr. Content of a file never reaches a terminal
unescaped: every value from an archive passes through ``errors.printable`` here, so that no command
can forget it. There is no colour, so ``NO_COLOR`` has nothing to switch off. Progress bars appear
only on a terminal; tqdm is imported only then, since ``hello inspect`` should answer at once.
"""

from __future__ import annotations

import json
import os
import sys
import unicodedata
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from hellofmt.errors import UserInputError, did_you_mean, foreign_text, printable

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Sequence

    from hellofmt.archive import Archive, Limits

__all__ = [
    "Choice",
    "columns",
    "count",
    "device_option",
    "echo_json",
    "echo_page",
    "is_speaking",
    "json_option",
    "limit_option",
    "limits",
    "opened",
    "option_of",
    "progress",
    "reading",
    "say",
    "size",
    "warn",
    "write_text",
]

_Command = TypeVar("_Command", bound="Callable[..., Any]")

JSON_KEY = "hellofmt.json"
"""Key of ``ctx.meta``: the user asked for one JSON document, so an error is one as well."""

FILE_KEY = "hellofmt.file"
"""Key of ``ctx.meta``: the archive a command is reading, named in front of its errors."""

LIMITS_KEY = "hellofmt.limits"
"""Key of ``ctx.meta``: the limits of ``--limit``."""

_UNITS = ("KiB", "MiB", "GiB", "TiB")


def size(number: int) -> str:
    """Bytes in an IEC unit and exactly: ``5.59 GiB (6,000,000,000 bytes)``."""
    if number < 1024:
        return f"{number:,} bytes" if number != 1 else "1 byte"
    power = 1
    # 1023.996 would print as 1024.00 of the smaller unit.
    while power < len(_UNITS) and number / 1024**power >= 1023.995:
        power += 1
    return f"{number / 1024**power:.2f} {_UNITS[power - 1]} ({number:,} bytes)"


def count(number: int, noun: str, plural: str = "") -> str:
    """``1 image``, ``10,000 images``; ``plural`` where an s does not make it."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


_OPTIONS: Final = {
    "license_name": "--license",
    "limits": "--limit",
}
"""Options whose name is not that of the library's argument, with dashes."""


def option_of(argument: str, value: str = "") -> str:
    """What to type for an argument of the library: ``--force`` for ``force``."""
    dashes = "-" if len(argument) == 1 else "--"
    option = _OPTIONS.get(argument, dashes + argument.replace("_", "-"))
    return f"`{option} {value}`" if value else f"`{option}`"


def columns(text: str) -> int:
    """Columns that a terminal gives to a text: two for a wide character, none for a mark on one."""
    wide = sum(unicodedata.east_asian_width(c) in ("W", "F") for c in text)
    marks = sum(unicodedata.category(c) in ("Mn", "Me") for c in text)
    return len(text) + wide - marks


def echo_page(rows: Sequence[tuple[str, str] | None], indent: int = 0) -> None:
    """Print ``label  value`` lines with the values in one column; None is an empty line.

    Both are escaped, so a caller may pass text from a file as it is.
    """
    escaped = [row and (printable(row[0], 120), printable(row[1], 400)) for row in rows]
    width = max((columns(row[0]) for row in escaped if row), default=0)
    for row in escaped:
        line = f"{row[0]}{' ' * (width - columns(row[0]))}  {row[1]}" if row else ""
        click.echo(f"{' ' * indent}{line}".rstrip())


def echo_json(document: dict[str, Any]) -> None:
    """Print one document: ASCII, two spaces of indent, keys in the order given."""
    click.echo(json.dumps(document, indent=2, ensure_ascii=True, allow_nan=False))


def is_speaking() -> bool:
    """Whether this process prints: rank 0 of ``torchrun``, or the only one."""
    return os.environ.get("RANK", "0") == "0"


def say(text: str) -> None:
    """Print one line to stderr, from rank 0."""
    if is_speaking():
        click.echo(text, err=True)


def warn(text: str) -> None:
    """Print ``Warning: text`` to stderr, from rank 0."""
    say(f"Warning: {text}")


class Choice(click.Choice[str]):
    """One of some words; a mistyped one is answered with the nearest."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The word.

        Raises:
            click.BadParameter: it is none of them.
        """
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter as error:
            meant = _meant(str(value), map(str, self.choices))
            raise click.BadParameter(f"{error.message} {meant}".strip(), ctx, param) from None


def _meant(word: str, known: Iterable[str]) -> str:
    """``did_you_mean`` as a sentence."""
    advice = did_you_mean(word, known)
    return advice[:1].upper() + advice[1:]


def _remember_json(ctx: click.Context, _: click.Parameter, value: bool) -> bool:
    ctx.meta[JSON_KEY] = value
    return value


json_option = click.option(
    "--json",
    "as_json",
    is_flag=True,
    callback=_remember_json,
    # Eager, so that an error in any other option already finds it set.
    is_eager=True,
    help="Print one JSON document instead of text.",
)
"""``--json``, passed to the command as ``as_json``."""


def _parse_device(_ctx: click.Context, _param: click.Parameter, text: str) -> str:
    """Refuse a device that is not here, before anything is read for it."""
    import torch

    try:
        device = torch.device(text)
        if device.type == "cuda":
            # Only counted: under torchrun every process has a GPU of its own, chosen later.
            if (device.index or 0) >= torch.cuda.device_count():
                number = torch.cuda.device_count()
                raise UserInputError.make(
                    "E_OPTION", f"device `{printable(text)}`: torch sees {number} CUDA devices here"
                )
        elif device.type != "cpu":
            torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        raise UserInputError.make(
            "E_OPTION",
            f"device `{printable(text)}`: expected `cpu`, or another that torch can use here, such"
            f" as `cuda` or `cuda:1`: {foreign_text(error, 80)}",
        ) from error
    return text


def device_option(what: str) -> Callable[[_Command], _Command]:
    """``--device``, the text of a device that is here; ``what`` is its help."""
    return click.option(
        "--device", default="cpu", show_default=True, callback=_parse_device, help=what
    )


def _parse_limits(ctx: click.Context, _: click.Parameter, values: tuple[str, ...]) -> None:
    """Keep the limits that ``--limit`` raises or lowers."""
    from hellofmt.archive import DEFAULT_LIMITS

    known = {field.name for field in fields(DEFAULT_LIMITS)}
    changed: dict[str, int] = {}
    for value in values:
        name, number = value.partition("=")[::2]
        if name not in known or not (number.isascii() and number.isdigit()):
            raise click.BadParameter(
                f"expected NAME=NUMBER with a name of {', '.join(sorted(known))}."
                f" {'' if name in known else _meant(name, known)}".rstrip()
            )
        changed[name] = int(number)
    ctx.meta[LIMITS_KEY] = replace(DEFAULT_LIMITS, **changed)


limit_option = click.option(
    "--limit",
    multiple=True,
    metavar="NAME=NUMBER",
    callback=_parse_limits,
    expose_value=False,
    help="Move a limit of the reader; the error of a limit names it.",
)
"""``--limit``, which ``limits()`` returns to the command."""


def limits() -> Limits:
    """The limits the user asked for, else the default ones."""
    from hellofmt.archive import DEFAULT_LIMITS

    return click.get_current_context().meta.get(LIMITS_KEY, DEFAULT_LIMITS)


@contextmanager
def opened(path: str, *, expect: str | None = None) -> Generator[Archive]:
    """Open an archive for a command; an error names the file.

    Args:
        path: of the archive.
        expect: the ``sha256:...`` id the user demands, if any.

    Yields:
        The open archive.

    Raises:
        HelloError: not an archive, or a damaged one.
        OSError: missing, a directory, no permission.
    """
    from hellofmt.archive import open_archive

    reading(path)
    with open_archive(path, expect=expect, limits=limits()) as file:
        yield file


def write_text(path: str, text: str, *, force: bool) -> None:
    """Write a whole UTF-8 file or none; an existing one is replaced only with ``force``.

    Raises:
        HelloIOError: E_TARGET, the file exists.
        OSError: it cannot be written.
    """
    from hellofmt.archive import write_small_file

    write_small_file(path, text.encode(), force=force)


def reading(path: str) -> None:
    """Name ``path`` in front of whatever goes wrong from here on."""
    from hellofmt.archive import display_name

    ctx = click.get_current_context(silent=True)
    if ctx is not None:
        # Errors end up in logs, where the credentials in a URL do not belong.
        ctx.meta[FILE_KEY] = display_name(path)


@contextmanager
def progress(label: str, unit: str) -> Generator[Callable[[int, int], None] | None]:
    """A progress bar on stderr, or None where stderr is not a terminal.

    Args:
        label: what is being done.
        unit: what is counted; ``B`` counts bytes in IEC units.

    Yields:
        ``callback(done, total)``, or None.
    """
    if not sys.stderr.isatty():
        yield None
        return
    from tqdm import tqdm

    is_bytes = unit == "B"
    with tqdm(
        desc=label,
        unit=unit,
        unit_scale=is_bytes,
        unit_divisor=1024 if is_bytes else 1000,
        leave=False,
        file=sys.stderr,
    ) as bar:

        def update(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield update
