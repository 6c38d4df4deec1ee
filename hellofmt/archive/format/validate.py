"""Check the rules between fields that the manifest's types cannot express."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from msgspec import UNSET

from hellofmt.archive.format.columns import (
    INDEX_COLUMNS,
    ROW_BYTES,
    column_fault,
    columns_of,
    row_bytes,
)
from hellofmt.archive.format.decimals import decimal_faults
from hellofmt.archive.format.digest import base_digest
from hellofmt.archive.format.functions import (
    FUNCTION_SECTIONS,
    function_section,
    functions_of,
    section_order,
)
from hellofmt.archive.format.layout import MANIFEST_MEMBER
from hellofmt.archive.format.limits import IMAGE_SIDE, TEXT_BYTES, Limits, check_fixed, check_limit
from hellofmt.archive.format.towers import (
    arch_problems,
    has_activation,
    text_problems,
    text_size,
    vision_size,
)
from hellofmt.errors import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from hellofmt.archive.format.manifest import Adapter, Base, Head, Images, Manifest, Views

__all__ = [
    "EXTRAS_BYTES",
    "Problem",
    "check_manifest_limits",
    "validate_extras",
    "validate_manifest",
]
# The sections of a label function whose numbers are stored.
_CARRIED: Final = ("adapter", "head")
EXTRAS_BYTES: Final = 64 << 10
"""Most characters of all ``x_`` keys and values together."""


@dataclass(frozen=True)
class Problem:
    """One fault of a manifest.

    Attributes:
        loc: path of the value, as in ``images.count`` or ``sections.2.name``.
        kind: kind of fault.
        message: ``expected X, got Y``, printable.
    """

    loc: str
    kind: Literal["type", "value", "group", "order", "duplicate", "rank", "digest"]
    message: str

    def __str__(self) -> str:
        return f"`{self.loc}`: {self.message}"


def validate_extras(extras: Mapping[str, Any]) -> list[Problem]:
    """List the faults of a manifest's ``x_`` keys."""
    problems: list[Problem] = []
    total = 0
    for key, value in extras.items():
        if not isinstance(value, str):
            problems.append(Problem(printable(key), "type", "expected a string"))
        elif len(key) > 4096 or len(value) > 4096:
            problems.append(
                Problem(printable(key, 40), "value", "expected at most 4096 characters")
            )
        else:
            total += len(key) + len(value)
    if total > EXTRAS_BYTES:
        problems.append(
            Problem("x_", "value", f"expected at most {EXTRAS_BYTES} characters, got {total}")
        )
    return problems


def validate_manifest(manifest: Manifest, extras: Mapping[str, str] | None = None) -> list[Problem]:
    """List everything in a manifest that its types allow but the format forbids.

    Args:
        manifest: a manifest whose types are correct.
        extras: its ``x_`` keys, to check them as well.

    Returns:
        Every problem; an empty list for a valid manifest.
    """
    problems = [] if extras is None else validate_extras(extras)
    problems += _validate_groups(manifest)
    problems += _validate_sections(manifest)
    problems += _validate_images(manifest)
    problems += _validate_views(manifest.views)
    problems += [Problem(loc, "value", fault) for loc, fault in decimal_faults(manifest)]
    if manifest.base is not UNSET:
        problems += _validate_base(manifest.base)
        problems += _validate_functions(manifest, manifest.base)
    if sorted(set(manifest.requires)) != manifest.requires:
        problems.append(Problem("requires", "order", "expected sorted names, each once"))
    return problems


def _validate_groups(manifest: Manifest) -> list[Problem]:
    """Check groups that come together or not at all, and their sections."""
    problems: list[Problem] = []
    names = {section.name for section in manifest.sections}
    functions = functions_of(manifest)
    if bool(functions) != (manifest.base is not UNSET):
        missing, present = ("base", "functions") if functions else ("functions", "base")
        problems.append(Problem(missing, "group", f"missing beside `{present}`"))
    titles = [function.name for function in functions]
    problems += [
        Problem(f"functions.{i}.name", "duplicate", f"duplicate label function `{title}`")
        for i, title in enumerate(titles)
        if title in titles[:i]
    ]
    has_images = manifest.images is not UNSET
    packed = manifest.images is not UNSET and manifest.images.layout == "packed"
    embedded = manifest.base is not UNSET and manifest.base.kind == "embedded"
    expected = {
        "classes": True,
        **dict.fromkeys(FUNCTION_SECTIONS, bool(functions)),
        **{f"{kind}_{f.name}": True for f in functions[1:] for kind in FUNCTION_SECTIONS},
        "base": embedded,
        "index": has_images,
        "pixels": packed,
    }
    for name, is_expected in expected.items():
        if is_expected and name not in names:
            problems.append(Problem("sections", "group", f"section `{name}` is missing"))
        elif name in names and not is_expected:
            problems.append(
                Problem(
                    "sections", "group", f"section `{name}` belongs to no group of this manifest"
                )
            )
    belongs = manifest.label_function is not UNSET
    if belongs and (functions or not has_images):
        problems.append(
            Problem("label_function", "group", "expected only for images without label functions")
        )
    if not functions and not has_images:
        problems.append(Problem("images", "group", "expected images, a projector or both"))
    if packed != ("images.packed" in manifest.requires):
        problems.append(
            Problem("requires", "group", "expected `images.packed` exactly for the packed layout")
        )
    if manifest.shard is not UNSET and not has_images:
        problems.append(Problem("shard", "group", "expected images as well"))
    return problems


def _validate_sections(manifest: Manifest) -> list[Problem]:
    problems: list[Problem] = []
    seen: set[str] = set()
    last = -1
    # Only a newer minor version may bring sections that this reader does not know.
    newer = manifest.is_newer
    order = section_order(manifest)
    for i, section in enumerate(manifest.sections):
        loc = f"sections.{i}"
        if section.name in seen:
            problems.append(
                Problem(f"{loc}.name", "duplicate", f"duplicate section `{section.name}`")
            )
        seen.add(section.name)
        if section.name in order:
            place = order.index(section.name)
            if place < last:
                problems.append(
                    Problem(f"{loc}.name", "order", f"section `{section.name}` is out of order")
                )
            last = max(last, place)
        elif not newer or section.name in ("manifest", "id"):
            problems.append(Problem(f"{loc}.name", "value", f"unknown section `{section.name}`"))
        if section.size == 0:
            problems.append(Problem(f"{loc}.size", "value", "expected at least 1 byte"))
        packs = section.encoding == "zstd"
        if packs and section.name in ("index", "pixels", "base"):
            problems.append(Problem(f"{loc}.encoding", "value", "expected none, got zstd"))
        if packs != (section.raw_size is not UNSET) or packs != (section.raw_digest is not UNSET):
            problems.append(
                Problem(
                    loc,
                    "group",
                    "expected `raw_size` and `raw_digest` if and only if the encoding is zstd",
                )
            )
    return problems


def _validate_images(manifest: Manifest) -> list[Problem]:
    images, shard = manifest.images, manifest.shard
    ipc = manifest.dataset.ipc
    if images is UNSET:
        if ipc is UNSET:
            return []
        return [Problem("dataset.ipc", "group", "expected none without images")]
    problems: list[Problem] = []
    packed = images.layout == "packed"
    if packed != (images.codec == "raw"):
        problems.append(Problem("images.codec", "value", "expected raw exactly when packed"))
    if packed != (images.shape is not UNSET):
        problems.append(Problem("images.shape", "group", "expected exactly when packed"))
    if packed != (images.span == 0):
        problems.append(Problem("images.span", "value", "expected 0 exactly when packed"))
    if images.shape is not UNSET:
        channels = images.shape[2]
        if channels not in (1, 3):
            problems.append(
                Problem("images.shape", "value", f"expected 1 or 3 channels, got {channels}")
            )
    problems += _validate_columns(images, is_newer=manifest.is_newer)
    total = images.count
    if shard is not UNSET:
        total = shard.total
        if shard.index >= shard.count:
            problems.append(
                Problem("shard.index", "value", f"expected below {shard.count}, got {shard.index}")
            )
        rows_after = shard.total - shard.first - images.count
        shards_after = shard.count - shard.index - 1
        # Every shard has at least one row, and together they have all.
        for place, rows, shards in (
            ("first", shard.first, shard.index),
            ("total", rows_after, shards_after),
        ):
            if rows < shards or (rows > 0) != (shards > 0):
                problems.append(
                    Problem(f"shard.{place}", "value", f"leaves {rows} rows to {shards} shards")
                )
    if ipc is not UNSET and ipc * manifest.classes != total:
        problems.append(
            Problem(
                "dataset.ipc",
                "value",
                f"{ipc} x {manifest.classes} classes; expected {total} images",
            )
        )
    return problems


def _validate_columns(images: Images, *, is_newer: bool) -> list[Problem]:
    problems: list[Problem] = []
    columns = columns_of(images)
    names = [column.name for column in columns]
    for i, column in enumerate(columns):
        loc = f"images.columns.{i}"
        if column.name in (*names[:i], *INDEX_COLUMNS):
            problems.append(Problem(f"{loc}.name", "duplicate", f"duplicate `{column.name}`"))
        elif i and column.name < names[i - 1]:
            problems.append(Problem(f"{loc}.name", "order", "expected sorted, once"))
        fault = column_fault(column, is_newer=is_newer)
        if fault:
            problems.append(Problem(loc, "value", fault))
    used = row_bytes(columns)
    if used > ROW_BYTES:
        problems.append(
            Problem("images.columns", "value", f"expected at most {ROW_BYTES} bytes, got {used}")
        )
    return problems


def _in_range(loc: str, text: str, low: float, high: float, *, open_low: bool) -> list[Problem]:
    value = float(text)
    if low <= value <= high and not (open_low and value == low):
        return []
    bound = "above" if open_low else "from"
    return [Problem(loc, "value", f"expected {bound} {low} to {high}, got {text}")]


def _exactly(loc: str, value: Any, wanted: bool, when: str) -> list[Problem]:
    """A field that is present exactly where it has an effect."""
    if (value is not UNSET) == wanted:
        return []
    return [Problem(loc, "group", f"expected exactly {when}")]


def _validate_views(views: Views) -> list[Problem]:
    smooth, mixes = views.interpolation != "nearest", views.mix != "none"
    problems = _exactly("views.antialias", views.antialias, smooth, "unless `nearest`")
    problems += _exactly("views.mix_alpha", views.mix_alpha, mixes, "with mixing")
    problems += _exactly("views.mix_probability", views.mix_probability, mixes, "with mixing")
    for name, pair, high in (
        ("crop_scale", views.crop_scale, 1.0),
        ("crop_ratio", views.crop_ratio, 10000.0),
    ):
        for i, text in enumerate(pair):
            problems += _in_range(f"views.{name}.{i}", text, 0.0, high, open_low=True)
        if float(pair[0]) > float(pair[1]):
            problems.append(Problem(f"views.{name}", "value", "expected low <= high"))
    problems += _in_range("views.flip", views.flip, 0.0, 1.0, open_low=False)
    if views.mix_probability is not UNSET:
        problems += _in_range(
            "views.mix_probability", views.mix_probability, 0.0, 1.0, open_low=True
        )
    if views.mix_alpha is not UNSET:
        problems += _in_range("views.mix_alpha", views.mix_alpha, 0.0, 1000.0, open_low=True)
    for i, text in enumerate(views.std):
        problems += _in_range(f"views.std.{i}", text, 0.0, 1e9, open_low=True)
    if views.size > IMAGE_SIDE:
        problems.append(Problem("views.size", "value", f"expected at most {IMAGE_SIDE}"))
    if views.shuffle > views.size:
        problems.append(Problem("views.shuffle", "value", "more cells than pixels"))
    # 8! squared permutations of columns and rows are the most that an int32 can number.
    if views.shuffle > 8:
        problems.append(Problem("views.shuffle", "value", "expected at most 8"))
    return problems


def _validate_factors(loc: str, a: list[int], b: list[int]) -> list[Problem]:
    if a[0] == b[1]:
        return []
    return [Problem(loc, "rank", f"inner dimensions of B {b} and A {a} differ")]


def _validate_scale(loc: str, scale: str) -> list[Problem]:
    return _in_range(loc, scale, -1000.0, 1000.0, open_low=False)


def _validate_functions(manifest: Manifest, base: Base) -> list[Problem]:
    problems: list[Problem] = []
    functions = functions_of(manifest)
    for i, function in enumerate(functions):
        loc = f"functions.{i}"
        problems += _validate_adapter(f"{loc}.adapter", function.adapter)
        problems += _validate_head(f"{loc}.head", function.head, base, manifest.classes)
    is_text = any(function.head.start == "text" for function in functions)
    if base.kind == "seeded" and functions and is_text != (base.text is not UNSET):
        problems.append(
            Problem("base.text", "group", "expected exactly where a seeded head starts from text")
        )
    return problems


def _validate_adapter(where: str, adapter: Adapter) -> list[Problem]:
    problems: list[Problem] = []
    previous = ""
    for i, target in enumerate(adapter.targets):
        loc = f"{where}.targets.{i}"
        if i and target.param <= previous:
            same = target.param == previous
            problems.append(
                Problem(f"{loc}.param", "duplicate" if same else "order", "expected sorted, once")
            )
        previous = target.param
        problems += _validate_scale(f"{loc}.scale", target.scale)
        problems += _validate_factors(loc, target.a, target.b)
        shape, (rows, columns) = target.shape, (target.b[0], target.a[1])
        flat = (shape[0], math.prod(shape[1:]))
        forms = [flat]
        if len(shape) == 4 and shape[2] == shape[3]:
            # The paper's convolution form: B (O k, r k), A (r k, I k).
            forms.append((shape[0] * shape[2], shape[1] * shape[3]))
        if (rows, columns) not in forms:
            problems.append(
                Problem(loc, "rank", f"B A is {rows} x {columns}, which does not fill {shape}")
            )
    return problems


def _validate_base(base: Base) -> list[Problem]:
    problems: list[Problem] = []
    seeded = base.kind == "seeded"
    problems += _exactly("base.seed", base.seed, seeded, "for kind seeded")
    rule = base.preprocess
    smooth = rule.interpolation != "nearest"
    problems += _exactly("base.preprocess.antialias", rule.antialias, smooth, "unless `nearest`")
    if base.text is not UNSET and not seeded:
        problems.append(Problem("base.text", "group", "expected only for kind seeded"))
    if base.pretrained is not UNSET and base.kind != "open_clip":
        problems.append(Problem("base.pretrained", "group", "expected only for kind open_clip"))
    for i, text in enumerate(base.preprocess.std):
        problems += _in_range(f"base.preprocess.std.{i}", text, 0.001, 1000.0, open_low=False)
    for i, text in enumerate(base.preprocess.mean):
        problems += _in_range(f"base.preprocess.mean.{i}", text, -1000.0, 1000.0, open_low=False)
    # Of a named base it says which model is meant.
    is_free = base.kind != "open_clip" and base.text is UNSET
    if base.arch.quick_gelu and is_free and not has_activation(base.arch.vision):
        text = "has no effect in a base without a transformer; expected false"
        problems.append(Problem("base.arch.quick_gelu", "value", text))
    impossible = [*arch_problems(base.arch, base.preprocess.size, is_seeded=seeded)]
    impossible += [] if base.text is UNSET else text_problems(base.text)
    problems += [Problem(f"base.{loc}", "value", text) for loc, text in impossible]
    digest = base_digest(base.arch, base.preprocess, base.tensors)
    if digest != base.digest:
        problems.append(
            Problem(
                "base.digest",
                "digest",
                f"not that of `arch`, `preprocess` and `tensors`; expected {digest}",
            )
        )
    return problems


def _validate_head(loc: str, head: Head, base: Base, classes: int) -> list[Problem]:
    has_delta = head.a is not UNSET
    is_stored = has_delta or head.start == "stored"
    problems = _exactly(f"{loc}.b", head.b, has_delta, "with `a`")
    problems += _exactly(f"{loc}.scale", head.scale, has_delta, "with `a` and `b`")
    problems += _exactly(f"{loc}.storage", head.storage, is_stored, "for a delta or a stored start")
    if head.scale is not UNSET:
        problems += _validate_scale(f"{loc}.scale", head.scale)
    problems += _in_range(f"{loc}.temperature", head.temperature, 0.001, 1e5, open_low=False)
    if (head.start == "text") != (head.text is not UNSET):
        problems.append(Problem(f"{loc}.text", "group", "expected exactly for start text"))
    if base.kind == "embedded" and head.start == "text":
        problems.append(Problem(f"{loc}.start", "group", "an embedded base has no text tower"))
    if head.a is UNSET or head.b is UNSET:
        return problems
    problems += _validate_factors(loc, head.a, head.b)
    if (head.b[0], head.a[1]) != (classes, base.arch.embed_dim):
        problems.append(
            Problem(
                loc,
                "rank",
                f"B A is {head.b[0]} x {head.a[1]}; expected {classes} x {base.arch.embed_dim}",
            )
        )
    return problems


def check_manifest_limits(manifest: Manifest, limits: Limits) -> None:
    """Refuse a manifest that exceeds the limits.

    Args:
        manifest: a valid manifest.
        limits: the reader's limits.

    Raises:
        LimitError: E_LIMIT_<NAME> of every limit that a manifest can exceed.
    """

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
        member = f"__hello__/{section.name}"
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
    probes = sum(function.probes.count for function in functions)
    check("probes", max((function.probes.count for function in functions), default=0))
    check("rank", max((a[0] for a, _ in factors), default=0))
    check("base_side", base.preprocess.size)
    numbers = sum(math.prod(a) + math.prod(b) for a, b in factors)
    numbers += len(functions) * manifest.classes * base.arch.embed_dim
    tower = None if base.kind == "open_clip" else vision_size(base.arch)
    flop = 0 if tower is None else probes * tower.work
    if base.kind == "seeded" and tower is not None:
        numbers += tower.parameters + tower.buffers
        if base.text is not UNSET:
            text = text_size(base.text, base.arch.embed_dim)
            numbers += text.parameters
            prompts = sum(len(head.text.prompts) for head in heads if head.text is not UNSET)
            flop += manifest.classes * prompts * text.work
    carried = {section.name: section.size for section in manifest.sections}
    names = [function_section(manifest, f.name, kind) for f in functions for kind in _CARRIED]
    stored = sum(carried.get(name, 0) for name in (*names, "base"))
    check("parameters", max(numbers - 2 * stored, 0))
    check("gflop", max(-(-flop // 10**9) - carried.get("base", 0) // 10**6, 0))
