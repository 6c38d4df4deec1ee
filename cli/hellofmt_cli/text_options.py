"""The options for what an archive says of itself, shared by ``pack``, ``fit`` and ``distill``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import click

from hellofmt.archive import read_file
from hellofmt.errors import UserInputError, shown_path
from hellofmt_cli.options import grouped

__all__ = ["TEXT_OPTIONS", "TextOptions", "text_options"]


@dataclass(frozen=True)
class TextOptions:
    """What the archive says of itself.

    Attributes:
        version: of the data set.
        license: SPDX expression, if one was given.
        license_file: file with the text of the licence.
        card: file with the data set card.
        sources: data sets that the images come from.
        note: free fields, ``KEY=TEXT``.
    """

    version: str
    license: str | None
    license_file: str | None
    card: str | None
    sources: tuple[str, ...]
    note: tuple[str, ...]

    @property
    def license_text(self) -> str | None:
        """Text of the licence."""
        return _text(self.license_file)

    @property
    def card_text(self) -> str | None:
        """Text of the card."""
        return _text(self.card)

    @property
    def extras(self) -> dict[str, str]:
        """Free fields of the manifest."""
        return dict(_note(text) for text in self.note)


def _text(path: str | None) -> str | None:
    """A whole UTF-8 text file."""
    if path is None:
        return None
    try:
        return read_file(path).decode("utf-8")
    except UnicodeDecodeError:
        raise UserInputError.make("E_DATA", f"`{shown_path(path)}`: not UTF-8") from None


def _note(text: str) -> tuple[str, str]:
    """``KEY=TEXT`` as a free field of the manifest."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise click.BadParameter(f"--note: expected KEY=TEXT, got {shown_path(text)}")
    return (key if key.startswith("x_") else f"x_{key}"), value


TEXT_OPTIONS: Final = (
    click.option("--version", default="1.0.0", show_default=True, help="Version of the data set."),
    click.option(
        "--license",
        help="License of the data set, as an SPDX expression.  [default: that of an archive whose"
        " images are packed, else NOASSERTION]",
    ),
    click.option("--license-file", metavar="FILE", help="Text of the licence."),
    click.option(
        "--card",
        metavar="FILE",
        help="Data set card, in Markdown.  [default: `fit` and `distill` write one]",
    ),
    click.option("--from", "sources", multiple=True, help="Data set the images come from."),
    click.option("--note", multiple=True, metavar="KEY=TEXT", help="Free text, kept as `x_KEY`."),
)

text_options = grouped("texts", TextOptions, *TEXT_OPTIONS)
