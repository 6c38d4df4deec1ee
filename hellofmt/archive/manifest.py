"""The manifest: what an archive says of itself, as closed types.

One canonical JSON document of at most 1 MiB, so that ``bytes == canonical(parse(bytes))`` decides
every spelling. There are no floats in it: a decimal is a string in one form and is read as the
nearest double, because two writers never print a float the same way. Unknown keys are refused,
except top-level ``x_...`` strings, which nothing interprets. The types below are the schema:
``spec/hello-1.schema.json`` is generated from them.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import re
from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Decimal
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import msgspec
import msgspec.inspect
from msgspec import UNSET, Meta, Struct, UnsetType

from hellofmt.archive.layout import SECTION_ORDER
from hellofmt.archive.limits import (
    IMAGE_SIDE,
    MANIFEST_BYTES,
    TEXT_BYTES,
    Limits,
    check_fixed,
    check_limit,
)
from hellofmt.errors import NotHelloError, SpecError, UserInputError, printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

__all__ = [
    "UNSET",
    "Adapter",
    "Arch",
    "Base",
    "Dataset",
    "Head",
    "HeadText",
    "Images",
    "Manifest",
    "Preprocess",
    "Probes",
    "Problem",
    "Producer",
    "Section",
    "Shard",
    "Storage",
    "Target",
    "TextArch",
    "Views",
    "VisionArch",
    "base_digest",
    "canonical",
    "check_manifest_limits",
    "content_id",
    "decimal_string",
    "decimal_value",
    "manifest_bytes",
    "parse_manifest",
    "tensors_digest",
    "validate_manifest",
]

# The end of a pattern is "no character follows": "$" would let a line feed through in Python.
_END = r"(?![\s\S])"
Digest = Annotated[str, Meta(pattern=r"^sha256:[0-9a-f]{64}" + _END)]
_DECIMAL: Final = r"^(?!-0\.0(?![0-9]))-?(0|[1-9][0-9]{0,8})\.([0-9]{0,16}[1-9]|0)" + _END
DecimalString = Annotated[str, Meta(pattern=_DECIMAL)]
Text = Annotated[str, Meta(max_length=4096)]
Name = Annotated[str, Meta(min_length=1, max_length=4096)]
Count = Annotated[int, Meta(ge=0, lt=2**53)]
Positive = Annotated[int, Meta(ge=1, lt=2**53)]
Shape = Annotated[list[Positive], Meta(min_length=2, max_length=5)]
MatrixShape = Annotated[list[Positive], Meta(min_length=2, max_length=2)]
Three = Annotated[list[DecimalString], Meta(min_length=3, max_length=3)]
Two = Annotated[list[DecimalString], Meta(min_length=2, max_length=2)]
Storage = Literal["float32", "float16", "bfloat16", "int8", "int4"]
Interpolation = Literal["nearest", "bilinear", "bicubic"]


class _Closed(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A JSON object whose unknown keys are refused and whose absent groups stay absent."""


class Producer(_Closed, frozen=True):
    """The program that wrote the file."""

    name: Name
    version: Name


class Dataset(_Closed, frozen=True):
    """What the data set is; for people and for ``hello diff``.

    ``ipc`` is absent where the archive has no images or an uneven number per class.
    """

    name: Name
    version: Name
    license: Text
    method: Text
    sources: Annotated[list[Text], Meta(max_length=65536)]
    ipc: Positive | UnsetType = UNSET


class Images(_Closed, frozen=True):
    """The images: how many, in which codec, and how many bytes they span.

    ``layout`` ``files`` stores one member per image; ``packed`` one section ``pixels``, whose codec
    is ``raw`` and whose images all have ``shape`` (height, width, channels). ``span`` counts the
    bytes from the first image header to the trailer, 0 when packed.
    """

    codec: Literal["png", "jpeg", "webp", "raw"]
    count: Positive
    layout: Literal["files", "packed"]
    span: Count
    shape: Annotated[list[Positive], Meta(min_length=3, max_length=3)] | UnsetType = UNSET


class Views(_Closed, frozen=True):
    """How a view is made from a stored image; the labels were fitted for views like these.

    ``size``: side of the square view in pixels. ``crop_scale``: area fraction, ``crop_ratio``:
    width / height, both ``[low, high]``. ``flip``, ``mix_probability``: probabilities.
    ``mix_alpha``: Beta(alpha, alpha). ``shuffle``: cells per side of the patch shuffle, 1 for none.
    ``mean`` and ``std`` normalise the student's images, never the view that is labelled.
    """

    antialias: bool
    crop_ratio: Two
    crop_scale: Two
    flip: DecimalString
    interpolation: Interpolation
    mean: Three
    mix: Literal["none", "cutmix", "mixup"]
    mix_alpha: DecimalString
    mix_probability: DecimalString
    shuffle: Positive
    size: Positive
    std: Three


class VisionArch(_Closed, frozen=True):
    """open_clip's ``vision_cfg``, the keys that are data and only those.

    Keys that name files or download weights have no place here. ``timm_model_name`` is looked up in
    timm's own registry, never imported. ``block_type`` is stated only where none of the options of
    a custom block (``qk_norm`` and the four ``scale_...``) implies it. ``timm_proj`` ``""`` is
    open_clip's null: timm's own classifier is the projection.
    """

    image_size: Positive | UnsetType = UNSET
    layers: Positive | Annotated[list[Positive], Meta(min_length=1, max_length=8)] | UnsetType = (
        UNSET
    )
    width: Positive | UnsetType = UNSET
    patch_size: Positive | UnsetType = UNSET
    head_width: Positive | UnsetType = UNSET
    mlp_ratio: DecimalString | UnsetType = UNSET
    ls_init_value: DecimalString | UnsetType = UNSET
    patch_dropout: DecimalString | UnsetType = UNSET
    attentional_pool: bool | UnsetType = UNSET
    attn_pooler_queries: Positive | UnsetType = UNSET
    attn_pooler_heads: Positive | UnsetType = UNSET
    no_ln_pre: bool | UnsetType = UNSET
    pos_embed_type: Literal["learnable", "sin_cos_2d"] | UnsetType = UNSET
    final_ln_after_pool: bool | UnsetType = UNSET
    pool_type: Literal["tok", "avg", "none"] | UnsetType = UNSET
    norm_eps: DecimalString | UnsetType = UNSET
    act_approximate: Literal["tanh"] | UnsetType = UNSET
    block_type: Literal["custom"] | UnsetType = UNSET
    qk_norm: bool | UnsetType = UNSET
    scale_heads: bool | UnsetType = UNSET
    scale_attn_inner: bool | UnsetType = UNSET
    scale_attn: bool | UnsetType = UNSET
    scale_fc: bool | UnsetType = UNSET
    timm_model_name: Annotated[str, Meta(pattern=r"^[a-z0-9_.]{1,100}" + _END)] | UnsetType = UNSET
    timm_pool: Literal["", "avg", "map", "token", "tok", "abs_attn", "rot_attn"] | UnsetType = UNSET
    timm_proj: Literal["", "linear", "mlp", "none"] | UnsetType = UNSET
    timm_proj_bias: bool | UnsetType = UNSET
    timm_drop: DecimalString | UnsetType = UNSET
    timm_drop_path: DecimalString | UnsetType = UNSET


class TextArch(_Closed, frozen=True):
    """open_clip's ``text_cfg`` of a seeded text tower, which has no file to be read from."""

    context_length: Positive
    vocab_size: Positive
    width: Positive
    heads: Positive
    layers: Positive


class Arch(_Closed, frozen=True):
    """Architecture of the base; ``quick_gelu`` is part of it, never inferred from a name."""

    embed_dim: Positive
    quick_gelu: bool
    vision: VisionArch


class Preprocess(_Closed, frozen=True):
    """How a view in [0, 1] enters the base: resized to ``size`` x ``size``, then normalised.

    ``resize_mode`` is ``squash`` (a view is square already; kept for what the base was trained
    with: ``shortest``, ``longest`` or ``squash``) and plays no part in the label function.
    """

    antialias: bool
    interpolation: Interpolation
    mean: Three
    resize_mode: Literal["shortest", "longest", "squash"]
    size: Positive
    std: Three


class Base(_Closed, frozen=True):
    r"""The public encoder that the deltas belong to, pinned by digest.

    ``digest`` = SHA-256 over ``hello/base/1\n`` + canonical JSON of ``arch``, ``preprocess`` and
    ``tensors``. ``name`` and ``pretrained`` are hints for people: nothing is downloaded because a
    file names it. ``seed``, ``rule`` (and ``text`` where the head starts from text) belong to kind
    ``seeded``, whose weights are generated.
    """

    arch: Arch
    digest: Digest
    kind: Literal["open_clip", "seeded", "embedded"]
    name: Text
    preprocess: Preprocess
    tensors: Digest
    pretrained: Text | UnsetType = UNSET
    rule: Literal["uniform-1"] | UnsetType = UNSET
    seed: Count | UnsetType = UNSET
    text: TextArch | UnsetType = UNSET


class Target(_Closed, frozen=True):
    """One low-rank delta: ``W0 + scale * reshape(B A, shape)`` on the base parameter ``param``.

    ``a`` and ``b`` are the shapes of A and B: A (r, rest), B (O, r) for matrices and flattened
    convolutions; A (r k, I k), B (O k, r k) for the paper's convolution form.
    """

    a: MatrixShape
    b: MatrixShape
    param: Name
    scale: DecimalString
    shape: Shape
    storage: Storage


class Adapter(_Closed, frozen=True):
    """The low-rank deltas of the image tower, sorted by ``param``."""

    targets: Annotated[list[Target], Meta(max_length=4096)]


class HeadText(_Closed, frozen=True):
    """What rebuilds the text rows: prompts (``{}`` stands for the class name) and the tower."""

    prompts: Annotated[list[Text], Meta(min_length=1, max_length=65536)]
    tower: Digest


class Head(_Closed, frozen=True):
    """The linear head: its start, its low-rank delta if any, bias, default temperature.

    ``a`` and ``b`` (both or neither) are the shapes of A (r, D) and B (C, r); ``scale`` multiplies
    B A. ``storage`` is that of A, B and of a stored start.
    """

    bias: bool
    scale: DecimalString
    start: Literal["text", "stored"]
    storage: Storage
    temperature: DecimalString
    a: MatrixShape | UnsetType = UNSET
    b: MatrixShape | UnsetType = UNSET
    text: HeadText | UnsetType = UNSET


class Probes(_Closed, frozen=True):
    """How many generated pictures have their logits stored."""

    count: Positive


class Section(_Closed, frozen=True):
    """A metadata member: digest and size of its stored bytes, and of the raw ones when packed.

    ``raw_size`` and ``raw_digest`` are present exactly when ``encoding`` is ``zstd``.
    """

    digest: Digest
    encoding: Literal["none", "zstd"]
    name: Annotated[str, Meta(pattern=r"^[a-z][a-z0-9_]{0,63}" + _END)]
    size: Count
    raw_digest: Digest | UnsetType = UNSET
    raw_size: Count | UnsetType = UNSET


class Shard(_Closed, frozen=True):
    """Which part of a sharded data set this file is: rows ``first .. first + images.count - 1``."""

    count: Positive
    first: Count
    index: Count
    total: Positive


class Manifest(_Closed, frozen=True):
    """The whole manifest except the free ``x_`` keys, which ``extras`` holds after parsing."""

    classes: Positive
    dataset: Dataset
    hello: Annotated[str, Meta(pattern=r"^1\.(0|[1-9][0-9]{0,3})" + _END)]
    producer: Producer
    requires: Annotated[list[Name], Meta(max_length=64)]
    sections: Annotated[list[Section], Meta(max_length=64)]
    views: Views
    adapter: Adapter | UnsetType = UNSET
    base: Base | UnsetType = UNSET
    head: Head | UnsetType = UNSET
    images: Images | UnsetType = UNSET
    probes: Probes | UnsetType = UNSET
    shard: Shard | UnsetType = UNSET


KNOWN_MINOR: Final = 0
"""The highest minor version whose keys this reader knows."""
KNOWN_FEATURES: Final = frozenset({"images.packed"})
"""What ``requires`` may name."""
EXTRAS_BYTES: Final = 64 << 10
"""Most characters of all ``x_`` keys and values together."""
MEMBER: Final = "__hello__/manifest"


def canonical(value: Any) -> bytes:
    r"""The one JSON form of ``value``: sorted keys, no white space, ASCII with ``\uXXXX``.

    Args:
        value: dicts, lists, strings, integers, booleans.

    Returns:
        ASCII bytes without a line end.
    """
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
    ).encode("ascii")


def decimal_string(x: float) -> str:
    r"""``x`` in the manifest's form for decimals: the shortest one that reads back as ``x``.

    A double that needs more than 17 digits after the point is rounded to 17 (half to even); the
    decimal is then within 5e-18 of it.

    Args:
        x: finite, \|x\| < 1e9.

    Returns:
        For instance ``"1.0"``, ``"-0.25"``, ``"0.0000001"``; never ``"-0.0"``.

    Raises:
        UserInputError: not finite or too large (E_OPTION).
    """
    x = float(x)
    if not math.isfinite(x) or abs(x) >= 1e9:
        raise UserInputError.make("E_OPTION", f"decimal; expected |x| < 1e9, got {x}")
    exact = Decimal(repr(x)).quantize(Decimal(1).scaleb(-17), rounding=ROUND_HALF_EVEN)
    whole, _, fraction = format(exact, "f").partition(".")
    text = f"{whole}.{fraction.rstrip('0') or '0'}"
    return "0.0" if text == "-0.0" else text


def decimal_value(s: str) -> float:
    """The double nearest to a decimal string of the manifest.

    Args:
        s: digits, a point, digits, in the one form of the format.

    Returns:
        A finite double.

    Raises:
        SpecError: not in that form (E_SCHEMA).
    """
    if re.match(_DECIMAL, s) is None:
        raise SpecError.make("E_SCHEMA", f"not a canonical decimal: {printable(s)}")
    return float(s)


def _sha256(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def tensors_digest(lines: Iterable[tuple[str, str, tuple[int, ...], bytes]]) -> str:
    """Digest of a set of tensors, whatever container they came from.

    SHA-256 over one line ``name|dtype|shape|sha256`` per tensor, sorted by name, each ended by a
    line feed; the shape is written ``3x4x5``, the last field is the hex SHA-256 of the data.

    Args:
        lines: name, dtype in safetensors' spelling (``F32``), shape, little-endian row-major data.
            Floating tensors of a base are passed as F32, integer counters are left out.

    Returns:
        ``sha256:`` and 64 hex digits.
    """
    rows = sorted(
        (name, f"{dtype}|{'x'.join(map(str, shape))}|{hashlib.sha256(data).hexdigest()}")
        for name, dtype, shape, data in lines
    )
    return _sha256("".join(f"{name}|{row}\n" for name, row in rows).encode("utf-8"))


def base_digest(arch: Arch, preprocess: Preprocess, tensors: str) -> str:
    r"""Digest of a base encoder: its architecture, its preprocessing and its tensors.

    SHA-256 over ``hello/base/1\n`` and the canonical JSON of the three.

    Args:
        arch: architecture, QuickGELU included.
        preprocess: how a view enters the base.
        tensors: ``tensors_digest`` of the image tower.

    Returns:
        ``sha256:`` and 64 hex digits.
    """
    document = {
        "arch": msgspec.to_builtins(arch),
        "preprocess": msgspec.to_builtins(preprocess),
        "tensors": tensors,
    }
    return _sha256(b"hello/base/1\n" + canonical(document))


def manifest_bytes(manifest: Manifest, extras: Mapping[str, str]) -> bytes:
    """The stored bytes of a manifest.

    Args:
        manifest: a valid manifest.
        extras: the ``x_`` keys.

    Returns:
        Canonical JSON, without padding.
    """
    return canonical({**msgspec.to_builtins(manifest), **extras})


def content_id(data: bytes) -> str:
    r"""Identity of the content: what stays equal when a file is only compressed anew.

    SHA-256 over ``hello/content/1\n`` and the canonical JSON of the manifest without ``producer``,
    ``x_`` keys, ``card`` and ``license``, each section with its raw size and digest. It answers
    "same data set?" and is never a pin: only ``id`` fixes the bytes. Keys that this reader does not
    know take part, or readers of two versions would give one file two identities.

    Args:
        data: the stored bytes of a valid manifest.

    Returns:
        ``sha256:`` and 64 hex digits.
    """
    stored: dict[str, Any] = json.loads(data)
    document = {k: v for k, v in stored.items() if k != "producer" and not k.startswith("x_")}
    document["sections"] = [
        {
            "digest": section.get("raw_digest", section["digest"]),
            "name": section["name"],
            "size": section.get("raw_size", section["size"]),
        }
        for section in stored["sections"]
        if section["name"] not in ("card", "license")
    ]
    return _sha256(b"hello/content/1\n" + canonical(document))


class _RefusedNumber(ValueError):
    """A number form that canonical JSON does not have."""


def _refuse_number(text: str) -> Any:
    raise _RefusedNumber(f"floats and constants are not allowed, got {printable(text, 40)}")


def _bounded_int(text: str) -> int:
    # Python converts decimal digits in quadratic time, and 2**53 has 16 of them.
    if len(text) > 17:
        raise _RefusedNumber(f"integer of {len(text)} characters; expected at most 16 digits")
    return int(text)


def _parse_json(data: bytes) -> dict[str, Any]:
    """The object in ``data`` if it is canonical JSON.

    Raises:
        SpecError: E_JSON.
    """

    def fault(text: str) -> SpecError:
        return SpecError.make("E_JSON", text, member=MEMBER)

    try:
        value = json.loads(
            data.decode("ascii"),
            parse_float=_refuse_number,
            parse_constant=_refuse_number,
            parse_int=_bounded_int,
        )
    except UnicodeDecodeError as error:
        raise fault(f"not ASCII at byte {error.start}") from None
    except _RefusedNumber as error:
        raise fault(str(error)) from None
    except json.JSONDecodeError as error:
        raise fault(f"not JSON at byte {error.pos}: {error.msg}") from None
    except RecursionError:
        raise fault("nested too deeply; expected at most 8 levels") from None
    if not isinstance(value, dict):
        raise fault("expected a JSON object")
    try:
        again = canonical(value)
    except RecursionError:
        raise fault("nested too deeply; expected at most 8 levels") from None
    if again != data:
        at = next(
            (i for i, (a, b) in enumerate(zip(again, data, strict=False)) if a != b),
            min(len(again), len(data)),
        )
        raise fault(f"not the canonical form; differs at byte {at}")
    # A lone surrogate survives the round trip but is no text; only an escape can bring one.
    if b"\\ud" in data and any(0xD800 <= ord(c) < 0xE000 for text in _strings(value) for c in text):
        raise fault("a string holds a lone surrogate")
    return value


def _strings(value: Any) -> Iterator[str]:
    """Every key and string of parsed JSON, without recursion."""
    stack: list[Any] = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, str):
            yield item
        elif isinstance(item, dict):
            yield from item
            stack.extend(item.values())
        elif isinstance(item, list):
            stack.extend(item)


def _check_generic(value: Any) -> None:
    """Bounds that the closed schema implies, for files whose newer keys it does not know.

    Raises:
        SpecError: E_JSON.
    """
    stack: list[tuple[Any, int]] = [(value, 1)]
    while stack:
        item, depth = stack.pop()
        fault = ""
        if depth > 8 and isinstance(item, dict | list):
            fault = "nested too deeply; expected at most 8 levels"
        elif isinstance(item, str) and len(item) > 4096:
            fault = f"string of {len(item)} characters; expected at most 4096"
        elif isinstance(item, list) and len(item) > 65536:
            fault = f"array of {len(item)} items; expected at most 65536"
        elif isinstance(item, int) and not -(2**53) < item < 2**53:
            fault = "integer of 2**53 or more"
        if fault:
            raise SpecError.make("E_JSON", fault, member=MEMBER)
        if isinstance(item, dict):
            stack.extend((child, depth + 1) for child in item.values())
        elif isinstance(item, list):
            stack.extend((child, depth + 1) for child in item)


def _known_only(value: Any, kind: Any) -> Any:
    """``value`` without the object keys that ``kind`` does not know.

    A higher minor version may add optional keys; what a reader must understand it names in
    ``requires`` instead.
    """
    options = kind.types if isinstance(kind, msgspec.inspect.UnionType) else (kind,)
    for option in options:
        if isinstance(value, dict) and isinstance(option, msgspec.inspect.StructType):
            known = {field.encode_name: field.type for field in option.fields}
            return {k: _known_only(v, known[k]) for k, v in value.items() if k in known}
        if isinstance(value, list) and isinstance(option, msgspec.inspect.ListType):
            return [_known_only(item, option.item_type) for item in value]
    return value


@functools.cache
def _manifest_type() -> msgspec.inspect.Type:
    """The types of the manifest as data; evaluates our own annotations, so not once per file."""
    return msgspec.inspect.type_info(Manifest)


def _check_version(document: dict[str, Any]) -> int:
    """The minor version of a manifest of major version 1.

    Raises:
        NotHelloError: another major version (E_VERSION).
        SpecError: no version (E_SCHEMA).
    """
    hello: Any = document.get("hello")
    form = r"(0|[1-9][0-9]{0,3})\.(0|[1-9][0-9]{0,3})"
    match = re.fullmatch(form, hello) if isinstance(hello, str) else None
    if match is None:
        raise SpecError.make(
            "E_SCHEMA",
            f"`hello`: expected a version such as 1.0, got {printable(hello, 40)}",
            member=MEMBER,
        )
    if match[1] != "1":
        raise NotHelloError.make("E_VERSION", f"version; expected 1.x, got {hello}", member=MEMBER)
    return int(match[2])


def parse_manifest(data: bytes) -> tuple[Manifest, dict[str, str]]:
    """Narrow manifest bytes to the manifest they are the one form of.

    Args:
        data: the stored bytes, without padding.

    Returns:
        The manifest and its ``x_`` keys.

    Raises:
        LimitError: more than 1 MiB (E_LIMIT_MANIFEST).
        SpecError: not canonical JSON (E_JSON) or against the schema (E_SCHEMA, E_ORDER,
            E_DUPLICATE, E_RANK).
        NotHelloError: of another major version (E_VERSION), or it requires a feature that this
            reader does not have (E_FEATURE).
    """
    check_fixed("manifest", len(data), MANIFEST_BYTES, member=MEMBER)
    document = _parse_json(data)
    minor = _check_version(document)
    extras = {key: document.pop(key) for key in [k for k in document if k.startswith("x_")]}
    problems = _validate_extras(extras)
    requires: Any = document.get("requires")
    if isinstance(requires, list) and all(isinstance(name, str) for name in requires):
        unknown = [name for name in requires if name not in KNOWN_FEATURES]
        if unknown:
            raise NotHelloError.make(
                "E_FEATURE",
                f"this reader does not know the required {printable(', '.join(unknown))}",
                member=MEMBER,
            )
    if minor > KNOWN_MINOR:
        _check_generic(document)
        document = _known_only(document, _manifest_type())
    try:
        manifest = msgspec.convert(document, Manifest)
    except msgspec.ValidationError as error:
        raise _schema_error([_problem_of(error), *problems]) from None
    problems += validate_manifest(manifest)
    if problems:
        raise _schema_error(problems)
    return manifest, extras


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a manifest.

    Attributes:
        loc: path of the value, as in ``images.count`` or ``sections.2.name``.
        kind: what sort of fault it is.
        message: ``expected X, got Y``, printable.
    """

    loc: str
    kind: Literal["type", "value", "group", "order", "duplicate", "rank", "digest"]
    message: str

    def __str__(self) -> str:
        return f"`{self.loc}`: {self.message}"


_CODES: Final = {"order": "E_ORDER", "duplicate": "E_DUPLICATE", "rank": "E_RANK"}


def _problem_of(error: msgspec.ValidationError) -> Problem:
    text, _, place = str(error).partition(" - at `")
    loc = place.removesuffix("`").removeprefix("$").lstrip(".")
    message = printable(text)
    # msgspec shows the pattern, which says nothing to a person.
    if "matching regex" in message:
        message = "not in the form this value has"
    return Problem(printable(loc) or "manifest", "type", message[:1].lower() + message[1:])


def _schema_error(problems: list[Problem]) -> SpecError:
    code = _CODES.get(problems[0].kind, "E_SCHEMA")
    return SpecError.make(code, "", member=MEMBER, problems=problems)


def _validate_extras(extras: Mapping[str, Any]) -> list[Problem]:
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
    """Everything in a manifest that its types allow and the format forbids.

    Args:
        manifest: of the right types.
        extras: its ``x_`` keys, if they are to be judged too.

    Returns:
        Every problem, none for a valid manifest.
    """
    problems = [] if extras is None else _validate_extras(extras)
    problems += _validate_groups(manifest)
    problems += _validate_sections(manifest)
    problems += _validate_images(manifest)
    problems += _validate_views(manifest.views)
    if manifest.adapter is not UNSET:
        problems += _validate_adapter(manifest.adapter)
    if manifest.base is not UNSET:
        problems += _validate_base(manifest.base)
    if manifest.head is not UNSET and manifest.base is not UNSET:
        problems += _validate_head(manifest.head, manifest.base, manifest.classes)
    if sorted(set(manifest.requires)) != manifest.requires:
        problems.append(Problem("requires", "order", "expected sorted names, each once"))
    return problems


def _validate_groups(manifest: Manifest) -> list[Problem]:
    """Groups that stand together or not at all, and the sections that belong to them."""
    problems: list[Problem] = []
    names = {section.name for section in manifest.sections}
    groups = {
        "adapter": manifest.adapter,
        "base": manifest.base,
        "head": manifest.head,
        "probes": manifest.probes,
    }
    present = [name for name, group in groups.items() if group is not UNSET]
    if present and len(present) < len(groups):
        missing = [name for name in groups if name not in present]
        problems.append(
            Problem(missing[0], "group", f"missing beside {', '.join(f'`{n}`' for n in present)}")
        )
    has_images = manifest.images is not UNSET
    packed = manifest.images is not UNSET and manifest.images.layout == "packed"
    embedded = manifest.base is not UNSET and manifest.base.kind == "embedded"
    wanted = {
        "classes": True,
        "adapter": bool(present),
        "head": bool(present),
        "probes": bool(present),
        "base": embedded,
        "index": has_images,
        "pixels": packed,
    }
    for name, want in wanted.items():
        if want and name not in names:
            problems.append(Problem("sections", "group", f"section `{name}` is missing"))
        elif name in names and not want:
            problems.append(
                Problem("sections", "group", f"section `{name}` has no group it belongs to")
            )
    if not present and not has_images:
        problems.append(Problem("images", "group", "expected images, a projector or both"))
    if packed != ("images.packed" in manifest.requires):
        problems.append(
            Problem("requires", "group", "expected `images.packed` exactly for the packed layout")
        )
    if manifest.shard is not UNSET and not has_images:
        problems.append(Problem("shard", "group", "expected images beside it"))
    return problems


def _validate_sections(manifest: Manifest) -> list[Problem]:
    problems: list[Problem] = []
    seen: set[str] = set()
    last = -1
    # Only a newer minor version may bring sections that this reader does not know.
    newer = int(manifest.hello.partition(".")[2]) > KNOWN_MINOR
    for i, section in enumerate(manifest.sections):
        loc = f"sections.{i}"
        if section.name in seen:
            problems.append(Problem(f"{loc}.name", "duplicate", f"`{section.name}` stands twice"))
        seen.add(section.name)
        if section.name in SECTION_ORDER:
            place = SECTION_ORDER.index(section.name)
            if place < last:
                problems.append(
                    Problem(f"{loc}.name", "order", f"`{section.name}` stands too late")
                )
            last = max(last, place)
        elif not newer or section.name in ("manifest", "id"):
            problems.append(Problem(f"{loc}.name", "value", f"unknown section `{section.name}`"))
        if section.size == 0:
            problems.append(Problem(f"{loc}.size", "value", "expected at least 1 byte"))
        packs = section.encoding == "zstd"
        if packs and section.name in ("index", "pixels"):
            problems.append(Problem(f"{loc}.encoding", "value", "expected none, got zstd"))
        if packs != (section.raw_size is not UNSET) or packs != (section.raw_digest is not UNSET):
            problems.append(
                Problem(loc, "group", "expected `raw_size` and `raw_digest` exactly for zstd")
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
        height, width, channels = images.shape
        if max(height, width) > IMAGE_SIDE or channels not in (1, 3):
            problems.append(
                Problem(
                    "images.shape",
                    "value",
                    f"expected sides up to {IMAGE_SIDE} and 1 or 3 channels, got {images.shape}",
                )
            )
    total = images.count
    if shard is not UNSET:
        total = shard.total
        if shard.index >= shard.count:
            problems.append(
                Problem("shard.index", "value", f"expected below {shard.count}, got {shard.index}")
            )
        if shard.first + images.count > shard.total:
            problems.append(
                Problem("shard.total", "value", "smaller than the rows up to this shard's last")
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


def _in_range(loc: str, text: str, low: float, high: float, *, open_low: bool) -> list[Problem]:
    value = float(text)
    if low <= value <= high and not (open_low and value == low):
        return []
    bound = "above" if open_low else "from"
    return [Problem(loc, "value", f"expected {bound} {low} to {high}, got {text}")]


def _validate_views(views: Views) -> list[Problem]:
    problems: list[Problem] = []
    for name, pair, high in (
        ("crop_scale", views.crop_scale, 1.0),
        ("crop_ratio", views.crop_ratio, 10000.0),
    ):
        for i, text in enumerate(pair):
            problems += _in_range(f"views.{name}.{i}", text, 0.0, high, open_low=True)
        if float(pair[0]) > float(pair[1]):
            problems.append(Problem(f"views.{name}", "value", "expected low <= high"))
    problems += _in_range("views.flip", views.flip, 0.0, 1.0, open_low=False)
    problems += _in_range("views.mix_probability", views.mix_probability, 0.0, 1.0, open_low=False)
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


def _validate_adapter(adapter: Adapter) -> list[Problem]:
    problems: list[Problem] = []
    previous = ""
    for i, target in enumerate(adapter.targets):
        loc = f"adapter.targets.{i}"
        # Names are compared as UTF-8 bytes, so that the order is the same in every language.
        if i and target.param.encode("utf-8") <= previous.encode("utf-8"):
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
    if seeded != (base.seed is not UNSET) or seeded != (base.rule is not UNSET):
        problems.append(
            Problem("base.seed", "group", "expected `seed` and `rule` exactly for kind seeded")
        )
    if base.text is not UNSET and not seeded:
        problems.append(Problem("base.text", "group", "expected only for kind seeded"))
    if base.pretrained is not UNSET and base.kind != "open_clip":
        problems.append(Problem("base.pretrained", "group", "expected only for kind open_clip"))
    for i, text in enumerate(base.preprocess.std):
        problems += _in_range(f"base.preprocess.std.{i}", text, 0.0, 1e9, open_low=True)
    if base.preprocess.size > IMAGE_SIDE:
        problems.append(Problem("base.preprocess.size", "value", f"expected at most {IMAGE_SIDE}"))
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


def _validate_head(head: Head, base: Base, classes: int) -> list[Problem]:
    problems = _validate_scale("head.scale", head.scale)
    problems += _in_range("head.temperature", head.temperature, 0.0, 1e9, open_low=True)
    if (head.start == "text") != (head.text is not UNSET):
        problems.append(Problem("head.text", "group", "expected exactly for start text"))
    if base.kind == "seeded" and (head.start == "text") != (base.text is not UNSET):
        problems.append(
            Problem("base.text", "group", "expected exactly where a seeded head starts from text")
        )
    if base.kind == "embedded" and head.start == "text":
        problems.append(Problem("head.start", "group", "an embedded base has no text tower"))
    if head.a is UNSET or head.b is UNSET:
        if head.a is not head.b:
            problems.append(Problem("head.a", "group", "expected `a` and `b` together"))
        return problems
    problems += _validate_factors("head", head.a, head.b)
    if (head.b[0], head.a[1]) != (classes, base.arch.embed_dim):
        problems.append(
            Problem(
                "head",
                "rank",
                f"B A is {head.b[0]} x {head.a[1]}; expected {classes} x {base.arch.embed_dim}",
            )
        )
    return problems


def check_manifest_limits(manifest: Manifest, limits: Limits) -> None:
    """Refuse a manifest that asks for more than the limits allow.

    Args:
        manifest: a valid manifest.
        limits: the reader's limits.

    Raises:
        LimitError: E_LIMIT_IMAGES, _INDEX_BYTES, _SECTION_BYTES, _SECTIONS_BYTES, _ZSTD_BYTES,
            _ZSTD_RATIO, _PROBES, _RANK.
    """
    if manifest.images is not UNSET:
        check_limit(limits, "images", manifest.images.count, member=MEMBER)
        if manifest.images.shape is not UNSET:
            height, width, _ = manifest.images.shape
            check_limit(limits, "image_pixels", height * width, member=MEMBER)
    if manifest.probes is not UNSET:
        check_limit(limits, "probes", manifest.probes.count, member=MEMBER)
    factors = [] if manifest.adapter is UNSET else [t.a[0] for t in manifest.adapter.targets]
    if manifest.head is not UNSET and manifest.head.a is not UNSET:
        factors.append(manifest.head.a[0])
    check_limit(limits, "rank", max(factors, default=0), member=MEMBER)
    total = 0
    for section in manifest.sections:
        member = f"__hello__/{section.name}"
        raw_size = section.size if section.raw_size is UNSET else section.raw_size
        if section.name == "index":
            check_limit(limits, "index_bytes", raw_size, member=member)
        elif section.name in TEXT_BYTES:
            check_fixed("text", raw_size, TEXT_BYTES[section.name], member=member)
        check_limit(limits, "section_bytes", max(section.size, raw_size), member=member)
        if section.encoding == "zstd":
            check_limit(limits, "zstd_bytes", raw_size, member=member)
            check_limit(limits, "zstd_ratio", -(-raw_size // section.size), member=member)
        total += raw_size
    check_limit(limits, "sections_bytes", total, member=MEMBER)
