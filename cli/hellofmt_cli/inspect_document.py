"""What ``hello inspect --json`` prints, and what text and page are made from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from hellofmt.archive import UNSET

if TYPE_CHECKING:
    from hellofmt.archive import Archive, Index, Manifest
    from hellofmt.ledger import Ledger, Tower

_IPC: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500)
DEFAULT_EPOCHS: Final = 300
"""Epochs of the students in the literature (SRe2L, RDED, HeLlO)."""


def describe(
    archive: Archive, *, epochs: int, with_classes: bool = False, with_tensors: bool = False
) -> dict[str, Any]:
    """Build the document ``hello.inspect/1``; groups missing from the archive are None.

    Sizes are bytes, image sides pixels, ratios dimensionless; ``epochs`` are those of the labels
    that would otherwise be stored.
    """
    from hellofmt.archive import decimal_value
    from hellofmt.ledger import ledger_of

    manifest = archive.manifest
    ledger = ledger_of(archive)
    dataset, tower = manifest.dataset, _tower(manifest)
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
        "functions": _functions(manifest, ledger),
        "label_function": manifest.label_function or None,
        "views": {
            "size": manifest.views.size,
            "mix": manifest.views.mix,
            "mix_probability": decimal_value(manifest.views.mix_probability or "0.0"),
            "crop_scale": [decimal_value(bound) for bound in manifest.views.crop_scale],
            "flip": decimal_value(manifest.views.flip),
            "shuffle": manifest.views.shuffle,
        },
        "shard": None if manifest.shard is UNSET else msgspec.to_builtins(manifest.shard),
        "bytes": {
            "total": ledger.total,
            "payload": ledger.payload,
            "base": ledger.base,
            "images": ledger.pixels,
            "framing": ledger.framing,
            "sections": dict(ledger.sections),
        },
        "labels_avoided": _labels_avoided(manifest, ledger, epochs),
        # One image through the tower.
        "gflop_per_label": None if tower is None else round(tower.gflop, 2),
        "extras": dict(archive.extras),
        "record": None if archive.record is None else msgspec.to_builtins(archive.record),
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
        "columns": [
            {"name": column.name, "dtype": column.dtype, "shape": list(column.shape)}
            for column in images.columns or []
        ],
        "order": images.order or None,
        "sizes": _sizes(archive, index),
    }


def _sizes(archive: Archive, index: Index) -> list[dict[str, int]]:
    """What the first images of each class cost, for the sizes that the field uses.

    Bytes are those of a file without the other images, whose index says more than it needs.
    """
    import numpy as np

    images = archive.manifest.images
    if images is UNSET or images.order is UNSET:
        return []
    most = int(np.bincount(index.label, minlength=archive.manifest.classes).min())
    number = index.numbers_in_class()
    # Header, bytes and padding of a member; pixels have neither.
    stored = index.size if images.layout == "packed" else 512 - (-index.size // 512) * 512
    left_out = {k: number >= k for k in sorted({*_IPC, most}) if 1 <= k <= most}
    return [
        {
            "ipc": k,
            "images": int((~rows).sum()),
            "bytes": archive.size_bytes - int(stored[rows].sum()),
        }
        for k, rows in left_out.items()
    ]


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


def _functions(manifest: Manifest, ledger: Ledger) -> list[dict[str, Any]]:
    """Every label function, the default first."""
    from hellofmt.archive import decimal_value, function_section
    from hellofmt.ledger import factor_values

    if manifest.functions is UNSET or manifest.base is UNSET:
        return []
    dim, described = manifest.base.arch.embed_dim, list[dict[str, Any]]()
    for function in manifest.functions:
        adapter, head = function.adapter, function.head
        sizes = {
            kind: ledger.sections[function_section(manifest, function.name, kind)]
            for kind in ("adapter", "head")
        }
        described.append(
            {
                "name": function.name,
                "task": function.task,
                "link": head.link,
                "temperature": decimal_value(head.temperature),
                "probes": function.probes.count,
                "delta": {
                    "parameters": factor_values(adapter, None, 0, 0),
                    "bytes": sizes["adapter"],
                    "targets": len(adapter.targets),
                },
                "head": {
                    "start": head.start,
                    "rank": None if head.a is UNSET else head.a[0],
                    "storage": head.storage or None,
                    "bias": head.bias,
                    "parameters": factor_values(None, head, dim, manifest.classes),
                    "bytes": sizes["head"],
                },
            }
        )
    return described


def _labels_avoided(manifest: Manifest, ledger: Ledger, epochs: int) -> dict[str, Any] | None:
    if manifest.functions is UNSET or not ledger.images:
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
    tower = tower_named(base.name, base.preprocess.size)
    # A name is only a hint of the file's author, so the shape has to agree.
    if tower is None or (tower.size, tower.dim) != (base.preprocess.size, base.arch.embed_dim):
        return None
    return tower


def _tensors(manifest: Manifest) -> list[dict[str, Any]]:
    if manifest.functions is UNSET:
        return []
    return [
        {"function": function.name, **msgspec.to_builtins(target)}
        for function in manifest.functions
        for target in function.adapter.targets
    ]
