"""Self-contained HTML pages of an archive, for ``hello inspect --html`` and ``hello show``.

Images are verified before they are shown and travel as ``data:`` URIs. There is no script and a
policy that would forbid one, nothing is fetched, and every word from the archive is escaped and
kept to its own direction, so the page of a hostile file is as harmless as the page of an honest
one. Pictures are shown as training sees them: not turned by their EXIF.
"""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING, Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape
from PIL import Image

from hellofmt.archive import UNSET, record_rows, without_metadata
from hellofmt.errors import printable, shown_path
from hellofmt_cli.inspect_rows import avoided_rows, byte_rows, image_rows
from hellofmt_cli.output import count, size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hellofmt.archive import Archive
    from hellofmt_cli.labelled import Labelled

MAX_IMAGES: Final = 120
"""Images on the contact sheet; more classes than this show the first ones."""

MAX_BYTES: Final = 16 << 20
"""Stored bytes of images in one page; a browser copes, a mail server may."""

# Packed images are shown as PNG.
_MIME: Final = {"raw": "image/png", "png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}


def _plain(value: object) -> str:
    """Words of the archive without what would move a cursor or turn a direction."""
    return printable(shown_path(value), 400)


def _name(value: object) -> Markup:
    """The same, in a direction that does not reach what stands beside it."""
    return Markup("<bdi>{}</bdi>").format(escape(_plain(value)))


def _render(archive: Archive, **values: Any) -> str:
    environment = Environment(
        loader=PackageLoader("hellofmt_cli"), autoescape=True, undefined=StrictUndefined
    )
    environment.filters |= {"plain": _plain, "name": _name}
    nothing = ("errors", "sheet", "quality", "commands", "weights", "avoided", "made", "facts")
    # Enlarged pixels of tiny pictures should be seen as such.
    small = archive.index is not None and int(archive.index.width.max()) <= 64
    page = environment.get_template("page.html.jinja").render(
        {name: [] for name in nothing},
        title=f"{archive.manifest.dataset.name} {archive.manifest.dataset.version}",
        pixelated=" pixelated" if small else "",
        **values,
    )
    return f"{page}\n"


def show_page(
    archive: Archive, images: Sequence[Labelled], errors: Sequence[Labelled], looked_at: int
) -> str:
    """A page of images, their views and labels, as HTML."""
    return _render(
        archive,
        summary=f"{archive.id}, {count(len(archive), 'image')}.",
        images=_views(images),
        errors=_views(errors),
        looked_at=count(looked_at, "image"),
    )


def inspect_page(archive: Archive, document: dict[str, Any], images: Sequence[Labelled]) -> str:
    """The report of an archive as HTML; it begins with ``images``, none if there are no labels."""
    made = record_rows(document["record"]) if document["record"] else []
    sizes = byte_rows(document)
    avoided = document["labels_avoided"]
    rivals = []
    if avoided is not None:
        stored = f"labels, {count(avoided['epochs'], 'epoch')}"
        rivals = [
            (stored, avoided["bytes"], "stored"),
            ("label function", document["bytes"]["payload"], "ours"),
        ]
    return _render(
        archive,
        summary=_summary(document),
        images=_views(images),
        sheet=_sheet(archive),
        number=len(archive),
        quality=_quality(made),
        commands=_commands(archive, document),
        weights=_bars([(name, number, "other") for name, number in sizes]),
        total=size(document["bytes"]["total"]),
        avoided=_bars(rivals),
        # The first row is the first bar.
        avoided_rows=avoided_rows(document)[1:],
        made=made,
        facts=_facts(document),
    )


def _summary(document: dict[str, Any]) -> str:
    images = document["images"]
    what = count(images["count"], "image") if images else "no images"
    functions = len(document["functions"])
    labels = count(functions, "label function") if functions else "hard labels only"
    classes = count(document["classes"], "class", "classes")
    total = size(document["bytes"]["total"])
    return f"A .hello archive of {classes} with {what} and {labels}: {total}."


def _quality(rows: list[tuple[str, str]]) -> list[str]:
    """One sentence of provenance and quality, of the lines that say how it was made."""
    kept = ("from", "teacher", "fitted", "fidelity", "student")
    facts = [f"{name}: {text}" for name, text in rows if name.split(" of ")[0] in kept]
    return ["; ".join(facts) + "."] if facts else []


def _commands(archive: Archive, document: dict[str, Any]) -> list[str]:
    if document["images"] is None:
        return []
    name = repr(archive.path.rsplit("/", 1)[-1])
    return [
        "import torch, hellofmt",
        f"dataset = hellofmt.HelloDataset({name}, expect={document['id']!r})",
        "loader = torch.utils.data.DataLoader(dataset, batch_size=50, shuffle=True)",
    ]


def _facts(document: dict[str, Any]) -> list[tuple[str, str]]:
    dataset, base, shard = document["dataset"], document["base"], document["shard"]
    facts = [
        ("method", dataset["method"]),
        ("sources", ", ".join(dataset["sources"]) or "not stated"),
        ("license", dataset["license"]),
        *image_rows(document),
    ]
    if base is not None:
        facts.append(("base", f"{base['kind']} {base['name']} {base['pretrained'] or ''}"))
        for function in document["functions"]:
            delta, head = function["delta"], function["head"]
            values = count(delta["parameters"] + head["parameters"], "value")
            if len(document["functions"]) > 1:
                facts.append(("label function", function["name"]))
            facts.append(
                ("trained", f"{values}, {count(delta['targets'], 'adapted weight')} and a head")
            )
            facts.append(("temperature", f"{function['temperature']:g}"))
        facts.append(("base digest", base["digest"]))
    if shard is not None:
        place = f"{shard['index'] + 1} of {shard['count']} of the set with content"
        facts.append(("shard", f"{place} {shard['content_id']}"))
    return [*facts, ("content id", document["content_id"]), ("id", document["id"])]


def _bars(rows: list[tuple[str, int, str]]) -> list[tuple[str, str, float, str]]:
    """Bars on one linear scale, in percent of the largest."""
    largest = max((number for _, number, _ in rows), default=1) or 1
    return [(name, size(number), 100 * number / largest, kind) for name, number, kind in rows]


def _views(images: Sequence[Labelled]) -> list[dict[str, Any]]:
    """Images for the template."""
    return [
        {
            "row": image.row,
            "name": image.name,
            "views": [
                {
                    "uri": _png(view.pixels),
                    "bars": [
                        (
                            name,
                            f"{100 * value:.0f} %",
                            100 * value,
                            "hit" if name == image.name else "other",
                        )
                        for name, value in view.label
                    ],
                }
                for view in image.views
            ],
        }
        for image in images
    ]


def _png(pixels: Any) -> str:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return _uri(out.getvalue(), "image/png")


def _uri(data: bytes, mime: str) -> str:
    return f"data:{mime};base64,{base64.b64encode(data).decode('ascii')}"


def _rows_shown(labels: list[int]) -> list[int]:
    """At most ``MAX_IMAGES`` rows: the first of every class, then the second, and so on."""
    turns: dict[int, int] = {}
    ranked: list[tuple[int, int]] = []
    for row, label in enumerate(labels):
        turns[label] = turns.get(label, -1) + 1
        ranked.append((turns[label], row))
    return sorted(row for _, row in sorted(ranked)[:MAX_IMAGES])


def _sheet(archive: Archive) -> list[tuple[str, str]]:
    """Class names and pictures of the contact sheet; none of an archive without images."""
    index, images = archive.index, archive.manifest.images
    if index is None or images is UNSET:
        return []
    names, shown, used = archive.classes.names, [], 0
    for row in _rows_shown(index.label.tolist()):
        data = archive.plain_images([row])[0]
        used += len(data)
        if used > MAX_BYTES:
            break
        if images.codec == "jpeg":
            data = without_metadata(data)
        shown.append((names[int(index.label[row])][0], _uri(data, _MIME[images.codec])))
    return shown
