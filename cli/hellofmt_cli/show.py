"""``hello show``: what a student sees, images in their views and the soft labels of each."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from hellofmt.archive import check_target
from hellofmt.errors import UserInputError, printable, shown_path
from hellofmt_cli.console import console
from hellofmt_cli.options import (
    base_option,
    command,
    expect_option,
    force_option,
    label_function_option,
    limit_option,
)
from hellofmt_cli.output import opened, write_text
from hellofmt_cli.terminal import columns, heading, width_of

if TYPE_CHECKING:
    from hellofmt_cli.labelled import Labelled

_BAR = 20
"""Characters, at most, of a bar that stands for all of the probability."""


@command("show")
@click.argument("file")
@click.option(
    "--class",
    "classes",
    metavar="NAME",
    multiple=True,
    help="Show images of this class, by key or name; may be repeated.  [default: one image each of"
    " classes spread over the list]",
)
@click.option(
    "--images",
    type=click.IntRange(1, 200),
    default=6,
    show_default=True,
    help="Number of images to show, of each class that is named.",
)
@click.option(
    "--errors",
    type=click.IntRange(0, 200),
    default=3,
    show_default=True,
    help="Number of images to show whose labels give least to their own class.",
)
@click.option(
    "--views",
    type=click.IntRange(1, 16),
    default=3,
    show_default=True,
    help="Number of views to show of each image.",
)
@click.option(
    "-o", "--output", metavar="PAGE", help="Write a page here, .html or .png, instead of text."
)
@force_option("page")
@base_option
@label_function_option
@expect_option
@limit_option
def show(
    file: str,
    classes: tuple[str, ...],
    images: int,
    errors: int,
    views: int,
    output: str | None,
    force: bool,
    base: str | None,
    label_function: str | None,
    expect: str | None,
) -> None:
    """Show images of FILE in their first views, with the soft label of each view.

    Labels are those that a student gets for exactly these views, mixed ones included. Last come the
    images whose labels give least to their own class: where the teacher disagrees, where a crop
    misses the object, or where an image has the wrong class.

    \b
    hello show photos.hello
    hello show photos.hello --class cat -o cats.html
    """  # noqa: D301
    ending = Path(output).suffix.lower() if output else ""
    if output and ending not in (".html", ".png"):
        raise UserInputError.make(
            "E_OPTION",
            f"`--output {printable(output)}`: expected a name in .html or .png",
        )
    if output:
        # Before the labels of hundreds of views are made.
        check_target(output, force=force)
    with console.stage("loading PyTorch"):
        from hellofmt_cli.labelled import LOOKED_AT, LabelledImages
    with opened(file, expect=expect) as archive:
        with console.stage("labels"):
            source = LabelledImages(archive, views=views, base=base, label_function=label_function)
            rows = source.of_classes(classes, images) if classes else source.spread(images)
            shown, wrong = source.of(rows), source.largest_errors(errors)
        if ending == ".html":
            from hellofmt_cli.pages import show_page

            looked_at = min(LOOKED_AT, len(archive))
            write_text(str(output), show_page(archive, shown, wrong, looked_at), force=force)
        elif ending == ".png":
            from hellofmt_cli.sheets import write_sheet

            write_sheet(str(output), [*shown, *wrong], force=force)
        else:
            _echo(shown)
            if wrong:
                click.echo(f"{heading('largest errors')}\n")
                _echo(wrong)
    if output:
        console.say(f"written         {shown_path(output)}")


def _echo(images: list[Labelled]) -> None:
    """Print bars of text, a line for each class of a label."""
    names = {name for image in images for view in image.views for name, _ in view.label}
    longest = max((columns(printable(name, 60)) for name in names), default=0)
    width = max(4, min(_BAR, (width_of() or 80) - 18 - longest))
    for image in images:
        click.echo(f"{heading(printable(image.name, 60))}, image {image.row}")
        for number, view in enumerate(image.views, 1):
            for place, (name, share) in enumerate(view.label):
                head = f"  view {number}" if place == 0 else ""
                bar = "█" * round(width * share)
                click.echo(f"{head:9} {100 * share:3.0f} % {bar:{width}} {printable(name, 60)}")
        click.echo()
