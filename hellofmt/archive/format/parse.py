"""Convert manifest bytes to a manifest, and back; each has exactly one form."""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING, Any, Final

import msgspec
import msgspec.inspect

from hellofmt.archive.format.canonical import canonical, parse_canonical
from hellofmt.archive.format.fields import Problem
from hellofmt.archive.format.layout import MANIFEST_MEMBER
from hellofmt.archive.format.limits import MANIFEST_BYTES, check_fixed
from hellofmt.archive.format.manifest import KNOWN_FEATURES, KNOWN_MINOR, Manifest
from hellofmt.archive.format.validate import validate_extras, validate_manifest
from hellofmt.errors import NotHelloError, SpecError, printable

if TYPE_CHECKING:
    from collections.abc import Mapping

_CODES: Final = {"order": "E_ORDER", "duplicate": "E_DUPLICATE", "rank": "E_RANK"}


def manifest_bytes(manifest: Manifest, extras: Mapping[str, str]) -> bytes:
    """Serialise a valid manifest and its ``x_`` keys as canonical JSON, without padding."""
    return canonical({**msgspec.to_builtins(manifest), **extras})


@functools.cache
def _described(kind: type[Any]) -> msgspec.inspect.Type:
    """Describe a type as data; cached, because it evaluates our annotations."""
    return msgspec.inspect.type_info(kind)


def known_only(value: Any, kind: type[Any] | msgspec.inspect.Type) -> Any:
    """Drop the object keys, at any depth, that ``kind`` does not know.

    A higher minor version may add optional keys; it names what a reader must understand in
    ``requires``.
    """
    if isinstance(kind, type):
        kind = _described(kind)
    for option in kind.types if isinstance(kind, msgspec.inspect.UnionType) else (kind,):
        if isinstance(value, dict) and isinstance(option, msgspec.inspect.StructType):
            known = {field.encode_name: field.type for field in option.fields}
            return {k: known_only(v, known[k]) for k, v in value.items() if k in known}
        if isinstance(value, list) and isinstance(option, msgspec.inspect.ListType):
            return [known_only(item, option.item_type) for item in value]
    return value


def _minor_version(hello: Any) -> int:
    """The minor version of a manifest of major version 1."""
    form = r"(0|[1-9][0-9]{0,3})\.(0|[1-9][0-9]{0,3})"
    match = re.fullmatch(form, hello) if isinstance(hello, str) else None
    if match is None:
        text = f"`hello`: expected a version such as 1.0, got {printable(hello, 40)}"
        raise SpecError.make("E_SCHEMA", text, member=MANIFEST_MEMBER)
    if match[1] != "1":
        text = f"version; expected 1.x, got {hello}"
        raise NotHelloError.make("E_VERSION", text, member=MANIFEST_MEMBER)
    return int(match[2])


def parse_manifest(data: bytes) -> tuple[Manifest, dict[str, str]]:
    """Parse manifest bytes, without padding, to the manifest and its ``x_`` keys."""
    check_fixed("manifest", len(data), MANIFEST_BYTES, member=MANIFEST_MEMBER)
    document = parse_canonical(data)
    minor = _minor_version(document.get("hello"))
    extras = {key: document.pop(key) for key in [k for k in document if k.startswith("x_")]}
    problems = validate_extras(extras)
    requires: Any = document.get("requires")
    if isinstance(requires, list) and all(isinstance(name, str) for name in requires):
        unknown = [name for name in requires if name not in KNOWN_FEATURES]
        if unknown:
            text = f"this reader does not know the required {printable(', '.join(unknown))}"
            raise NotHelloError.make("E_FEATURE", text, member=MANIFEST_MEMBER)
    if minor > KNOWN_MINOR:
        document = known_only(document, Manifest)
    try:
        manifest = msgspec.convert(document, Manifest)
    except msgspec.ValidationError as error:
        raise _schema_error([problem_of(error, "manifest"), *problems]) from None
    problems += validate_manifest(manifest)
    if problems:
        raise _schema_error(problems)
    return manifest, extras


def problem_of(error: msgspec.ValidationError, whole: str) -> Problem:
    """The fault that msgspec found; ``whole`` names the document, for a fault of all of it."""
    text, _, place = str(error).partition(" - at `")
    loc = place.removesuffix("`").removeprefix("$").lstrip(".")
    message = printable(text)
    # msgspec shows the pattern, which tells people nothing.
    if "matching regex" in message:
        message = "not in the form this value has"
    return Problem(printable(loc) or whole, "type", message[:1].lower() + message[1:])


def _schema_error(problems: list[Problem]) -> SpecError:
    code = _CODES.get(problems[0].kind, "E_SCHEMA")
    return SpecError.make(code, "", member=MANIFEST_MEMBER, problems=problems)
