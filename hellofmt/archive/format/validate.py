"""Check the rules between fields that the manifest's types cannot express."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

from msgspec import UNSET, Struct

from hellofmt.archive.format.canonical import decimal_string
from hellofmt.archive.format.columns import (
    INDEX_COLUMNS,
    ROW_BYTES,
    column_fault,
    columns_of,
    row_bytes,
)
from hellofmt.archive.format.digest import base_digest
from hellofmt.archive.format.fields import Problem, exactly, in_range
from hellofmt.archive.format.functions import (
    FUNCTION_SECTIONS,
    function_section,
    functions_of,
    section_order,
)
from hellofmt.archive.format.label_function import adapter_problems, head_problems
from hellofmt.archive.format.layout import MANIFEST_MEMBER, section_member
from hellofmt.archive.format.limits import IMAGE_SIDE, TEXT_BYTES, Limits, check_fixed, check_limit
from hellofmt.archive.format.towers import (
    arch_problems,
    has_activation,
    text_problems,
    text_size,
    vision_size,
)
from hellofmt.archive.format.views import view_problems
from hellofmt.errors import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from hellofmt.archive.format.manifest import Base, Images, Manifest

# Most characters of all ``x_`` keys and values together.
_EXTRAS_BYTES: Final = 64 << 10


def validate_extras(extras: Mapping[str, Any]) -> list[Problem]:
    """List the faults of a manifest's ``x_`` keys."""
    problems: list[Problem] = []
    total = 0
    for key, value in extras.items():
        if not isinstance(value, str):
            problems.append(Problem(printable(key), "type", "expected a string"))
        elif len(key) > 4096 or len(value) > 4096:
            text = "expected at most 4096 characters"
            problems.append(Problem(printable(key, 40), "value", text))
        else:
            total += len(key) + len(value)
    if total > _EXTRAS_BYTES:
        text = f"expected at most {_EXTRAS_BYTES} characters, got {total}"
        problems.append(Problem("x_", "value", text))
    return problems


def validate_manifest(manifest: Manifest) -> Iterator[Problem]:
    """Yield everything in a manifest that its types allow but the format forbids."""
    yield from _group_problems(manifest)
    yield from _section_problems(manifest)
    yield from _image_problems(manifest)
    yield from view_problems(manifest.views)
    yield from _decimal_problems(manifest)
    if manifest.base is not UNSET:
        yield from _base_problems(manifest.base)
        yield from _function_problems(manifest, manifest.base)
    if sorted(set(manifest.requires)) != manifest.requires:
        yield Problem("requires", "order", "expected sorted names, each once")


def _decimal_problems(value: Struct, loc: str = "") -> Iterator[Problem]:
    """Of all strings that read as one double only the shortest is its decimal."""
    for name, kind in type(value).__annotations__.items():
        part = getattr(value, name)
        for i, item in enumerate(part if isinstance(part, list) else [part]):
            place = f"{loc}{name}.{i}" if isinstance(part, list) else f"{loc}{name}"
            if isinstance(item, Struct):
                yield from _decimal_problems(item, f"{place}.")
            elif isinstance(item, str) and kind.startswith("Decimal"):
                shortest = decimal_string(float(item))
                if item != shortest:
                    text = f"expected {shortest}, the shortest for this number, got {item}"
                    yield Problem(place, "value", text)


def _group_problems(manifest: Manifest) -> Iterator[Problem]:
    """Check groups that come together or not at all, and their sections."""
    names = {section.name for section in manifest.sections}
    functions, base, images = functions_of(manifest), manifest.base, manifest.images
    if bool(functions) != (base is not UNSET):
        missing, present = ("base", "functions") if functions else ("functions", "base")
        yield Problem(missing, "group", f"missing beside `{present}`")
    titles = [function.name for function in functions]
    for i, title in enumerate(titles):
        if title in titles[:i]:
            text = f"duplicate label function `{title}`"
            yield Problem(f"functions.{i}.name", "duplicate", text)
    packed = images is not UNSET and images.layout == "packed"
    expected = {
        "classes": True,
        **dict.fromkeys(FUNCTION_SECTIONS, bool(functions)),
        **{f"{kind}_{f.name}": True for f in functions[1:] for kind in FUNCTION_SECTIONS},
        "base": base is not UNSET and base.kind == "embedded",
        "index": images is not UNSET,
        "pixels": packed,
    }
    for name, is_expected in expected.items():
        if is_expected and name not in names:
            yield Problem("sections", "group", f"section `{name}` is missing")
        elif name in names and not is_expected:
            text = f"section `{name}` belongs to no group of this manifest"
            yield Problem("sections", "group", text)
    if manifest.label_function is not UNSET and (functions or images is UNSET):
        text = "expected only for images without label functions"
        yield Problem("label_function", "group", text)
    if not functions and images is UNSET:
        yield Problem("images", "group", "expected images, a projector or both")
    if packed != ("images.packed" in manifest.requires):
        text = "expected `images.packed` exactly for the packed layout"
        yield Problem("requires", "group", text)
    if manifest.shard is not UNSET and images is UNSET:
        yield Problem("shard", "group", "expected images as well")


def _section_problems(manifest: Manifest) -> Iterator[Problem]:
    seen: set[str] = set()
    last = -1
    order = section_order(manifest)
    for i, section in enumerate(manifest.sections):
        loc, name = f"sections.{i}", section.name
        if name in seen:
            yield Problem(f"{loc}.name", "duplicate", f"duplicate section `{name}`")
        seen.add(name)
        if name in order:
            place = order.index(name)
            if place < last:
                yield Problem(f"{loc}.name", "order", f"section `{name}` is out of order")
            last = max(last, place)
        # Only a newer minor version may bring sections that this reader does not know.
        elif not manifest.is_newer or name in ("manifest", "id"):
            yield Problem(f"{loc}.name", "value", f"unknown section `{name}`")
        if section.size == 0:
            yield Problem(f"{loc}.size", "value", "expected at least 1 byte")
        packs = section.encoding == "zstd"
        if packs and name in ("index", "pixels", "base"):
            yield Problem(f"{loc}.encoding", "value", "expected none, got zstd")
        if packs != (section.raw_size is not UNSET) or packs != (section.raw_digest is not UNSET):
            text = "expected `raw_size` and `raw_digest` if and only if the encoding is zstd"
            yield Problem(loc, "group", text)


def _image_problems(manifest: Manifest) -> Iterator[Problem]:
    images, shard, ipc = manifest.images, manifest.shard, manifest.dataset.ipc
    if images is UNSET:
        if ipc is not UNSET:
            yield Problem("dataset.ipc", "group", "expected none without images")
        return
    packed = images.layout == "packed"
    if packed != (images.codec == "raw"):
        yield Problem("images.codec", "value", "expected raw exactly when packed")
    yield from exactly("images.shape", images.shape, packed, "when packed")
    if packed != (images.span == 0):
        yield Problem("images.span", "value", "expected 0 exactly when packed")
    if images.shape is not UNSET and images.shape[2] not in (1, 3):
        text = f"expected 1 or 3 channels, got {images.shape[2]}"
        yield Problem("images.shape", "value", text)
    yield from _column_problems(images, is_newer=manifest.is_newer)
    total = images.count
    if shard is not UNSET:
        total = shard.total
        if shard.index >= shard.count:
            text = f"expected below {shard.count}, got {shard.index}"
            yield Problem("shard.index", "value", text)
        rows_after = shard.total - shard.first - images.count
        shards_after = shard.count - shard.index - 1
        # Every shard has at least one row, and together they have all.
        for place, rows, shards in (
            ("first", shard.first, shard.index),
            ("total", rows_after, shards_after),
        ):
            if rows < shards or (rows > 0) != (shards > 0):
                yield Problem(f"shard.{place}", "value", f"leaves {rows} rows to {shards} shards")
    if ipc is not UNSET and ipc * manifest.classes != total:
        text = f"{ipc} x {manifest.classes} classes; expected {total} images"
        yield Problem("dataset.ipc", "value", text)


def _column_problems(images: Images, *, is_newer: bool) -> Iterator[Problem]:
    columns = columns_of(images)
    names = [column.name for column in columns]
    for i, column in enumerate(columns):
        loc = f"images.columns.{i}"
        if column.name in (*names[:i], *INDEX_COLUMNS):
            yield Problem(f"{loc}.name", "duplicate", f"duplicate `{column.name}`")
        elif i and column.name < names[i - 1]:
            yield Problem(f"{loc}.name", "order", "expected sorted, once")
        fault = column_fault(column, is_newer=is_newer)
        if fault:
            yield Problem(loc, "value", fault)
    used = row_bytes(columns)
    if used > ROW_BYTES:
        text = f"expected at most {ROW_BYTES} bytes, got {used}"
        yield Problem("images.columns", "value", text)


def _base_problems(base: Base) -> Iterator[Problem]:
    seeded, rule = base.kind == "seeded", base.preprocess
    yield from exactly("base.seed", base.seed, seeded, "for kind seeded")
    smooth = rule.interpolation != "nearest"
    yield from exactly("base.preprocess.antialias", rule.antialias, smooth, "unless `nearest`")
    if base.text is not UNSET and not seeded:
        yield Problem("base.text", "group", "expected only for kind seeded")
    if base.pretrained is not UNSET and base.kind != "open_clip":
        yield Problem("base.pretrained", "group", "expected only for kind open_clip")
    for name, texts, low in (("std", rule.std, 0.001), ("mean", rule.mean, -1000.0)):
        for i, text in enumerate(texts):
            yield from in_range(f"base.preprocess.{name}.{i}", text, low, 1000.0)
    # Of a named base it says which model is meant.
    is_free = base.kind != "open_clip" and base.text is UNSET
    if base.arch.quick_gelu and is_free and not has_activation(base.arch.vision):
        text = "has no effect in a base without a transformer; expected false"
        yield Problem("base.arch.quick_gelu", "value", text)
    impossible = [*arch_problems(base.arch, rule.size, is_seeded=seeded)]
    impossible += [] if base.text is UNSET else text_problems(base.text)
    for loc, text in impossible:
        yield Problem(f"base.{loc}", "value", text)
    digest = base_digest(base.arch, rule, base.tensors)
    if digest != base.digest:
        text = f"not that of `arch`, `preprocess` and `tensors`; expected {digest}"
        yield Problem("base.digest", "digest", text)


def _function_problems(manifest: Manifest, base: Base) -> Iterator[Problem]:
    functions = functions_of(manifest)
    for i, function in enumerate(functions):
        loc = f"functions.{i}"
        yield from adapter_problems(f"{loc}.adapter", function.adapter)
        dim = base.arch.embed_dim
        yield from head_problems(f"{loc}.head", function.head, manifest.classes, dim)
        if base.kind == "embedded" and function.head.start == "text":
            yield Problem(f"{loc}.head.start", "group", "an embedded base has no text tower")
    is_text = any(function.head.start == "text" for function in functions)
    if base.kind == "seeded" and functions:
        yield from exactly("base.text", base.text, is_text, "where a seeded head starts from text")


def check_manifest_limits(manifest: Manifest, limits: Limits) -> None:
    """Refuse a valid manifest that exceeds the limits."""

    def check(name: str, value: int, member: str = MANIFEST_MEMBER) -> None:
        check_limit(limits, name, value, member=member)

    check("classes", manifest.classes)
    check("view_side", manifest.views.size)
    if manifest.images is not UNSET:
        check("images", manifest.images.count)
        if manifest.images.shape is not UNSET:
            height, width, _ = manifest.images.shape
            check_fixed("image_side", max(height, width), IMAGE_SIDE, member=MANIFEST_MEMBER)
            check("image_pixels", height * width)
    total = 0
    for section in manifest.sections:
        member = section_member(section.name)
        raw_size = section.size if section.raw_size is UNSET else section.raw_size
        if section.name == "index":
            check("index_bytes", raw_size, member)
        elif section.name == "classes":
            check("class_bytes", raw_size, member)
        elif section.name in TEXT_BYTES:
            check_fixed("text", raw_size, TEXT_BYTES[section.name], member=member)
        check("section_bytes", max(section.size, raw_size), member)
        if section.encoding == "zstd":
            check("zstd_bytes", raw_size, member)
            check("zstd_ratio", -(-raw_size // section.size), member)
        total += raw_size
    check("sections_bytes", total)
    if manifest.base is not UNSET:
        _check_function_limits(manifest, manifest.base, check)


def _check_function_limits(
    manifest: Manifest, base: Base, check: Callable[[str, int], None]
) -> None:
    """Check what the label functions make a reader hold and compute."""
    functions = functions_of(manifest)
    factors = [(t.a, t.b) for function in functions for t in function.adapter.targets]
    heads = [function.head for function in functions]
    factors += [(h.a, h.b) for h in heads if h.a is not UNSET and h.b is not UNSET]
    probes = [function.probes.count for function in functions]
    check("probes", max(probes, default=0))
    check("rank", max((a[0] for a, _ in factors), default=0))
    check("base_side", base.preprocess.size)
    numbers = sum(math.prod(a) + math.prod(b) for a, b in factors)
    numbers += len(functions) * manifest.classes * base.arch.embed_dim
    tower = None if base.kind == "open_clip" else vision_size(base.arch)
    flop = 0 if tower is None else sum(probes) * tower.work
    if base.kind == "seeded" and tower is not None:
        numbers += tower.parameters + tower.buffers
        if base.text is not UNSET:
            text = text_size(base.text, base.arch.embed_dim)
            numbers += text.parameters
            prompts = sum(len(head.text.prompts) for head in heads if head.text is not UNSET)
            flop += manifest.classes * prompts * text.work
    sizes = {section.name: section.size for section in manifest.sections}
    names = [
        function_section(manifest, f.name, kind) for f in functions for kind in ("adapter", "head")
    ]
    carried = sum(sizes.get(name, 0) for name in (*names, "base"))
    check("parameters", max(numbers - 2 * carried, 0))
    check("gflop", max(-(-flop // 10**9) - sizes.get("base", 0) // 10**6, 0))
