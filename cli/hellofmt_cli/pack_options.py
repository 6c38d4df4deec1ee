"""The options of ``hello pack`` as objects, a group each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from hellofmt_cli.options import (
    Choice,
    classes_option,
    force_option,
    grouped,
    output_option,
    precision_option,
    skip_unreadable_option,
)

if TYPE_CHECKING:
    from hellofmt.archive import Storage
    from hellofmt.projector import MhaFix

__all__ = [
    "AdapterOptions",
    "FileOptions",
    "adapter_options",
    "file_options",
]


@dataclass(frozen=True)
class FileOptions:
    """What is packed, and into which files.

    Attributes:
        output: the archive.
        projectors: archives whose label functions are copied, as ``FILE`` or ``NAME=FILE``.
        belongs_to: archive with the label functions for the images, which stay there.
        ordered: whether the images of a class come in order of value.
        classes: file of the class list.
        force: replace an existing archive.
        reencode: codec that other images are converted to; None refuses them.
        max_side: longest side that images are shrunk to; None shrinks none.
        skip_unreadable: leave out images that cannot be read.
        layout: of the images.
        shards: number of files; None writes one.
    """

    output: str
    projectors: tuple[str, ...]
    belongs_to: str | None
    ordered: bool
    classes: str | None
    force: bool
    reencode: Literal["png", "jpeg", "webp"] | None
    max_side: int | None
    skip_unreadable: bool
    layout: Literal["auto", "files", "packed"]
    shards: int | None

    @property
    def projector(self) -> list[tuple[str, str]] | None:
        """Pairs of new name, empty to keep the old one, and archive; None without any."""
        pairs: list[tuple[str, str]] = []
        for text in self.projectors:
            name, equals, path = text.partition("=")
            # A file may be called like an assignment.
            is_named = bool(equals) and "/" not in name and not Path(text).exists()
            pairs.append((name, path) if is_named else ("", text))
        return pairs or None


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


file_options = grouped(
    "files",
    FileOptions,
    output_option("FILE", "Write this archive."),
    click.option(
        "--projector",
        "projectors",
        multiple=True,
        metavar="[NAME=]FILE",
        help="Copy the label functions of this archive; repeated, of all, the first as the default."
        " NAME renames its one function.",
    ),
    click.option(
        "--for",
        "belongs_to",
        metavar="FILE",
        help="Name this archive, whose label functions stay there; take its classes and views.",
    ),
    click.option(
        "--ordered",
        is_flag=True,
        help="The images of a class come in order of value, by name: the first k are the choice for"
        " k, and --ipc may read them alone.",
    ),
    classes_option,
    force_option(),
    click.option(
        "--reencode",
        type=Choice(["png", "jpeg", "webp"]),
        help="Convert images of another codec or outside the profile.",
    ),
    click.option(
        "--max-side",
        type=click.IntRange(1, 4096),
        metavar="PIXELS",
        help="With --reencode: shrink images with a longer side to this many pixels.",
    ),
    skip_unreadable_option,
    click.option(
        "--layout",
        type=Choice(["auto", "files", "packed"]),
        default="auto",
        show_default=True,
        help="One member per image, one array of all pixels, or the smaller of the two.",
    ),
    click.option(
        "--shards",
        type=click.IntRange(2, 99_999),
        help="Spread the images over so many files, NAME-00000-of-00016.hello.",
    ),
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
        type=click.FloatRange(0.001, 100_000),
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
