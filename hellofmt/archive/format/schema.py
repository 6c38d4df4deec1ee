"""The JSON Schemas of the manifest and of the record, generated from the types that read them.

A schema kept by hand drifts: sooner or later it refuses what the code writes. So these are
generated from the structs. A test compares them with ``spec/hello-1.schema.json`` and
``spec/hello-1-record.schema.json`` and validates every vector of the specification against them.

They say less than ``spec/hello-1.md``: a JSON Schema sees a parsed document, so it cannot check
canonical spelling, duplicate keys and the groups that belong together.
"""

from __future__ import annotations

import inspect
from typing import Any, cast

import msgspec

from hellofmt.archive.format.manifest import Manifest
from hellofmt.archive.format.record import Record

_DIALECT = "https://json-schema.org/draft/2020-12/schema"


def json_schema() -> dict[str, Any]:
    """Return the manifest's JSON Schema, 2020-12; keys that start with ``x_`` are strings."""
    schema = _schema(Manifest, "The manifest of a .hello archive, version 1")
    free = {"^x_": {"type": "string", "maxLength": 4096}}
    schema["$defs"]["Manifest"]["patternProperties"] = free
    return schema


def record_schema() -> dict[str, Any]:
    """Return the schema of section ``record``, in the same way."""
    return _schema(Record, "The record of a .hello archive, version 1")


def _schema(kind: type[msgspec.Struct], title: str) -> dict[str, Any]:
    definitions: dict[str, dict[str, Any]] = msgspec.json.schema(kind)["$defs"]
    for definition in definitions.values():
        if "description" in definition:
            text = inspect.cleandoc(cast("str", definition["description"]))
            definition["description"] = text.partition("\n\nExample:")[0]
    return {
        "$schema": _DIALECT,
        "title": title,
        "$ref": f"#/$defs/{kind.__name__}",
        "$defs": {name: definitions[name] for name in sorted(definitions)},
    }
