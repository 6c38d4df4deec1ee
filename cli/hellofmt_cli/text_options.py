"""The options for what an archive says of itself, shared by ``pack``, ``fit`` and ``distill``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import click

from hellofmt.archive import Texts
from hellofmt.errors import shown_path
from hellofmt_cli.options import grouped, option
from hellofmt_cli.words import read_text


@dataclass(frozen=True)
class TextOptions:
    """What the archive says of itself."""

    HEADING: ClassVar[str] = "Text"

    name: str | None = option(help="Name of the data set.  [default: that of the images]")
    version: str = option(default="1.0.0", help="Version of the data set.")
    license: str | None = option(
        help="Licence of the data set, as an SPDX expression.  [default: that of an archive whose"
        " images are packed, else NOASSERTION]"
    )
    license_file: str | None = option(
        metavar="FILE", help="Read the text of the licence from this file."
    )
    card: str | None = option(
        metavar="FILE",
        help="Read the data set card, in Markdown, from this file."
        "  [default: `fit` and `distill` write one]",
    )
    sources: tuple[str, ...] = option(
        "--from", multiple=True, help="Name a data set that the images come from; may be repeated."
    )
    note: tuple[str, ...] = option(
        multiple=True, metavar="KEY=TEXT", help="Keep a free text as `x_KEY`; may be repeated."
    )

    def read(self, method: str | None = None) -> Texts:
        """Read the files, and give all of it to a writer."""
        return Texts(
            name=self.name,
            version=self.version,
            license=self.license,
            license_text=None if self.license_file is None else read_text(self.license_file),
            card=None if self.card is None else read_text(self.card),
            method=method,
            sources=self.sources or None,
            extras=dict(map(_note, self.note)),
        )


text_options = grouped("texts", TextOptions)


def _note(text: str) -> tuple[str, str]:
    """``KEY=TEXT`` as a free field of the manifest."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise click.BadParameter(f"--note: expected KEY=TEXT, got {shown_path(text)}")
    return (key if key.startswith("x_") else f"x_{key}"), value
