"""DATA as a command works on it: real images, and the views that networks will see of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import click

from hellofmt.archive import changed_views, default_views, read_class_lines
from hellofmt.errors import UserInputError
from hellofmt_cli.console import console
from hellofmt_cli.options import LEAST_SIDE
from hellofmt_cli.output import count
from hellofmt_cli.workers import workers_for

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from hellofmt.archive import ClassLine, Views
    from hellofmt.sources import Source
    from hellofmt_cli.options import DataOptions

_READ: Final = f"{__name__}.read"
"""Where a command keeps the sources that it has read."""
_WORTH_WORKERS: Final = 256
"""Images from which they are decoded in processes of their own."""


@dataclass(frozen=True)
class Data:
    """DATA as a command works on it."""

    images: Source
    views: Views
    workers: int


def read_data(options: DataOptions, work: Path | None = None) -> Data:
    """List DATA, and say what was skipped on the way.

    Unless the options say otherwise, views are random crops with flips, every second one under
    CutMix, and have the median shorter side of some images, 4 to 224 pixels.
    """
    from hellofmt.sources import default_side, sampled_sizes

    changes = options.changes(mix="cutmix")
    lines = None
    if options.classes is not None:
        lines = read_class_lines(options.classes, say=console.say)
    images = read_images(
        list(options.data), lines, skips_unreadable=options.skip_unreadable, work=work
    )
    sizes = sampled_sizes(images)
    side = options.view_size or max(LEAST_SIDE, default_side(sizes))
    number = count(len(images.classes), "class", "classes")
    (height, width), (most_height, most_width) = sizes.min(0), sizes.max(0)
    shown = f"{height} x {width}"
    if (height, width) != (most_height, most_width):
        shown = f"heights {height} to {most_height}, widths {width} to {most_width}"
    some = f" ({len(sizes)} looked at)" if len(sizes) < len(images) else ""
    seen = "" if height == width == most_height == most_width == side else f"; views of {side}"
    console.say(f"data: {count(len(images), 'image')} of {number}, {shown} pixels{some}{seen}")
    views = changed_views(default_views(side), changes)
    return Data(images, views, workers_for(len(images), options.workers, worth=_WORTH_WORKERS))


def read_images(
    data: str | list[str],
    classes: Sequence[ClassLine] | None,
    *,
    skips_unreadable: bool = False,
    work: Path | None = None,
) -> Source:
    """List real images, and warn of what is skipped; of what is converted when the command ends."""
    from hellofmt.runs import current, first_on_machine, is_unanimous
    from hellofmt.sources import open_source

    # The others read what it kept.
    with console.stage("listing images"), first_on_machine():
        images = open_source(data, classes=classes, skips_unreadable=skips_unreadable, work=work)
    if not is_unanimous(images.portable_digest):
        raise UserInputError.make(
            "E_DATA",
            f"{count(len(images), 'image')} of {count(len(images.classes), 'class', 'classes')}"
            " here, other images in another process; expected the same names and sizes everywhere",
        )
    for note in images.notes:
        console.warn(note)

    world, context = current().world, click.get_current_context()
    sources: list[Source] = context.meta.setdefault(_READ, [])
    sources.append(images)

    def say_findings() -> None:
        notes = images.conversion_notes()
        for note in notes:
            console.warn(note)
        if notes and world > 1 and images in sources:
            console.warn(f"only what the first of {world} processes met is named")

    # Known only once the images were read, and worth a word even if the command fails then.
    context.call_on_close(say_findings)
    return images


def share_findings() -> None:
    """Let every process know what any has met in the images; each calls this where it succeeds."""
    from hellofmt.runs import union_

    sources: list[Source] = click.get_current_context().meta.get(_READ, [])
    while sources:
        union_(sources.pop().marks)


def steps_of(epochs: int, images: int, batch_size: int) -> int:
    """Gradient steps of so many passes."""
    return max(1, -(-epochs * images // batch_size))
