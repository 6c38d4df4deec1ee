"""The HTML report of ``hello inspect --html``: one self-contained page.

Images are verified before they are shown and travel as ``data:`` URIs; the chart is inline SVG.
There is no script and a policy that would forbid one, nothing is fetched, and every word from the
archive is escaped and kept to its own direction, so the page of a hostile file is as harmless as
the page of an honest one. Pictures are shown as training sees them: not turned by their EXIF.
"""

from __future__ import annotations

import base64
from html import escape
from typing import TYPE_CHECKING, Any, Final

from hellofmt.archive import UNSET, record_rows, without_metadata
from hellofmt.errors import printable, shown_path
from hellofmt_cli.inspect_rows import avoided_rows, byte_rows, image_rows
from hellofmt_cli.output import count, size, write_text

if TYPE_CHECKING:
    from hellofmt.archive import Archive

__all__ = ["write_page"]

MAX_IMAGES: Final = 120
"""Images on the contact sheet; more classes than this show the first ones."""

MAX_BYTES: Final = 16 << 20
"""Stored bytes of images in one page; a browser copes, a mail server may."""

# Packed images are shown as PNG.
_MIME: Final = {"raw": "image/png", "png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}

_STYLE: Final = """
:root { color-scheme: light dark; --ink: #1d2327; --soft: #68737d; --line: #d9dee2;
  --paper: #fbfbfa; --bar: #3d6b8e; --bar2: #b9c3cb; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8eb; --soft: #94a0aa; --line: #353c42;
  --paper: #16191c; --bar: #7fb0d4; --bar2: #4b555e; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 60rem; margin: 3rem auto; padding: 0 1.5rem; }
h1 { font-size: 1.6rem; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.05rem; margin: 2.5rem 0 .8rem; padding-bottom: .3rem;
  border-bottom: 1px solid var(--line); }
p { color: var(--soft); margin: .3rem 0; }
dl { display: grid; grid-template-columns: 9rem 1fr; gap: .25rem 1rem; margin: 0; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
code { font: 13px ui-monospace, monospace; }
svg { width: 100%; height: auto; } svg text { fill: var(--ink); font: 13px system-ui, sans-serif; }
svg .soft { fill: var(--soft); } svg .bar { fill: var(--bar); } svg .stored { fill: var(--bar2); }
.sheet { display: grid; grid-template-columns: repeat(10, minmax(0, 1fr)); gap: .9rem .7rem; }
@media (max-width: 40rem) { .sheet { grid-template-columns: repeat(5, minmax(0, 1fr)); } }
figure { margin: 0; } img { width: 100%; aspect-ratio: 1; object-fit: contain;
  image-orientation: none;  background: var(--line); border-radius: 3px; display: block; }
.pixelated img { image-rendering: pixelated; }
figcaption { font-size: 12px; color: var(--soft); white-space: nowrap; overflow: hidden;
  text-overflow: ellipsis; }
"""


def write_page(archive: Archive, document: dict[str, Any], target: str, *, force: bool) -> None:
    """Write the report of an open archive.

    Args:
        archive: the archive; the images shown are read and verified.
        document: of ``inspect.describe``.
        target: path of the page.
        force: replace an existing file.

    Raises:
        HelloError: an image is damaged; E_TARGET, the page exists.
        OSError: the page cannot be written.
    """
    write_text(target, render(archive, document), force=force)


def render(archive: Archive, document: dict[str, Any]) -> str:
    """The page as HTML text."""
    dataset = document["dataset"]
    title = f"{dataset['name']} {dataset['version']}"
    facts = [
        ("id", f"<code>{escape(document['id'])}</code>"),
        ("content id", f"<code>{escape(document['content_id'])}</code>"),
        *_shard_facts(document),
        ("method", _name(dataset["method"])),
        ("sources", ", ".join(map(_name, dataset["sources"])) or "not stated"),
        ("license", _name(dataset["license"])),
        ("classes", f"{document['classes']:,}"),
        *[(name, _name(text)) for name, text in image_rows(document)],
        *_label_facts(document),
    ]
    body = [
        f"<h1>{_name(title)}</h1>",
        f"<p>{escape(_summary(document))}</p>",
        "<h2>What it is</h2>",
        _definitions(facts),
        *_made(document),
        "<h2>Bytes</h2>",
        _chart([(name, number, "bar") for name, number in byte_rows(document)]),
        f"<p>Together {escape(size(document['bytes']['total']))}.</p>",
    ]
    rows = avoided_rows(document)
    if rows:
        avoided = document["labels_avoided"]
        epochs = count(avoided["epochs"], "epoch")
        bars = [
            (f"labels, {epochs}", avoided["bytes"], "stored"),
            ("label function", document["bytes"]["payload"], "bar"),
        ]
        body += [
            "<h2>Labels avoided</h2>",
            _chart(bars),
            # The first row is the first bar.
            _definitions([(name, escape(text)) for name, text in rows[1:]]),
        ]
    body += _sheet(archive)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "img-src data:; style-src 'unsafe-inline'\">"
        f"<title>{_text(title)}</title><style>{_STYLE}</style></head>\n<body>"
        + "\n".join(body)
        + "</body></html>\n"
    )


def _made(document: dict[str, Any]) -> list[str]:
    """How it was made, or nothing for an archive that does not remember."""
    rows = [] if document["record"] is None else record_rows(document["record"])
    if not rows:
        return []
    facts = [(shown_path(name), _name(printable(text, 400))) for name, text in rows]
    return ["<h2>How it was made, in its maker's words</h2>", _definitions(facts)]


def _text(value: object) -> str:
    """Words of the archive as HTML text or a quoted attribute."""
    return escape(shown_path(value))


def _name(value: object) -> str:
    """The same as HTML whose direction does not reach what stands beside it."""
    return f"<bdi>{_text(value)}</bdi>"


def _summary(document: dict[str, Any]) -> str:
    images = document["images"]
    what = count(images["count"], "image") if images else "no images"
    functions = len(document["functions"])
    labels = count(functions, "label function") if functions else "hard labels only"
    return f"A .hello archive with {what} and {labels}."


def _shard_facts(document: dict[str, Any]) -> list[tuple[str, str]]:
    shard = document["shard"]
    if shard is None:
        return []
    place = f"{shard['index'] + 1} of {shard['count']} of the set with content"
    return [("shard", f"{place} <code>{escape(shard['content_id'])}</code>")]


def _label_facts(document: dict[str, Any]) -> list[tuple[str, str]]:
    base = document["base"]
    if base is None:
        return []
    facts = [
        ("base", f"{base['kind']} {_name(base['name'])} {_name(base['pretrained'] or '')}"),
        ("base digest", f"<code>{escape(base['digest'])}</code>"),
    ]
    for function in document["functions"]:
        delta, head = function["delta"], function["head"]
        values = count(delta["parameters"] + head["parameters"], "value")
        trained = f"{values}, {count(delta['targets'], 'adapted weight')} and a head"
        if len(document["functions"]) > 1:
            facts.append(("label function", escape(function["name"])))
        facts.append(("trained", escape(trained)))
        facts.append(("temperature", f"{function['temperature']:g}"))
    return facts


def _definitions(rows: list[tuple[str, str]]) -> str:
    """Rows whose second part is HTML already."""
    return "<dl>" + "".join(f"<dt>{escape(n)}</dt><dd>{html}</dd>" for n, html in rows) + "</dl>"


def _chart(rows: list[tuple[str, int, str]]) -> str:
    """Horizontal bars on one linear scale; a bar is never so thin that it cannot be seen."""
    largest = max((number for _, number, _ in rows), default=1) or 1
    lines: list[str] = []
    for position, (name, number, style) in enumerate(rows):
        y = 28 * position
        width = max(1.5, 430 * number / largest)
        lines.append(
            f'<text class="soft" x="0" y="{y + 17}">{escape(name)}</text>'
            f'<rect class="{style}" x="150" y="{y + 5}" width="{width:.1f}" height="16" rx="2"/>'
            f'<text x="{158 + width:.1f}" y="{y + 17}">{escape(size(number))}</text>'
        )
    height = 28 * len(rows) + 4
    return f'<svg viewBox="0 0 840 {height}" role="img">{"".join(lines)}</svg>'


def _rows_shown(labels: list[int]) -> list[int]:
    """At most ``MAX_IMAGES`` rows: the first of every class, then the second, and so on."""
    turns: dict[int, int] = {}
    ranked: list[tuple[int, int]] = []
    for row, label in enumerate(labels):
        turns[label] = turns.get(label, -1) + 1
        ranked.append((turns[label], row))
    return sorted(row for _, row in sorted(ranked)[:MAX_IMAGES])


def _sheet(archive: Archive) -> list[str]:
    """The contact sheet, or nothing for an archive without images."""
    index, images = archive.index, archive.manifest.images
    if index is None or images is UNSET:
        return []
    names = archive.classes.names
    figures: list[str] = []
    used = 0
    for row in _rows_shown(index.label.tolist()):
        data, mime = archive.plain_images([row])[0], _MIME[images.codec]
        used += len(data)
        if used > MAX_BYTES:
            break
        if images.codec == "jpeg":
            data = without_metadata(data)
        name = names[int(index.label[row])][0]
        uri = f"data:{mime};base64,{base64.b64encode(data).decode('ascii')}"
        figures.append(
            f'<figure><img src="{uri}" alt="image {row}"><figcaption title="{_text(name)}">'
            f"{_name(name)}</figcaption></figure>"
        )
    shown = "all" if len(figures) == len(archive) else f"{len(figures):,} of"
    # Enlarged pixels of tiny pictures should be seen as such.
    small = " pixelated" if int(index.width.max()) <= 64 else ""
    return [
        f"<h2>Images: {shown} {len(archive):,}</h2>",
        f'<div class="sheet{small}">{"".join(figures)}</div>',
    ]
