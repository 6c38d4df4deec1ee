"""``hello diff``: in what two archives differ.

Compared are facts, not bytes: the fields of the two manifests, the sections by the digest of their
raw bytes, classes by key, images by digest and label. So archives that differ only in compression
compare as the same content under two ids. Sections' digests stand in the manifest and images' in
the index, so no image is read.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import click
import msgspec

from hellofmt_cli.options import command, json_option, limit_option
from hellofmt_cli.output import count, echo_json, echo_page, echo_text, opened

if TYPE_CHECKING:
    from hellofmt.archive import Archive

_SHOWN = 20


@command("diff")
@click.argument("file_a", metavar="A")
@click.argument("file_b", metavar="B")
@click.option("--exit-code", is_flag=True, help="Exit with 1 where the archives differ.")
@limit_option
@json_option
@click.pass_context
def diff(ctx: click.Context, file_a: str, file_b: str, exit_code: bool, as_json: bool) -> None:
    """Say in what archives A and B differ: manifest, sections, classes, images.

    Exits with 0 whether they differ or not, since 1 is kept for faults of the program; with
    --exit-code a difference gives 1, as `diff` and `git diff --exit-code` do.

    \b
    hello diff a.hello b.hello
    hello diff a.hello b.hello --json --exit-code
    """  # noqa: D301 - click wants the character
    with opened(file_a) as a:
        facts_a = _facts(a)
    with opened(file_b) as b:
        facts_b = _facts(b)
    document = _compare(facts_a, facts_b)
    if as_json:
        echo_json(document)
    else:
        _echo(document)
    if exit_code and not document["same"]:
        ctx.exit(1)


def _facts(archive: Archive) -> dict[str, Any]:
    """What is compared, held after the archive is closed."""
    fields = msgspec.to_builtins(archive.manifest)
    sections = fields.pop("sections")
    fields.update(archive.extras)
    if archive.record is not None:
        fields["record"] = msgspec.to_builtins(archive.record)
    index = archive.index
    images: Counter[tuple[str, int]] = Counter()
    if index is not None:
        digests = (bytes(row).hex() for row in index.sha256)
        images = Counter(zip(digests, index.label.tolist(), strict=True))
    return {
        "id": archive.id,
        "content_id": archive.content_id,
        "fields": dict(_flat("", fields)),
        # Raw digests: whether a section was compressed is no difference in content.
        "sections": {s["name"]: s.get("raw_digest", s["digest"]) for s in sections},
        "classes": archive.classes.keys,
        "images": images,
    }


def _flat(prefix: str, value: Any) -> list[tuple[str, Any]]:
    """A document as (dotted path, leaf) pairs; short lists of leaves stay whole."""
    if isinstance(value, dict):
        items = [(str(key), child) for key, child in value.items()]
    elif isinstance(value, list) and any(isinstance(child, dict | list) for child in value):
        # Adapted weights and label functions have a name; a number would shift with every one
        # before it.
        items = [
            (
                str(child.get("param", child.get("name", i)))
                if isinstance(child, dict)
                else str(i),
                child,
            )
            for i, child in enumerate(value)
        ]
    else:
        return [(prefix, value)]
    return [
        pair for key, child in items for pair in _flat(f"{prefix}.{key}" if prefix else key, child)
    ]


def _compare(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    """The document ``hello.diff/1``."""
    images_a, images_b = a["images"], b["images"]
    only_a, only_b = images_a - images_b, images_b - images_a
    by_digest_a = Counter(digest for digest, _ in only_a.elements())
    by_digest_b = Counter(digest for digest, _ in only_b.elements())
    relabelled = (by_digest_a & by_digest_b).total()
    return {
        "schema": "hello.diff/1",
        "same": a["id"] == b["id"],
        "same_content": a["content_id"] == b["content_id"],
        "id": [a["id"], b["id"]],
        "content_id": [a["content_id"], b["content_id"]],
        "manifest": _changed(a["fields"], b["fields"]),
        "sections": _changed(a["sections"], b["sections"]),
        "classes": {
            "only_a": sorted(set(a["classes"]) - set(b["classes"])),
            "only_b": sorted(set(b["classes"]) - set(a["classes"])),
            "same_order": a["classes"] == b["classes"],
        },
        "images": {
            "common": (images_a & images_b).total(),
            "only_a": only_a.total() - relabelled,
            "only_b": only_b.total() - relabelled,
            "relabelled": relabelled,
        },
    }


def _changed(a: dict[str, Any], b: dict[str, Any]) -> list[dict[str, Any]]:
    """Keys whose values differ, with both; None where one side has none."""
    return [
        {"key": key, "a": a.get(key), "b": b.get(key)}
        for key in sorted(a.keys() | b.keys())
        if a.get(key) != b.get(key)
    ]


def _echo(document: dict[str, Any]) -> None:
    if document["same"]:
        click.echo(f"same: {document['id'][0]}")
        return
    if document["same_content"]:
        echo_text(
            "same content under two ids: producer, record, texts, notes or compression differ"
        )
    rows: list[tuple[str, str] | None] = [
        ("id", f"{document['id'][0]} -> {document['id'][1]}"),
    ]
    rows += [
        (change["key"], f"{_shown(change['a'])} -> {_shown(change['b'])}")
        for change in document["manifest"]
    ]
    for change in document["sections"]:
        what = "only in B" if change["a"] is None else "only in A" if change["b"] is None else ""
        rows.append((f"section {change['key']}", what or "other bytes"))
    classes = document["classes"]
    for side, name in (("only_a", "A"), ("only_b", "B")):
        if classes[side]:
            some = ", ".join(classes[side][:_SHOWN])
            number = count(len(classes[side]), "class", "classes")
            rows.append(("classes", f"{number} only in {name}: {some}"))
    if not (classes["only_a"] or classes["only_b"] or classes["same_order"]):
        rows.append(("classes", "in another order"))
    rows.append(("images", _images_line(document["images"])))
    echo_page(rows)


def _images_line(images: dict[str, int]) -> str:
    parts = [f"{images['common']:,} in common"]
    for key, text in (
        ("relabelled", "with another label"),
        ("only_a", "only in A"),
        ("only_b", "only in B"),
    ):
        if images[key]:
            parts.append(f"{images[key]:,} {text}")
    return ", ".join(parts)


def _shown(value: Any) -> str:
    return "absent" if value is None else str(value)
