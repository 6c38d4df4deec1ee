"""What a terminal shows: how many columns a text takes, where lines are broken, when colour is on.

Only a terminal gets broken lines and colour; a pipe or a file gets each line whole and plain.
"""

from __future__ import annotations

import os
import shutil
import sys
import unicodedata

import click


def columns(text: str) -> int:
    """Columns that a terminal gives to a text: two for a wide character, none for a mark on one."""
    text = click.unstyle(text)
    wide = sum(unicodedata.east_asian_width(c) in ("W", "F") for c in text)
    marks = sum(unicodedata.category(c) in ("Mn", "Me") for c in text)
    return len(text) + wide - marks


def width_of(*, err: bool = False) -> int | None:
    """Columns of the terminal that stdout or stderr is; None where it is none."""
    stream = sys.stderr if err else sys.stdout
    return shutil.get_terminal_size().columns if stream.isatty() else None


def wrapped(text: str, width: int | None, before: str = "") -> str:
    """Put ``before`` before the text, which is broken between words and stays right of it.

    A word that is longer than a line stays whole, so that a digest or a path can be copied.
    """
    indent = columns(before)
    lines: list[str] = []
    for paragraph in text.split("\n"):
        line, *words = paragraph.split(" ")
        for word in words:
            longer = f"{line} {word}"
            if width is not None and line.strip() and columns(longer) > width - indent:
                lines.append(line.rstrip())
                longer = word
            line = longer
        lines.append(line)
    return before + f"\n{' ' * indent}".join(lines)


def heading(text: str) -> str:
    """A heading of a page of text."""
    return click.style(text, bold=True)


def has_colour() -> bool | None:
    """False where the user's terminal shows no colour or they want none; None: click decides."""
    return False if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" else None
