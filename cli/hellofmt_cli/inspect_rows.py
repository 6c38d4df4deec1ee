"""Lines of ``hello inspect`` that its text and its page share."""

from __future__ import annotations

import math
from typing import Any

from hellofmt_cli.output import count, size


def span(bounds: list[int]) -> str:
    """``3``, or ``3-8``."""
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


def views_line(views: dict[str, Any]) -> str:
    """How views are drawn, in one line."""
    low, high = views["crop_scale"]
    parts = [f"{views['size']} x {views['size']} pixels", f"crops of {low:g} to {high:g}"]
    if views["flip"]:
        parts.append(f"flip {views['flip']:g}")
    if views["mix"] != "none":
        parts.append(f"{views['mix']} {views['mix_probability']:g}")
    if views["shuffle"] > 1:
        parts.append(f"patches shuffled {views['shuffle']} x {views['shuffle']}")
    return ", ".join(parts)


def image_rows(document: dict[str, Any]) -> list[tuple[str, str]]:
    """The images, what the index says of them besides, and what fewer of them cost."""
    images, ipc = document["images"], document["dataset"]["ipc"]
    if images is None:
        return [("images", "none")]
    per_class = f", {ipc} per class" if ipc else ""
    sides = f"{span(images['height'])} x {span(images['width'])} pixels"
    codec = "packed as raw pixels" if images["layout"] == "packed" else images["codec"]
    rows = [("images", f"{images['count']:,} {codec}, {sides}{per_class}")]
    if images["columns"]:
        columns = (f"{c['name']} {c['dtype']} {c['shape']}" for c in images["columns"])
        rows.append(("columns", ", ".join(columns)))
    if images["order"] is not None:
        sizes = (f"{one['ipc']}: {size(one['bytes']).split(' (')[0]}" for one in images["sizes"])
        alone = ", ".join(sizes) or "none, for a class has no image"
        rows.append(("order", f"by value; the first of each class alone, {alone}"))
    return rows


def label_rows(document: dict[str, Any]) -> list[tuple[str, str] | None]:
    """The label function, or a line that there is none."""
    base = document["base"]
    if base is None:
        if document["label_function"] is None:
            return [("labels", "hard labels only; no label function")]
        return [
            ("labels", f"hard ones here; the label function is in {document['label_function']}")
        ]
    # A name with a colon says its library: `timm:resnet50`, `hf-hub:ORG/NAME`.
    kind = "" if base["kind"] == "open_clip" and ":" in base["name"] else f"{base['kind']} "
    name = f"{kind}{base['name']}"
    if base["pretrained"] is not None:
        name += f" ({base['pretrained']})"
    rows: list[tuple[str, str] | None] = [("base", name), ("base digest", base["digest"])]
    for place, function in enumerate(document["functions"]):
        delta, head = function["delta"], function["head"]
        if len(document["functions"]) > 1:
            default = "" if place else ", taken unless another is named"
            rows.append(("label function", f"{function['name']}{default}"))
        rank = "full" if head["rank"] is None else f"rank {head['rank']}"
        start = "from class names" if head["start"] == "text" else "stored"
        trained = count(delta["parameters"], "value")
        rows += [
            ("delta", f"{trained} on {count(delta['targets'], 'weight')}"),
            (
                "head",
                f"{count(head['parameters'], 'value')}, {rank}, {start}, as {head['storage']}",
            ),
            ("temperature", f"{function['temperature']:g}"),
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
    shared = "no number of data sets is"
    if sets is not None:
        shared = f"{math.floor(sets) + 1:,} or more data sets are"
    return [
        ("with its base", f"{size(number)} {form} more: {percent(ratio)} of stored labels"),
        ("break-even with it", _pays(ratio, avoided["break_even_charged"])),
        ("sharing it", f"{shared} smaller than a float16 ResNet-18 teacher in each"),
    ]


def tensor_row(tensor: dict[str, Any]) -> tuple[str, str]:
    """Name and shapes of one adapted weight."""
    factors = f"A {_shape(tensor['a'])}, B {_shape(tensor['b'])}"
    what = f"{_shape(tensor['shape'])}: {factors}, scale {tensor['scale']}, {tensor['storage']}"
    return tensor["param"], what


def _shape(shape: list[int]) -> str:
    return " x ".join(str(side) for side in shape)
