"""The options of ``hello pack`` as objects, a group each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import click

from hellofmt_cli.options import (
    Choice,
    ViewOptions,
    classes_option,
    force_option,
    grouped,
    option,
    output_option,
    precision_option,
    shared,
    skip_unreadable_option,
    view_mix_option,
    view_size_option,
)

if TYPE_CHECKING:
    from hellofmt.archive import Storage
    from hellofmt.projector import MhaFix


@dataclass(frozen=True)
class FileOptions:
    """What is packed, and into which files."""

    HEADING: ClassVar[str] = "Image"

    output: str = shared(output_option("FILE", "Write this archive."), "Output")
    projectors: tuple[str, ...] = option(
        "--projector",
        heading="Label function",
        multiple=True,
        metavar="[NAME=]FILE",
        help="Copy the label functions of this archive; repeated, of all, the first as the default."
        " NAME renames its one function.",
    )
    belongs_to: str | None = option(
        "--for",
        heading="Label function",
        metavar="FILE",
        help="Name this archive, whose label functions stay there; take its classes and views.",
    )
    ordered: bool = option(
        is_flag=True,
        help="Declare the images of a class to be in order of value, by name: the first k are the"
        " choice for k, and --ipc may read them alone.",
    )
    classes: str | None = shared(classes_option)
    force: bool = shared(force_option(), "Output")
    reencode: Literal["png", "jpeg", "webp"] | None = option(
        type=Choice(["png", "jpeg", "webp"]),
        help="Convert images of another codec or outside the profile.",
    )
    max_side: int | None = option(
        type=click.IntRange(1, 4096),
        metavar="PIXELS",
        help="With --reencode: shrink images with a longer side to this many pixels.",
    )
    skip_unreadable: bool = shared(skip_unreadable_option)
    layout: Literal["auto", "files", "packed"] = option(
        type=Choice(["auto", "files", "packed"]),
        default="auto",
        help="Store one member per image, one array of all pixels, or whichever is smaller.",
    )
    shards: int | None = option(
        heading="Output",
        type=click.IntRange(2, 99_999),
        help="Spread the images over so many files, NAME-00000-of-00016.hello.",
    )

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
    """An adapter of PEFT and how it becomes a projector."""

    HEADING: ClassVar[str] = "Adapter"

    adapter: str | None = option(
        metavar="DIR", help="Pack this adapter of PEFT, instead of SOURCE."
    )
    base: str | None = option(
        metavar="BASE", help="With --adapter: base encoder that it adapts, of open_clip."
    )
    prompts: tuple[str, ...] = option(
        "--prompt",
        multiple=True,
        metavar="TEXT",
        help="With --adapter: text for a class, where `{}` stands for its name.  [default: a photo"
        " of a {}.]",
    )
    temperature: float = option(
        type=click.FloatRange(0.001, 100_000),
        default=1.0,
        help="With --adapter: default temperature of the labels.",
    )
    precision: Storage = shared(precision_option("With --adapter: "))
    peft_mha_fix: MhaFix = option(
        type=Choice(["auto", "on", "off"]),
        default="auto",
        help="With --adapter: PEFT adds the delta of attention's out_proj twice (up to 0.21.2);"
        " keep what it did to the features.",
    )


file_options = grouped("files", FileOptions)

adapter_options = grouped("adapter", AdapterOptions)


@dataclass(frozen=True)
class PackViewOptions(ViewOptions):
    """How views are made, where nothing says which."""

    view_size: int | None = view_size_option("that of the images, at most 224", 4096)
    view_mix: str | None = view_mix_option("none")


pack_view_options = grouped("views", PackViewOptions)
