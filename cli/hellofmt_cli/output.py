"""What commands print as their result, and how: sizes, aligned pages, JSON documents.

Results go to stdout; what is said on the way is ``console``'s. Content of a file never reaches a
terminal unescaped: every value from an archive passes through ``errors.printable`` here, so that no
command can forget it.
"""

from __future__ import annotations

import json
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import click

from hellofmt.errors import HelloIOError, printable, shown_path
from hellofmt_cli.console import console
from hellofmt_cli.options import limits
from hellofmt_cli.terminal import columns, heading, width_of, wrapped

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from hellofmt.archive import Archive

FILE_KEY = "hellofmt.file"
"""Key of ``ctx.meta``: the archive a command is reading, named in front of its errors."""

_LEAST_COLUMN: Final = 24
"""Columns of a terminal that labels must leave to the values beside them."""

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
    "limits": "--limit",
    "size": "--view-size",
    "storage": "--precision",
}
"""Options whose name is not that of the library's argument, with dashes."""


def option_of(argument: str, value: str = "") -> str:
    """What to type for an argument of the library: ``--force`` for ``force``."""
    dashes = "-" if len(argument) == 1 else "--"
    option = _OPTIONS.get(argument, dashes + argument.replace("_", "-"))
    return f"`{option} {value}`" if value else f"`{option}`"


def echo_page(rows: Sequence[tuple[str, str] | None], title: str = "") -> None:
    """Print ``label  value`` lines with the values in one column; None is an empty line.

    Below a ``title`` they are indented. Both are escaped, so a caller may pass text from a file as
    it is. Where a terminal is too narrow for a column of values, each stands below its label.
    """
    whole = width_of()
    if title:
        click.echo(heading(wrapped(title, whole)))
    indent = "  " if title else ""
    escaped = [row and (printable(row[0], 120), printable(row[1], 400)) for row in rows]
    width = max((columns(row[0]) for row in escaped if row), default=0)
    is_narrow = whole is not None and whole - width < _LEAST_COLUMN
    for row in escaped:
        if row is None:
            click.echo()
        elif is_narrow:
            click.echo(f"{indent}{row[0]}")
            click.echo(wrapped(row[1], whole, f"{indent}  "))
        else:
            label = f"{indent}{row[0]}{' ' * (width - columns(row[0]))}  "
            click.echo(wrapped(row[1], whole, label).rstrip())


def echo_table(rows: Sequence[Sequence[str]], title: str) -> None:
    """Print rows as columns below a title, the first to the left, the others to the right.

    The first row names the columns. Where a terminal is too narrow, each other row is a page.
    """
    widths = [max(map(columns, column)) for column in zip(*rows, strict=True)]
    whole = width_of()
    click.echo(heading(wrapped(title, whole)))
    if whole is not None and sum(widths) + 2 * len(widths) > whole:
        for first, *rest in rows[1:]:
            echo_page(list(zip(rows[0][1:], rest, strict=True)), first)
        return
    for first, *rest in rows:
        cells = [f"{cell:>{width}}" for cell, width in zip(rest, widths[1:], strict=True)]
        click.echo("  ".join([f"  {first:<{widths[0]}}", *cells]).rstrip())


def echo_text(text: str) -> None:
    """Print sentences as wide as the terminal."""
    click.echo(wrapped(text, width_of()))


def echo_json(document: dict[str, Any]) -> None:
    """Print one document: ASCII, two spaces of indent, keys in the order given."""
    click.echo(json.dumps(document, indent=2, ensure_ascii=True, allow_nan=False))


@contextmanager
def opened(path: str, *, expect: str | None = None) -> Generator[Archive]:
    """Open an archive for a command; an error names the file."""
    from hellofmt.archive import open_archive

    reading(path)
    with open_archive(path, expect=expect, limits=limits()) as file:
        tell_read(file)
        yield file


def tell_read(archive: Archive) -> None:
    """Say with ``--verbose`` what was opened, and where a URL's bytes are kept."""
    from hellofmt.archive import display_name

    name, cache = display_name(archive.path), os.environ.get("HELLOFMT_CACHE")
    what = f"{count(len(archive), 'image')}, {size(archive.size_bytes)}"
    console.detail(f"read: {shown_path(name)}, {archive.id}, {what}")
    if "://" in name:
        kept = f"in {shown_path(cache)}" if cache else "nowhere; HELLOFMT_CACHE names a folder"
        console.detail(f"read: what comes from the URL is kept {kept}")


def write_text(path: str, text: str, *, force: bool) -> None:
    """Write a whole UTF-8 file or none; an existing one is replaced only with ``force``."""
    from hellofmt.archive import write_small_file

    read = click.get_current_context().meta.get(FILE_KEY, "")
    if force and os.path.exists(path) and os.path.exists(read) and os.path.samefile(path, read):  # noqa: PTH110, PTH121
        raise HelloIOError.make("E_TARGET", f"`{shown_path(path)}` is what is read")

    write_small_file(path, text.encode(), force=force)


def reading(path: str) -> None:
    """Name ``path`` in front of whatever goes wrong from here on."""
    from hellofmt.archive import display_name

    ctx = click.get_current_context(silent=True)
    if ctx is not None:
        # Errors end up in logs, where the credentials in a URL do not belong.
        ctx.meta[FILE_KEY] = display_name(path)
