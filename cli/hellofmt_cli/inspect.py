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

import math
from typing import TYPE_CHECKING, Any, Final

import click

from hellofmt.archive import UNSET
from hellofmt_cli.output import count, echo_json, echo_page, json_option, limit_option, opened, size

if TYPE_CHECKING:
    from hellofmt.archive import Archive, Manifest
    from hellofmt.ledger import Ledger, Tower

__all__ = ["describe", "inspect"]

DEFAULT_EPOCHS: Final = 300
"""Epochs of the students in the literature (SRe2L, RDED, HeLlO)."""


@click.command("inspect")
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
@click.option("--expect", metavar="ID", help="Refuse any archive but the one with this sha256 id.")
@click.option("--html", metavar="OUT", help="Also write a self-contained page with the images.")
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
    """
    with opened(file, expect=expect) as archive:
        document = describe(
            archive, epochs=epochs, with_classes=with_classes, with_tensors=with_tensors
        )
        if html is not None:
            from hellofmt_cli.inspect_page import write_page

            write_page(archive, document, html, force=force)
    if as_json:
        echo_json(document)
    else:
        _echo_document(document)


def describe(
    archive: Archive, *, epochs: int, with_classes: bool = False, with_tensors: bool = False
) -> dict[str, Any]:
    """The document ``hello.inspect/1``; groups that the archive has not are None.

    Args:
        archive: an open archive.
        epochs: E >= 1, of the labels that would otherwise be stored.
        with_classes: add ``class_list``.
        with_tensors: add ``tensors``.

    Returns:
        Plain JSON values. Sizes are bytes, image sides pixels, ratios dimensionless.

    Raises:
        HelloError: a section that is needed is damaged.
    """
    from hellofmt.archive import decimal_value
    from hellofmt.ledger import ledger_of

    manifest = archive.manifest
    ledger = ledger_of(archive)
    head = manifest.head
    dataset = manifest.dataset
    document: dict[str, Any] = {
        "schema": "hello.inspect/1",
        "id": archive.id,
        "content_id": archive.content_id,
        "format_version": manifest.hello,
        "dataset": {
            "name": dataset.name,
            "version": dataset.version,
            "license": dataset.license,
            "method": dataset.method,
            "sources": list(dataset.sources),
            "ipc": None if dataset.ipc is UNSET else dataset.ipc,
        },
        "producer": {"name": manifest.producer.name, "version": manifest.producer.version},
        "images": _images(archive, ledger),
        "classes": manifest.classes,
        "base": _base(manifest),
        "delta": _delta(manifest, ledger),
        "head": _head(manifest, ledger),
        "temperature": None if head is UNSET else decimal_value(head.temperature),
        "views": {
            "size": manifest.views.size,
            "mix": manifest.views.mix,
            "mix_probability": decimal_value(manifest.views.mix_probability),
            "crop_scale": [decimal_value(bound) for bound in manifest.views.crop_scale],
            "flip": decimal_value(manifest.views.flip),
            "shuffle": manifest.views.shuffle,
        },
        "shard": _shard(manifest),
        "bytes": {
            "total": ledger.total,
            "payload": ledger.payload,
            "base": ledger.base,
            "images": ledger.pixels,
            "framing": ledger.framing,
            "sections": dict(ledger.sections),
        },
        "labels_avoided": _labels_avoided(manifest, ledger, epochs),
        "gflop_per_label": _gflop(manifest),
        "extras": dict(archive.extras),
    }
    if with_classes:
        classes = archive.classes
        document["class_list"] = [
            {"key": key, "names": list(names)}
            for key, names in zip(classes.keys, classes.names, strict=True)
        ]
    if with_tensors:
        document["tensors"] = _tensors(manifest)
    return document


def _images(archive: Archive, ledger: Ledger) -> dict[str, Any] | None:
    images, index = archive.manifest.images, archive.index
    if images is UNSET or index is None:
        return None
    return {
        "count": images.count,
        "codec": images.codec,
        "layout": images.layout,
        "height": [int(index.height.min()), int(index.height.max())],
        "width": [int(index.width.min()), int(index.width.max())],
        "bytes": ledger.pixels,
    }


def _base(manifest: Manifest) -> dict[str, Any] | None:
    base = manifest.base
    if base is UNSET:
        return None
    return {
        "kind": base.kind,
        "name": base.name,
        "pretrained": None if base.pretrained is UNSET else base.pretrained,
        "digest": base.digest,
        "size": base.preprocess.size,
        "embed_dim": base.arch.embed_dim,
    }


def _delta(manifest: Manifest, ledger: Ledger) -> dict[str, Any] | None:
    from hellofmt.ledger import factor_values

    adapter = manifest.adapter
    if adapter is UNSET:
        return None
    return {
        "parameters": factor_values(adapter, None, 0, 0),
        "bytes": ledger.sections["adapter"],
        "targets": len(adapter.targets),
    }


def _head(manifest: Manifest, ledger: Ledger) -> dict[str, Any] | None:
    from hellofmt.ledger import factor_values

    head, base = manifest.head, manifest.base
    if head is UNSET or base is UNSET:
        return None
    return {
        "start": head.start,
        "rank": None if head.a is UNSET else head.a[0],
        "storage": head.storage,
        "bias": head.bias,
        "parameters": factor_values(None, head, base.arch.embed_dim, manifest.classes),
        "bytes": ledger.sections["head"],
    }


def _shard(manifest: Manifest) -> dict[str, Any] | None:
    shard = manifest.shard
    if shard is UNSET:
        return None
    return {"index": shard.index, "count": shard.count, "first": shard.first, "total": shard.total}


def _labels_avoided(manifest: Manifest, ledger: Ledger, epochs: int) -> dict[str, Any] | None:
    if manifest.head is UNSET or not ledger.images:
        return None
    base = _base_bytes(manifest, ledger)
    return {
        "epochs": epochs,
        "bytes": ledger.labels(epochs),
        "ratio": ledger.ratio(epochs),
        "break_even": ledger.break_even(),
        "base_bytes": base,
        "ratio_charged": None if base is None else ledger.ratio(epochs, base),
        "break_even_charged": None if base is None else ledger.break_even(base),
        "data_sets_per_base": None if base is None else _data_sets(ledger, base),
    }


def _base_bytes(manifest: Manifest, ledger: Ledger) -> int | None:
    """Bytes of the image tower in float16, or as embedded; None for one that nobody published."""
    base = manifest.base
    if base is UNSET:
        return None
    if base.kind != "open_clip":
        return ledger.base
    tower = _tower(manifest)
    return None if tower is None else tower.tower_bytes("float16")


def _data_sets(ledger: Ledger, base: int) -> float | None:
    """Data sets that must share the base to beat a float16 ResNet-18 in each; None: never."""
    from hellofmt.ledger import break_even_data_sets, model_bytes, resnet18_parameters

    teacher = model_bytes(resnet18_parameters(ledger.classes), "float16")
    return break_even_data_sets(base, teacher, ledger.payload)


def _tower(manifest: Manifest) -> Tower | None:
    """What is known of the base's image tower; None for a base that nobody published."""
    from hellofmt.ledger import tower_named

    base = manifest.base
    if base is UNSET or base.kind != "open_clip":
        return None
    tower = tower_named(base.name)
    # A name is only a hint of the file's author, so the shape has to agree.
    if tower is None or (tower.size, tower.dim) != (base.preprocess.size, base.arch.embed_dim):
        return None
    return tower


def _gflop(manifest: Manifest) -> float | None:
    """GFLOP of one label, to two digits: one image through the tower."""
    tower = _tower(manifest)
    return None if tower is None else round(tower.gflop, 2)


def _tensors(manifest: Manifest) -> list[dict[str, Any]]:
    adapter = manifest.adapter
    if adapter is UNSET:
        return []
    return [
        {
            "param": target.param,
            "shape": list(target.shape),
            "a": list(target.a),
            "b": list(target.b),
            "scale": target.scale,
            "storage": target.storage,
        }
        for target in adapter.targets
    ]


def _span(bounds: list[int]) -> str:
    low, high = bounds
    return str(low) if low == high else f"{low}-{high}"


def percent(ratio: float) -> str:
    """A ratio as a percentage of three digits, never in exponents: ``0.00293 %``, ``1,240 %``."""
    value = 100 * ratio
    if value >= 1000:
        return f"{value:,.0f} %"
    text = f"{value:.3g}"
    if "e" not in text:
        return f"{text} %"
    # %g turns to exponents below 1e-4; as many decimals as leave three digits.
    return f"{value:.{2 - math.floor(math.log10(value))}f}".rstrip("0") + " %"


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
    rows.append(None)
    rows.append(("classes", f"{document['classes']:,}"))
    if images is None:
        rows.append(("images", "none"))
    else:
        per_class = f", {dataset['ipc']} per class" if dataset["ipc"] else ""
        sides = f"{_span(images['height'])} x {_span(images['width'])} pixels"
        is_packed = images["layout"] == "packed"
        codec = "packed as raw pixels" if is_packed else images["codec"]
        rows.append(("images", f"{images['count']:,} {codec}, {sides}{per_class}"))
    rows.append(("views", _views_line(document["views"])))
    rows.append(None)
    rows += _label_rows(document)
    echo_page(rows)
    click.echo()
    _echo_bytes(document)
    _echo_avoided(document)
    _echo_lists(document)


def _views_line(views: dict[str, Any]) -> str:
    low, high = views["crop_scale"]
    parts = [f"{views['size']} x {views['size']} pixels", f"crops of {low:g} to {high:g}"]
    if views["flip"]:
        parts.append(f"flip {views['flip']:g}")
    if views["mix"] != "none":
        parts.append(f"{views['mix']} {views['mix_probability']:g}")
    if views["shuffle"] > 1:
        parts.append(f"patches shuffled {views['shuffle']} x {views['shuffle']}")
    return ", ".join(parts)


def _label_rows(document: dict[str, Any]) -> list[tuple[str, str] | None]:
    """The label function, or a line that there is none."""
    base, delta, head = document["base"], document["delta"], document["head"]
    if base is None or delta is None or head is None:
        return [("labels", "hard labels only; no label function")]
    name = f"{base['kind']} {base['name']}"
    if base["pretrained"] is not None:
        name += f" ({base['pretrained']})"
    rank = "full" if head["rank"] is None else f"rank {head['rank']}"
    start = "from class names" if head["start"] == "text" else "stored"
    rows: list[tuple[str, str] | None] = [
        ("base", name),
        ("base digest", base["digest"]),
        ("delta", f"{count(delta['parameters'], 'value')} on {count(delta['targets'], 'weight')}"),
        ("head", f"{count(head['parameters'], 'value')}, {rank}, {start}, as {head['storage']}"),
        ("temperature", f"{document['temperature']:g}"),
    ]
    if document["gflop_per_label"] is not None:
        rows.append(("compute", f"{document['gflop_per_label']:g} GFLOP per label"))
    return rows


def byte_rows(document: dict[str, Any]) -> list[tuple[str, int]]:
    """Bytes by part, adding up to the total, without it."""
    sizes = document["bytes"]
    sections = sizes["sections"]
    parts = [
        ("images", sizes["images"]),
        ("label function", sizes["payload"]),
        ("base", sizes["base"]),
        ("index", sections.get("index", 0)),
        ("class names", sections.get("classes", 0)),
    ]
    framing = sizes["framing"]
    rest = sizes["total"] - sum(number for _, number in parts) - framing
    parts += [("other sections", rest), ("framing", framing)]
    return [(name, number) for name, number in parts if number]


def _echo_bytes(document: dict[str, Any]) -> None:
    total = document["bytes"]["total"]
    rows = byte_rows(document)
    click.echo("bytes")
    echo_page(
        [
            *((name, f"{100 * number / total:5.1f} %  {size(number)}") for name, number in rows),
            ("total", f"        {size(total)}"),
        ],
        indent=2,
    )


def avoided_rows(document: dict[str, Any]) -> list[tuple[str, str]]:
    """What the label function saves, in words; empty where there is nothing to compare."""
    avoided = document["labels_avoided"]
    if avoided is None:
        return []
    payload = document["bytes"]["payload"]
    epochs = count(avoided["epochs"], "epoch")
    rows = [
        ("stored labels", f"{size(avoided['bytes'])}: {epochs}, float16"),
        ("label function", f"{size(payload)}: {percent(avoided['ratio'])} of that"),
        ("break-even", _pays(avoided["ratio"], avoided["break_even"])),
    ]
    return rows + _charged_rows(document)


def _pays(ratio: float, break_even: int) -> str:
    """From which epoch on a label function pays, or until when it does not."""
    if ratio <= 1:
        return f"smaller from epoch {break_even:,} on"
    return f"stored labels would be smaller up to epoch {break_even - 1:,}: few images or classes"


def _charged_rows(document: dict[str, Any]) -> list[tuple[str, str]]:
    """The same with the base charged to this one archive."""
    avoided, base = document["labels_avoided"], document["base"]
    number, ratio = avoided["base_bytes"], avoided["ratio_charged"]
    if number is None:
        return [("base charged", "unknown: no public tower of this name and shape")]
    if not number:
        return [("base charged", f"the same: a {base['kind']} base has no bytes")]
    form = "as embedded" if base["kind"] == "embedded" else "in float16"
    sets = avoided["data_sets_per_base"]
    shared = "no number of data sets is" if sets is None else f"{_least(sets)} are"
    return [
        ("with its base", f"{size(number)} {form} more: {percent(ratio)} of stored labels"),
        ("break-even with it", _pays(ratio, avoided["break_even_charged"])),
        ("sharing it", f"{shared} smaller than a float16 ResNet-18 teacher in each"),
    ]


def _least(sets: float) -> str:
    """The first whole number of data sets above the break-even."""
    return f"{math.floor(sets) + 1:,} or more data sets"


def _echo_avoided(document: dict[str, Any]) -> None:
    rows = avoided_rows(document)
    if rows:
        click.echo()
        click.echo("labels avoided")
        echo_page(rows, indent=2)


def _echo_lists(document: dict[str, Any]) -> None:
    if document["extras"]:
        click.echo()
        click.echo("notes of the author (not interpreted)")
        echo_page(sorted(document["extras"].items()), indent=2)
    if "class_list" in document:
        click.echo()
        click.echo("classes")
        rows = [
            (str(row), f"{entry['key']}: {', '.join(entry['names'])}")
            for row, entry in enumerate(document["class_list"])
        ]
        echo_page(rows, indent=2)
    if "tensors" in document:
        click.echo()
        click.echo("adapted weights")
        echo_page([_tensor_row(tensor) for tensor in document["tensors"]], indent=2)


def _tensor_row(tensor: dict[str, Any]) -> tuple[str, str]:
    factors = f"A {_shape(tensor['a'])}, B {_shape(tensor['b'])}"
    what = f"{_shape(tensor['shape'])}: {factors}, scale {tensor['scale']}, {tensor['storage']}"
    return tensor["param"], what


def _shape(shape: list[int]) -> str:
    return " x ".join(str(side) for side in shape)
