"""The options for what an archive says of itself, shared by ``pack``, ``fit`` and ``distill``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from hellofmt.archive import Texts, read_file
from hellofmt.errors import UserInputError, shown_path
from hellofmt_cli.options import grouped

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["text_options"]


def _texts(
    name: str | None,
    version: str,
    license: str | None,
    license_file: str | None,
    card: str | None,
    sources: tuple[str, ...],
    note: tuple[str, ...],
    method: str | None = None,
) -> Texts:
    return Texts(
        name=name,
        version=version,
        license=license,
        license_text=_read(license_file),
        card=_read(card),
        method=method,
        sources=sources or None,
        extras=dict(map(_note, note)),
    )


def _read(path: str | None) -> str | None:
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


def text_options(what: str, *more: Callable[..., Any]) -> Callable[..., Any]:
    """Pass a command its texts; the default name is that of ``what``, and ``more`` has --method."""
    return grouped(
        "texts",
        _texts,
        click.option("--name", help=f"Name of the data set.  [default: name of {what}]"),
        click.option(
            "--version", default="1.0.0", show_default=True, help="Version of the data set."
        ),
        click.option(
            "--license",
            help="License of the data set, as an SPDX expression.  [default: that of an archive"
            " whose images are packed, else NOASSERTION]",
        ),
        click.option("--license-file", metavar="FILE", help="Text of the licence."),
        click.option(
            "--card",
            metavar="FILE",
            help="Data set card, in Markdown.  [default: `fit` and `distill` write one]",
        ),
        click.option("--from", "sources", multiple=True, help="Data set the images come from."),
        click.option(
            "--note", multiple=True, metavar="KEY=TEXT", help="Free text, kept as `x_KEY`."
        ),
        *more,
    )
