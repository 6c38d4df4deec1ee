"""The options of ``hello pack`` as objects, a group each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import click

from hellofmt.archive import read_file
from hellofmt.errors import UserInputError, shown_path
from hellofmt_cli.options import (
    Choice,
    classes_option,
    force_option,
    grouped,
    output_option,
    precision_option,
)

if TYPE_CHECKING:
    from hellofmt.archive import Storage
    from hellofmt.projector import MhaFix

__all__ = [
    "AdapterOptions",
    "FileOptions",
    "TextOptions",
    "adapter_options",
    "file_options",
    "text_options",
]


@dataclass(frozen=True)
class FileOptions:
    """What is packed, and into which files.

    Attributes:
        output: the archive.
        projector: archive whose label function is copied.
        classes: file of the class list.
        force: replace an existing archive.
        reencode: codec that other images are converted to; None refuses them.
        layout: of the images.
        shards: number of files; None writes one.
    """

    output: str
    projector: str | None
    classes: str | None
    force: bool
    reencode: Literal["png", "jpeg", "webp"] | None
    layout: Literal["auto", "files", "packed"]
    shards: int | None


@dataclass(frozen=True)
class TextOptions:
    """What the archive says of itself.

    Attributes:
        name: of the data set.
        version: of the data set.
        license: SPDX expression.
        license_file: file with the text of the licence.
        card: file with the data set card.
        method: how the images were made.
        sources: data sets that the images come from.
        note: free fields, ``KEY=TEXT``.
    """

    name: str | None
    version: str
    license: str | None
    license_file: str | None
    card: str | None
    method: str | None
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


@dataclass(frozen=True)
class AdapterOptions:
    """An adapter of PEFT and how it becomes a projector.

    Attributes:
        adapter: its directory; None packs images.
        base: the open_clip model it adapts.
        prompts: templates with ``{}``; empty takes the default one.
        temperature: default T of the labels.
        precision: of the stored numbers.
        peft_mha_fix: whether the deltas of ``out_proj`` acted twice.
    """

    adapter: str | None
    base: str | None
    prompts: tuple[str, ...]
    temperature: float
    precision: Storage
    peft_mha_fix: MhaFix


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


file_options = grouped(
    "files",
    FileOptions,
    output_option("FILE", "Write this archive."),
    click.option("--projector", metavar="FILE", help="Copy the label function of this archive."),
    classes_option,
    force_option(),
    click.option(
        "--reencode",
        type=Choice(["png", "jpeg", "webp"]),
        help="Convert images of another codec or outside the profile.",
    ),
    click.option(
        "--layout",
        type=Choice(["auto", "files", "packed"]),
        default="auto",
        show_default=True,
        help="One member per image, one array of all pixels, or the smaller of the two.",
    ),
    click.option(
        "--shards",
        type=click.IntRange(1, 99_999),
        help="Spread the images over so many files, NAME-00000-of-00016.hello.",
    ),
)

text_options = grouped(
    "texts",
    TextOptions,
    click.option("--name", help="Name of the data set.  [default: name of SOURCE]"),
    click.option("--version", default="1.0.0", show_default=True, help="Version of the data set."),
    click.option(
        "--license", help="License of the data set, as an SPDX expression.  [default: NOASSERTION]"
    ),
    click.option("--license-file", metavar="FILE", help="Text of the licence."),
    click.option("--card", metavar="FILE", help="Data set card, in Markdown."),
    click.option("--method", help="How the images were made."),
    click.option("--from", "sources", multiple=True, help="Data set the images come from."),
    click.option("--note", multiple=True, metavar="KEY=TEXT", help="Free text, kept as `x_KEY`."),
)

adapter_options = grouped(
    "adapter",
    AdapterOptions,
    click.option("--adapter", metavar="DIR", help="Pack this adapter of PEFT, instead of SOURCE."),
    click.option(
        "--base", metavar="BASE", help="With --adapter: base encoder that it adapts, of open_clip."
    ),
    click.option(
        "--prompt",
        "prompts",
        multiple=True,
        metavar="TEXT",
        help="With --adapter: text for a class, where `{}` stands for its name.  [default: a photo"
        " of a {}.]",
    ),
    click.option(
        "--temperature",
        type=click.FloatRange(0, min_open=True),
        default=1.0,
        show_default=True,
        help="With --adapter: default temperature of the labels.",
    ),
    precision_option("With --adapter: "),
    click.option(
        "--peft-mha-fix",
        type=Choice(["auto", "on", "off"]),
        default="auto",
        show_default=True,
        help="With --adapter: PEFT adds the delta of attention's out_proj twice (up to 0.21.2);"
        " keep what it did to the features.",
    ),
)
