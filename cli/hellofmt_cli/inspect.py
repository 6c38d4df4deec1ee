"""``hello inspect``: what an archive holds, what it weighs and what it saves.

Reads the manifest, the index and the class names, never an image, and imports no torch, so it
answers at once whatever the size of the archive. One document is built first; ``--json`` prints it,
the page and the HTML report show the same numbers.

``labels_avoided`` sets the label function (sections ``adapter``, ``head`` and ``probes``) against
the float16 labels that a data set without one would store: one row of C values per image and epoch.
Class names, index and manifest are needed either way and stand on neither side. Where the labels
would be smaller, the page says so. A public base is not part of the archive; a second column
charges it to this one archive, and says how many data sets must share it to be smaller than a
ResNet-18 teacher in each.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import click

from hellofmt.archive import UNSET, record_rows
from hellofmt.errors import HelloError
from hellofmt_cli.console import console
from hellofmt_cli.inspect_document import DEFAULT_EPOCHS, describe
from hellofmt_cli.inspect_rows import (
    avoided_rows,
    byte_rows,
    image_rows,
    label_rows,
    tensor_row,
    views_line,
)
from hellofmt_cli.options import command, expect_option, json_option, limit_option
from hellofmt_cli.output import echo_json, echo_page, opened, size, write_text

if TYPE_CHECKING:
    from hellofmt.archive import Archive
    from hellofmt_cli.labelled import Labelled

_LABELLED: Final = 4
"""Images on the page whose labels are shown."""


@command("inspect")
@click.argument("file")
@click.option("--classes", "with_classes", is_flag=True, help="List the classes.")
@click.option("--tensors", "with_tensors", is_flag=True, help="List the adapted parameters.")
@click.option(
    "--epochs",
    type=click.IntRange(min=1),
    default=DEFAULT_EPOCHS,
    show_default=True,
    help="Epochs of training that stored labels would have to cover.",
)
@expect_option
@click.option(
    "--html", metavar="OUT", help="Also write a self-contained page with images and labels."
)
@click.option("--force", is_flag=True, help="Replace an existing page.")
@limit_option
@json_option
def inspect(
    file: str,
    with_classes: bool,
    with_tensors: bool,
    epochs: int,
    expect: str | None,
    html: str | None,
    force: bool,
    as_json: bool,
) -> None:
    """Show what FILE holds, what it weighs and what it saves.

    Everything shown has been checked against the archive's digests; images are not read (`hello
    verify` does). Only --expect or a signature says who made the file.

    \b
    hello inspect x.hello
    hello inspect x.hello --epochs 90 --json
    """  # noqa: D301 - click wants the character
    with opened(file, expect=expect) as archive:
        document = describe(
            archive, epochs=epochs, with_classes=with_classes, with_tensors=with_tensors
        )
        if html is not None:
            from hellofmt_cli.pages import inspect_page

            write_text(html, inspect_page(archive, document, _labelled(archive)), force=force)
    if as_json:
        echo_json(document)
    else:
        _echo_document(document)


def _labelled(archive: Archive) -> list[Labelled]:
    """A few images with their labels, where nothing has to be fetched to make these."""
    base = archive.manifest.base
    if archive.index is None or not archive.manifest.functions:
        return []
    if base is UNSET or base.kind not in ("embedded", "seeded"):
        console.say(
            "the page shows no labels, since their base encoder is not in the file;"
            " `hello show FILE --base BASE -o PAGE` does"
        )
        return []
    with console.stage("loading PyTorch"):
        from hellofmt_cli.labelled import LabelledImages
    try:
        with console.stage("labels"):
            source = LabelledImages(archive)
            return source.of(source.spread(_LABELLED))
    except HelloError as error:
        # A damaged image stops the page itself; a function that cannot be built is worth a line.
        console.say(f"the page shows no labels: {error}")
        return []


def _echo_document(document: dict[str, Any]) -> None:
    """The page: what it is, what is in it, what it weighs, what it saves."""
    dataset, images, shard = document["dataset"], document["images"], document["shard"]
    producer = document["producer"]
    rows: list[tuple[str, str] | None] = [
        ("dataset", f"{dataset['name']} {dataset['version']}"),
        ("method", dataset["method"]),
        ("sources", ", ".join(dataset["sources"]) or "not stated"),
        ("license", dataset["license"]),
        ("id", document["id"]),
        ("content id", document["content_id"]),
        ("format", f"{document['format_version']}, by {producer['name']} {producer['version']}"),
    ]
    if shard is not None:
        last = shard["first"] + (images["count"] if images else 0)
        images_of = f"images {shard['first']} to {last - 1} of {shard['total']}"
        rows.append(("shard", f"{shard['index'] + 1} of {shard['count']}: {images_of}"))
        rows.append(("set", f"content {shard['content_id']}"))
    rows.append(None)
    rows.append(("classes", f"{document['classes']:,}"))
    rows += image_rows(document)
    rows.append(("views", views_line(document["views"])))
    rows.append(None)
    rows += label_rows(document)
    echo_page(rows)
    for title, lines in _pages(document):
        if lines:
            click.echo()
            echo_page(lines, title)


def _pages(document: dict[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """What follows under titles; an empty page is not shown."""
    total, record = document["bytes"]["total"], document["record"]
    parts = [*byte_rows(document), ("total", total)]
    classes = [
        (str(row), f"{entry['key']}: {', '.join(entry['names'])}")
        for row, entry in enumerate(document.get("class_list", ()))
    ]
    return [
        ("how it was made (in its maker's words)", [] if record is None else record_rows(record)),
        ("bytes", [(name, f"{100 * part / total:5.1f} %  {size(part)}") for name, part in parts]),
        ("labels avoided", avoided_rows(document)),
        ("notes of the author (not interpreted)", sorted(document["extras"].items())),
        ("classes", classes),
        ("adapted weights", [tensor_row(tensor) for tensor in document.get("tensors", ())]),
    ]
